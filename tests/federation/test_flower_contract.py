"""What we use of Flower's inside: an upgrade that moves it fails here, by name."""

import inspect

import numpy as np
import pytest

from medsynx.flower_records import reply_from_records, reply_to_records, request_from_records, request_to_records
from medsynx.generators.base import State
from medsynx.wire import Reply, Request


def test_internal_names_are_where_we_import_them():
    import flwr.superlink.dependencies.linkstate
    import flwr.superlink.main
    from flwr.supercore.control import ControlHttpClient
    from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

    import site_agent.supernode
    import strategies.control
    import strategies.gate
    import strategies.superlink  # noqa: F401  # their module-level imports are the contract

    assert callable(flwr.superlink.main.create_app) and hasattr(ControlHttpClient, "RegisterNode")
    assert hasattr(ControlHttpClient, "UnregisterNode") and hasattr(ControlHttpClient, "ListNodes")
    assert list(inspect.signature(site_agent.supernode.flower._push_messages).parameters)[:2] == [
        "state",
        "object_store",
    ]
    assert "_pull_and_store_message" in inspect.getsource(site_agent.supernode.flower.start_client_internal)
    assert "app.state.linkstate_factory = " in inspect.getsource(flwr.superlink.main.create_app)
    assert callable(flwr.superlink.dependencies.linkstate.LinkState.get_node_id_by_public_key)
    connection = inspect.getsource(site_agent.supernode.line.http_request_response)
    assert "make_simple_http_retry_invoker()" in connection and "HeartbeatSender(send_node_heartbeat)" in connection
    assert list(inspect.signature(pull_task_input).parameters) == ["client"]
    assert list(inspect.signature(push_message).parameters) == ["client", "message", "context"]
    assert list(inspect.signature(push_task_output).parameters)[:4] == ["client", "context", "sub_status", "details"]


def test_the_stub_app_has_one_hash():
    from site_agent.executor import own_app_hash

    assert own_app_hash() == own_app_hash()


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.float32, np.float64])
def test_messages_survive_the_wire(dtype):
    arrays = {"sum": np.arange(6, dtype=dtype).reshape(2, 3), "empty": np.zeros(0, dtype)}
    request = Request("r", "d" * 64, "step 1", State(arrays, {"noise_std": 1.5, "n": 3}))
    again = request_from_records(request_to_records(request))
    assert (again.run, again.study_digest, again.step, again.state.facts) == (
        "r",
        "d" * 64,
        "step 1",
        {"noise_std": 1.5, "n": 3},
    )
    told = Request("r", "d" * 64, "step 1", State(), "share", {"adverts": {"s": {"mask_key": "x"}}})
    assert request_from_records(request_to_records(told)) == told and again.exchange == "" and again.message == {}
    spoken = Reply(message={"boxes": {"s": "x"}})
    for reply in (Reply(arrays), Reply(refusal="budget-exceeded"), Reply(arrays, private=False), spoken):
        back = reply_from_records(reply_to_records(reply))
        assert (back.refusal, back.private, back.message) == (reply.refusal, reply.private, reply.message)
        for name, array in reply.arrays.items():
            assert back.arrays[name].dtype == dtype and (back.arrays[name] == array).all()


def test_a_reply_that_does_not_say_it_is_private_is_not():
    from flwr.app import ArrayRecord, ConfigRecord, RecordDict

    records = RecordDict({"arrays": ArrayRecord({}), "body": ConfigRecord({"json": "{}"})})
    assert reply_from_records(records).private is False
    with pytest.raises((ValueError, KeyError, TypeError)):
        request_from_records(records)


def test_a_site_that_died_while_it_sent_holds_up_nobody(monkeypatch):
    """Flower waits for the objects of a half-sent reply inside ``pull_messages``; the other sites' replies count meanwhile."""
    import threading
    import time
    from types import SimpleNamespace

    from strategies.flower import FlowerFederation

    class Grid:
        def push_messages(self, messages):
            self.sent = {f"m{node}": node for node in messages}
            return list(self.sent)

        def pull_messages(self, ids):
            if "m2" in ids:
                threading.Event().wait(30)
            return [
                SimpleNamespace(
                    has_error=lambda: False,
                    metadata=SimpleNamespace(src_node_id=self.sent[i], reply_to_message_id=i),
                    content=reply_to_records(Reply(message={"from": i})),
                )
                for i in ids
            ]

    monkeypatch.setattr("strategies.flower.Message", lambda records, node, action, ttl: node)
    federation = FlowerFederation(Grid(), lambda: {"east": 1, "north": 2, "west": 3})
    began = time.monotonic()
    answers = federation.ask(Request("r", "d" * 64, "s", State()), ["east", "north", "west", "ghost"], 4)
    assert time.monotonic() - began < 20
    assert {a.site: a.reason for a in answers} == {"east": None, "ghost": "offline", "north": "late", "west": None}
    assert answers[0].reply.message == {"from": "m1"} and answers[3].reply.message == {"from": "m3"}


def test_a_site_that_is_back_before_the_deadline_is_asked_the_same_again(monkeypatch):
    """And one that is not is offline, whatever else Flower would say of it."""
    from types import SimpleNamespace

    from flwr.common.constant import ErrorCode

    from strategies.flower import FlowerFederation

    gone = SimpleNamespace(has_error=lambda: True, error=SimpleNamespace(code=ErrorCode.NODE_UNAVAILABLE))

    class Grid:
        asked, looks = [], 0

        def push_messages(self, messages):
            self.asked += messages
            return [f"m{node}-{self.asked.count(node)}" for node in messages]

        def get_node_ids(self):
            self.looks += 1
            return [1, 2] if self.looks > 3 else [1]

        def pull_messages(self, ids):
            if ids[0] in ("m2-1", "m3-1"):
                return [gone]
            content = reply_to_records(Reply(message={"from": ids[0]}))
            node = int(ids[0][1])
            return [
                SimpleNamespace(has_error=lambda: False, metadata=SimpleNamespace(src_node_id=node), content=content)
            ]

    monkeypatch.setattr("strategies.flower.Message", lambda records, node, action, ttl: node)
    monkeypatch.setattr("strategies.flower.POLL_SECONDS", 0.01)
    federation = FlowerFederation(Grid(), lambda: {"east": 1, "north": 2, "west": 3})
    answers = federation.ask(Request("r", "d" * 64, "s", State()), ["east", "north", "west"], 4)
    assert [a.reason for a in answers] == [None, None, "offline"]
    assert [a.reply.message["from"] for a in answers[:2]] == ["m1-1", "m2-2"]
    assert sorted(federation.grid.asked) == [1, 2, 2, 3], "asked again once, and only the one that is back"


def test_what_a_site_sends_fails_that_site_alone_and_a_superlink_that_is_away_the_question(monkeypatch):
    """Flower inflates a reply inside ``pull_messages``: what breaks there is the site's, unless the SuperLink itself does not answer."""
    from types import SimpleNamespace

    import httpx
    from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

    from strategies.flower import FlowerFederation

    def reply(node, content):
        return SimpleNamespace(has_error=lambda: False, metadata=SimpleNamespace(src_node_id=node), content=content)

    deep = RecordDict({"arrays": ArrayRecord(), "body": ConfigRecord({"json": "[" * 100_000})})
    broken = Array("float32", (2,), "numpy.ndarray", b"no array")
    undecodable = RecordDict({"arrays": ArrayRecord({"sum": broken}), "body": ConfigRecord({"json": "{}"})})
    first = reply(1, reply_to_records(Reply(message={"from": "m1"})))
    sent = [first, KeyError("class"), MemoryError(), RecursionError(), reply(5, deep), reply(6, undecodable), object()]

    class Grid:
        def push_messages(self, messages):
            return [f"m{node}" for node in messages]

        def pull_messages(self, ids):
            found = sent[int(ids[0][1:]) - 1]
            if isinstance(found, Exception):
                raise found
            return [found]

    monkeypatch.setattr("strategies.flower.Message", lambda records, node, action, ttl: node)
    names = [f"s{node}" for node in range(1, 8)]
    federation = FlowerFederation(Grid(), lambda: {name: node for node, name in enumerate(names, 1)})
    question = Request("r", "d" * 64, "s", State())
    answers = federation.ask(question, names, 120)
    assert answers[0].reply.message == {"from": "m1"}
    assert [a.reply.refusal for a in answers[1:]] == ["reply-invalid"] * 6
    sent[2] = httpx.ConnectError("away")
    with pytest.raises(httpx.ConnectError):
        federation.ask(question, names, 120)


def test_a_site_with_a_new_key_is_asked_again_in_the_same_run():
    from types import SimpleNamespace

    from strategies.flower import FlowerFederation

    roster = {"east": 1, "west": 2}
    federation = FlowerFederation(SimpleNamespace(get_node_ids=lambda: [1, 3]), lambda: dict(roster))
    assert federation.sites() == ["east"]
    roster["west"] = 3
    assert federation.sites() == ["east", "west"] and federation.roster["west"] == 3


def test_a_superlink_that_cannot_store_a_question_is_away_and_the_run_is_not_lost(monkeypatch):
    """Its disk is full, or its database locked: the run is started again behind its last exchange, as when it does not answer."""
    from flwr.supercore.inflatable.inflatable_utils import ObjectPushError

    from strategies.flower import FlowerFederation

    class Grid:
        def push_messages(self, messages):
            raise ObjectPushError("object", 1, "session")

    monkeypatch.setattr("strategies.flower.Message", lambda records, node, action, ttl: node)
    with pytest.raises(OSError, match="did not store"):
        FlowerFederation(Grid(), lambda: {"east": 1}).ask(Request("r", "d" * 64, "s", State()), ["east"], 1.0)
