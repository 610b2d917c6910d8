"""The SuperLink's nodes follow the list of enrolled sites."""

import json

import httpx
import pytest

from medsynx.errors import MedsynxError
from strategies.members import follow, reconcile, write_roster


class SuperLink:
    """Stands in for the Control API. As the true one does, it takes each key once, for good."""

    def __init__(self, *keys):
        self.present, self.ever = dict(enumerate(keys)), set(keys)
        self.calls = []

    def nodes(self):
        return dict(self.present)

    def register(self, name, key):
        self.calls.append(("register", name))
        if key in self.ever:
            raise httpx.HTTPError("key in use")
        self.ever.add(key)
        self.present[node := 100 + len(self.ever)] = key
        return node

    def unregister(self, node):
        self.calls.append(("unregister", node))
        del self.present[node]


def test_only_what_changed_is_touched():
    link = SuperLink(b"a", b"b", b"gone")
    roster = reconcile(link, {"west": b"new", "east": b"a", "north": b"b"})
    assert roster == {"east": 0, "north": 1, "west": 104}
    assert link.calls == [("unregister", 2), ("register", "west")]
    assert reconcile(link, {"west": b"new", "east": b"a", "north": b"b"}) == roster and len(link.calls) == 2


def test_a_key_that_is_not_taken_leaves_its_site_out():
    link = SuperLink(b"a", b"revoked")
    reconcile(link, {"east": b"a"})
    assert reconcile(link, {"east": b"a", "ghost": b"revoked"}) == {"east": 0}


def test_no_list_is_not_an_empty_list(tmp_path):
    link = SuperLink(b"a")
    with pytest.raises(MedsynxError) as refused:
        follow(tmp_path, link)
    assert refused.value.code == "federation-unreachable" and link.calls == []


def test_the_roster_is_written_when_it_changes(tmp_path):
    write_roster(tmp_path, {"east": 2**63 + 1})
    before = (tmp_path / "roster.json").stat().st_mtime_ns
    write_roster(tmp_path, {"east": 2**63 + 1})
    assert (tmp_path / "roster.json").stat().st_mtime_ns == before
    assert json.loads((tmp_path / "roster.json").read_text()) == {"east": str(2**63 + 1)}


@pytest.mark.parametrize(
    "sites", [ValueError("no JSON"), [{}], None, [{"site": "a", "node_key": 1, "status": "enrolled"}]]
)
def test_a_list_that_cannot_be_read_changes_nothing(tmp_path, monkeypatch, sites):
    def answer(*args, **content):
        if isinstance(sites, Exception):
            raise sites
        return sites

    def slept(seconds):
        raise InterruptedError("followed on")

    link = SuperLink(b"a")
    (tmp_path / "registry.json").write_text('{"url": "https://server"}')
    monkeypatch.setattr("strategies.registry.Registry._send", answer)
    monkeypatch.setattr("strategies.members.time.sleep", slept)
    with pytest.raises(InterruptedError):
        follow(tmp_path, link)
    assert link.calls == []
