"""The SuperLink's nodes follow the list of enrolled sites."""

import json

import httpx
import pytest

from medsynx.errors import MedsynxError
from strategies.members import TROUBLE, follow, follow_once, read_roster, reconcile, write_roster
from strategies.registry import Listed, Registry


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


def enrolled(**keys):
    return {site: Listed(key, True) for site, key in keys.items()}


def test_only_what_changed_is_touched():
    link = SuperLink(b"a", b"b", b"old")
    listed, before = enrolled(west=b"new", east=b"a", north=b"b"), {"east": 0, "north": 1, "west": 2}
    roster = reconcile(link, listed, before)
    assert roster == {"east": 0, "north": 1, "west": 104}
    assert link.calls == [("unregister", 2), ("register", "west")]
    assert reconcile(link, listed, roster) == roster and len(link.calls) == 2


def test_a_key_that_is_not_taken_leaves_its_site_out():
    link = SuperLink(b"a", b"revoked")
    reconcile(link, {**enrolled(east=b"a"), "ghost": Listed(b"revoked", False)}, {})
    assert link.calls == [("unregister", 1)], "known by its key where the roster does not name it"
    assert reconcile(link, enrolled(east=b"a", ghost=b"revoked"), {"east": 0}) == {"east": 0}


def test_a_site_the_server_does_not_name_stays():
    """A wrong or empty server shuts nobody out: a key is taken once, for good."""
    link, before = SuperLink(b"a", b"b"), {"east": 0, "west": 1}
    assert reconcile(link, {}, before) == before and link.calls == []
    both = {**before, "far": 103}
    assert reconcile(link, enrolled(far=b"c"), before) == both and link.calls == [("register", "far")]
    ended = {"east": Listed(b"a", True), "far": Listed(b"c", True), "west": Listed(b"b", False)}
    assert reconcile(link, ended, both) == {"east": 0, "far": 103} and link.calls[-1] == ("unregister", 1)


def test_a_new_token_is_heard_and_an_old_one_named(tmp_path, monkeypatch):
    def send(self, method, path):
        if self.token != "fresh":
            request = httpx.Request(method, self.url + path)
            raise httpx.HTTPStatusError("no", request=request, response=httpx.Response(401, request=request))
        return [{"site": "east", "node_key": "a", "status": "enrolled"}]

    monkeypatch.setattr(Registry, "_send", send)
    link = SuperLink(b"a")
    (tmp_path / "registry.json").write_text(json.dumps({"url": "https://server", "token": "old", "ca": None}))
    write_roster(tmp_path, {"west": 7})
    told = follow_once(tmp_path, link)
    assert "401" in told and "token create --days 366" in told and "coordinator connect" in told
    assert read_roster(tmp_path) == {"west": 7}
    (tmp_path / "registry.json").write_text(json.dumps({"url": "https://server", "token": "fresh", "ca": None}))
    assert follow_once(tmp_path, link) == "" and read_roster(tmp_path) == {"east": 0}
    link.present[7] = b"w"
    write_roster(tmp_path, {"west": 7})
    assert "does not name west" in follow_once(tmp_path, link) and read_roster(tmp_path) == {"east": 0, "west": 7}


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
    assert link.calls == [] and (tmp_path / TROUBLE).read_text()
    monkeypatch.setattr("strategies.members.follow_once", lambda *told: "")
    with pytest.raises(InterruptedError):
        follow(tmp_path, link)
    assert (tmp_path / TROUBLE).read_text() == "", "also what an earlier process wrote"
