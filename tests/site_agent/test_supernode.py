"""Flower's own loop, state and object store, with the SuperNode's calls to the SuperLink played: every message is answered by its own reply."""

import logging
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import httpx
import pytest
from flwr.app import ConfigRecord, Message, Metadata, RecordDict
from flwr.app.error import Error
from flwr.app.message import make_message
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import RunNotRunningException
from flwr.supernode import start_client_internal as flower
from flwr.supernode.nodestate import NodeStateFactory

from medsynx.flower_processes import NOT_TAKEN
from site_agent import supernode

RUN = 7


@pytest.fixture
def loop(monkeypatch, tmp_path):
    """The two halves of Flower's loop as the agent runs them, a state and an object store."""
    for name in ("_push_messages", "_pull_and_store_message"):
        monkeypatch.setattr(flower, name, getattr(flower, name))  # given back after the test
    for name in ("make_simple_http_retry_invoker", "HeartbeatSender"):
        monkeypatch.setattr(supernode.line, name, getattr(supernode.line, name))
    supernode.make_sound(tmp_path / "contact")
    objects = ObjectStoreFactory()
    return NodeStateFactory(objectstore_factory=objects).state(), objects.store()


def put(state, objects, message, *, whole=True):
    """What Flower does with a message or reply, whose objects may not come; the loop sees no part of it."""
    message.metadata.__dict__["_message_id"] = message.object_id
    objects.preregister(RUN, get_object_tree(message))
    for name, each in get_all_nested_objects(message).items():
        if whole or name == message.object_id:
            objects.put(name, each.deflate())
    state.store_message(message)
    return message


def asked(state, objects, text):
    facts = {
        "run_id": RUN,
        "message_id": "",
        "src_node_id": 1,
        "dst_node_id": 3,
        "reply_to_message_id": "",
        "group_id": "",
    }
    facts |= {"created_at": time.time(), "ttl": 60.0, "message_type": "query.step"}
    message = put(state, objects, make_message(Metadata(**facts), RecordDict({"c": ConfigRecord({"t": text})})))
    state.get_messages_legacy(is_reply=False)  # the executor has it
    return message


def replied(state, objects, message, text, **more):
    return put(state, objects, Message(RecordDict({"r": ConfigRecord({"t": text})}), reply_to=message), **more)


def sent(state, objects, seconds=60.0):
    """The texts that one turn of the loop sends; None when it goes on waiting."""
    out = []

    def send(message, tree, duration):
        out.append("error" if message.has_error() else message.content["r"]["t"])
        return {t.object_id for t in [tree, *tree.children]}, "session"

    def push():
        flower._push_messages(state=state, object_store=objects, send=send, push_object=lambda *all: None)

    turn = threading.Thread(target=push, daemon=True)
    turn.start()
    turn.join(seconds)
    return None if turn.is_alive() else out


def test_a_second_reply_to_a_message_never_takes_the_place_of_the_next_ones(loop):
    first = asked(*loop, "first")
    replied(*loop, first, "one")
    assert sent(*loop) == ["one"]
    put(*loop, Message(Error(code=5, reason="spoken for"), reply_to=first))
    second = asked(*loop, "second")
    replied(*loop, second, "two")
    assert sent(*loop) == ["two"], "and not the second reply to the first, with this one left for later"
    third = asked(*loop, "third")
    put(*loop, Message(Error(code=5, reason="spoken for"), reply_to=second))
    assert sent(*loop, 1.2) is None, "a reply that nobody waits for is no answer to the third"
    replied(*loop, third, "three")
    until = time.monotonic() + 60
    while loop[0].msg_store and time.monotonic() < until:
        time.sleep(0.02)
    assert loop[0].msg_store == {}, "and that one was sent"
    fourth = asked(*loop, "fourth")
    replied(*loop, fourth, "four")
    put(*loop, Message(Error(code=5, reason="spoken for"), reply_to=fourth))
    assert sent(*loop) == ["four"] and loop[0].msg_store == {}, "nor do two that wait together both leave"


def test_a_reply_whose_content_does_not_come_is_given_up(loop, monkeypatch):
    monkeypatch.setattr(supernode, "CONTENT_SECONDS", 0.2)
    message = asked(*loop, "first")
    replied(*loop, message, "half", whole=False)
    assert sent(*loop) == ["half"]
    second = asked(*loop, "second")
    replied(*loop, second, "two")
    assert sent(*loop) == ["two"]


def test_a_message_whose_run_ended_on_the_way_never_gets_in_the_next_ones_way(loop):
    """Flower leaves it in its state; when its task's token has expired it is spoken for, and that reply would be sent in the next one's turn."""
    state, objects = loop
    first = asked(state, objects, "first")
    calls = dict.fromkeys(
        ["node_config", "get_run", "get_fab", "pull_object", "confirm_message_received", "trusted_entities"]
    )

    def receive():
        raise RunNotRunningException  # the last of the run

    with pytest.raises(KeyboardInterrupt):
        flower._pull_and_store_message(state=state, object_store=objects, receive=stopping(receive), **calls)
    second = asked(state, objects, "second")
    put(state, objects, Message(Error(code=5, reason="its token has expired"), reply_to=first))
    assert sent(state, objects, 1.2) is None, "that is no answer to the second"
    replied(state, objects, second, "two")
    time.sleep(1)
    assert state.msg_store == {}, "and this one was sent"


def stopping(receive):
    """Flower's loop goes on for ever: it is left at the second time."""
    times = []

    def once():
        times.append(1)
        if len(times) > 1:
            raise KeyboardInterrupt
        return receive()

    return once


def test_it_asks_every_second_and_notes_that_it_was_answered(loop, monkeypatch, tmp_path):
    naps, waiting = [], iter([None, None])
    monkeypatch.setattr(supernode, "time", SimpleNamespace(sleep=naps.append))  # other threads sleep as they do
    calls = dict.fromkeys(
        ["node_config", "get_run", "get_fab", "pull_object", "confirm_message_received", "trusted_entities"]
    )

    def receive():
        if (found := next(waiting, 1)) is not None:
            raise KeyboardInterrupt
        return found

    assert not (tmp_path / "contact").exists()
    with pytest.raises(KeyboardInterrupt):
        flower._pull_and_store_message(state=loop[0], object_store=loop[1], receive=receive, **calls)
    assert naps == [1.0, 1.0] and (tmp_path / "contact").exists()


TIMED_OUT = httpx.ConnectTimeout("_ssl.c:989: The handshake operation timed out")
WRONG_CA = httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed")


BROKEN_OFF = httpx.ConnectError(
    "[SSL: UNEXPECTED_EOF_WHILE_READING] EOF occurred in violation of protocol (_ssl.c:1006)"
)


def answered(status):
    request = httpx.Request("POST", "https://gate")
    return httpx.HTTPStatusError(str(status), request=request, response=httpx.Response(status, request=request))


def call(*outcomes, waits=()):
    left, invoker, naps = iter(outcomes), supernode.line.make_simple_http_retry_invoker(), iter(waits)
    invoker.wait_function = lambda seconds: None

    def request():
        time.sleep(next(naps, 0))
        if isinstance(outcome := next(left), Exception):
            raise outcome
        return outcome

    return invoker.invoke(request)


def test_a_handshake_on_a_dead_line_is_tried_again_and_a_wrong_certificate_is_not(loop):
    assert call(TIMED_OUT, httpx.ReadTimeout("timed out"), TIMED_OUT, "answered") == "answered"
    assert call(BROKEN_OFF, httpx.ProxyError("503 Service Unavailable"), httpx.ReadError(""), "answered") == "answered"
    with pytest.raises(httpx.ConnectError, match="verify failed"):
        call(TIMED_OUT, WRONG_CA, "never asked")


def test_a_coordinator_that_is_unwell_is_asked_again_for_some_time(loop, monkeypatch):
    """Its database is locked, its disk full: a reply that was under way must not be lost by it."""
    assert call(answered(500), answered(429), answered(503), answered(500), "answered") == "answered"
    with pytest.raises(httpx.HTTPStatusError):
        call(answered(404), "never asked")
    monkeypatch.setattr(supernode, "UNWELL_SECONDS", -1)
    assert call(answered(503), answered(502), "answered") == "answered", (
        "there is nobody behind the gate: no answer at all"
    )
    with pytest.raises(httpx.HTTPStatusError, match="500"):
        call(answered(503), answered(500), "never asked")
    monkeypatch.setattr(supernode, "UNWELL_SECONDS", 0.2)
    wait = [0.5, 0, 0, 0.5]  # the line was away for longer than that: it counts from the first 500
    outcomes = [httpx.ReadError(""), answered(500), answered(500), answered(500)]
    assert call(*outcomes[:3], "answered", waits=wait) == "answered"
    with pytest.raises(httpx.HTTPStatusError, match="500"):
        call(*outcomes, "never asked", waits=wait)


def test_it_says_that_its_signature_is_not_taken_before_it_ends(loop, monkeypatch, caplog):
    """Else it ends gracefully, and nobody learns that the clock of this machine is wrong."""
    ended = []
    monkeypatch.setattr("flwr.supercore.retry.http_retry.os.kill", lambda *how: ended.append(how))
    monkeypatch.setattr("flwr.supercore.retry.http_retry.time.sleep", lambda seconds: None)
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    with caplog.at_level(logging.ERROR):
        call(answered(401), "answered")
    assert len(ended) == 1 and NOT_TAKEN in caplog.text


@pytest.mark.parametrize(("beat", "lives"), [(500, True), (429, True), (False, True), (404, False)])
def test_a_heartbeat_outlives_an_unwell_coordinator_and_notes_that_it_was_answered(
    loop, monkeypatch, tmp_path, beat, lives
):
    killed, beats = [], iter([answered(beat) if beat else False, True])
    monkeypatch.setattr(supernode.os, "kill", lambda *how: killed.append(how))

    def one():
        if isinstance(outcome := next(beats), Exception):
            raise outcome
        return outcome

    heart = supernode.line.HeartbeatSender(one)
    heart.start()
    end = time.monotonic() + 10
    while not (killed or (tmp_path / "contact").exists()) and time.monotonic() < end:
        time.sleep(0.02)
    assert (tmp_path / "contact").exists() == lives and bool(killed) != lives
    if lives:
        heart.stop()


def test_an_object_that_could_not_be_stored_is_pushed_again(loop, monkeypatch):
    monkeypatch.setattr(supernode, "PAUSES", (0.01, 0.01))
    state, objects = loop
    for refusals, stored in ((2, 1), (9, 0)):
        message, pushed, taken = asked(state, objects, f"refused {refusals}"), [], []
        replied(state, objects, message, "whole")

        def push_object(run, session, name, content, *, pushed=pushed, taken=taken, refusals=refusals):
            pushed.append(name)
            if len(pushed) <= refusals:
                raise ObjectPushError(name, run, session)
            taken.append(name)

        def send(reply, tree, duration):
            return {tree.object_id}, "session"

        flower._push_messages(state=state, object_store=objects, send=send, push_object=push_object)
        assert len(pushed) == 3 and len(taken) == stored and state.msg_store == {}


ENDS = """
import importlib, threading, time
from site_agent import supernode
def loop():  # ends, and Flower's server on loopback does not
    threading.Thread(target=time.sleep, args=(100,)).start()
    {}
importlib.import_module("flwr.supernode.cli.flower_supernode").flower_supernode = loop
supernode.main()
"""
NO_HEARTBEAT = """
import time
from pathlib import Path
from site_agent import supernode
supernode.make_sound(Path("contact"))
supernode.line.HeartbeatSender(lambda: 1 / 0).start()
time.sleep(100)
"""


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        (ENDS.format("return"), 1, "the coordinator was lost"),
        (ENDS.format("raise OSError"), 1, "the SuperNode failed: OSError"),
        (NO_HEARTBEAT, -signal.SIGTERM, "no heartbeat: ZeroDivisionError"),
    ],
)
def test_a_supernode_that_asks_no_more_ends_so_that_it_can_be_started_again(code, status, said, tmp_path):
    env = {"HOME": str(tmp_path), "FLWR_HOME": str(tmp_path), "FLWR_TELEMETRY_ENABLED": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == status and said in done.stderr
