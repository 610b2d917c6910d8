"""Flower's SuperNode, with the loop that takes messages and sends replies made sound, and asking every second in place of three.

A line that goes dead must cost a hospital no more than the time it is dead. flwr's SuperNode gives up when a TLS handshake is broken off or meets its
time limit, when a proxy refuses once, or at one answer of 500; its process then lives on and asks nothing for ever, and a reply that it was sending
is lost. A heartbeat that fails so ends the heartbeats alone. Here all of these are tried again like any other request, also where the SuperLink says
that it could not store an object of a reply, and a SuperNode that has given up ends, for whoever runs it to start another.

flwr's loop takes one message and then sends whichever reply it finds. A message may get two: its run ended while the reply was being stored, or a
process was spoken for that had just answered. Or one is left behind, for its run ended while its content was on its way, and gets a reply when its
task has expired. From then on every reply would wait for the next message, and the site be late for ever. Here what is left is forgotten before the
next message, and a reply to a message that is done with is dropped. And a reply whose content never comes, because its sender was killed, is given up
instead of waited for.

flwr internals used here are pinned by ``flwr==1.41.*`` and a contract test.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import wraps
from logging import ERROR
from pathlib import Path
from typing import Any

import httpx
from flwr.supercore import log
from flwr.supercore.exit import ExitCode, flwr_exit
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError
from flwr.supercore.retry import RetryInvoker, make_simple_http_retry_invoker
from flwr.supercore.retry.retry_invoker import RetryState
from flwr.supernode import fleet_http_connection as line
from flwr.supernode import start_client_internal as flower

from medsynx.flower_processes import CONTACT, NOT_TAKEN

POLL_SECONDS = 1.0
CONTENT_SECONDS = 60.0  #: to wait for one object of a reply
#: to try a request again that is answered 429 or 500; one that is answered 502 to 504 is tried for ever
UNWELL_SECONDS = 300.0
PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)  #: between tries of an object that was not stored


class Replies:
    """A SuperNode's state that shows only replies to messages that wait for one.

    Args:
        state: Flower's.
        objects: its object store.
    """

    def __init__(self, state: Any, objects: Any) -> None:
        self._state, self._objects = state, objects

    def __getattr__(self, name: str) -> Any:
        return getattr(self._state, name)

    def get_messages_legacy(self, **which: Any) -> Sequence[Any]:
        """As Flower's, which deletes a message with its reply."""
        found: dict[str, Any] = {}
        for message in self._state.get_messages_legacy(**which):
            asked = message.metadata.reply_to_message_id
            if asked in self._state.msg_store and asked not in found:
                found[asked] = message
            else:
                self._state.delete_messages(message_ids=[message.metadata.message_id])
                self._objects.delete(message.metadata.message_id)
        return list(found.values())


class Objects:
    """An object store that gives an object up that does not come."""

    def __init__(self, objects: Any) -> None:
        self._objects = objects
        self._since: dict[str, float] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._objects, name)

    def get(self, object_id: str) -> bytes | None:
        """As Flower's: empty while the content is awaited. Raises TimeoutError in the end, which fails that one reply."""
        content: bytes | None = self._objects.get(object_id)
        if content == b"" and time.monotonic() - self._since.setdefault(object_id, time.monotonic()) > CONTENT_SECONDS:
            raise TimeoutError("the content of a reply did not come")
        return content


def insistent(push: Callable[..., None]) -> Callable[..., None]:
    """Flower's way to push one object of a reply, tried again when the SuperLink has not taken it. Raises ObjectPushError in the end."""

    def push_object(*object_of: Any) -> None:
        for pause in PAUSES:
            with suppress(ObjectPushError):
                return push(*object_of)
            time.sleep(pause)
        return push(*object_of)

    return push_object


class Heart(HeartbeatSender):
    """Flower's, which goes on while the coordinator is unwell, and ends the process when it can beat no more: the site would count as offline and
    not know.

    Args:
        beat: one heartbeat; False when it failed.
    """

    contact: Path  #: touched when the coordinator has answered; also while a long step is computed and nothing is asked

    def __init__(self, beat: Callable[[], bool]) -> None:
        def beaten() -> bool:
            try:
                heard = beat()
            except httpx.HTTPStatusError as refused:
                if refused.response.status_code == httpx.codes.UNAUTHORIZED:
                    log(ERROR, NOT_TAKEN)  # Flower has begun to end the process
                elif not unwell(refused):
                    raise
                return False
            if heard:
                note(self.contact)
            return heard

        super().__init__(beaten)

    def _run(self) -> None:
        try:
            super()._run()
        except Exception as error:
            log(ERROR, "no heartbeat: %s", type(error).__name__)
            os.kill(os.getpid(), signal.SIGTERM)


def note(contact: Path) -> None:
    """The coordinator has answered."""
    with suppress(OSError):
        contact.touch()


def unwell(error: Exception) -> bool:
    """Whether an answer speaks of the coordinator's state (its database is locked, its disk full) and not of the request."""
    return isinstance(error, httpx.HTTPStatusError) and (
        error.response.status_code == 429 or error.response.is_server_error
    )


def patient() -> RetryInvoker:
    """Flower's way to try requests again: whatever breaks the line off but for a certificate that is not the coordinator's, and for some
    time a coordinator that is unwell: an answer of 500 may be about the request after all."""
    invoker = make_simple_http_retry_invoker()
    hopeless, backing_off = invoker.should_giveup, invoker.on_backoff
    mine = threading.local()  # since: when the coordinator was first found unwell by this thread's request
    assert hopeless is not None and backing_off is not None

    def give_up(error: Exception) -> bool:
        if isinstance(error, httpx.TransportError):
            return "certificate verify failed" in str(error).lower()
        if isinstance(error, httpx.HTTPStatusError) and error.response.status_code == httpx.codes.UNAUTHORIZED:
            log(ERROR, NOT_TAKEN)  # Flower ends the process next, and calls that graceful
        return not unwell(error) and hopeless(error)

    def back_off(state: RetryState) -> None:
        error = state.exception
        if state.tries == 1:
            mine.since = None
        if error and unwell(error) and hopeless(error):
            mine.since = mine.since or time.monotonic()
            if time.monotonic() - mine.since > UNWELL_SECONDS:
                raise error
        backing_off(state)

    invoker.recoverable_exceptions = (httpx.TransportError, httpx.HTTPStatusError)
    invoker.should_giveup, invoker.on_backoff = give_up, back_off
    return invoker


def make_sound(contact: Path) -> None:
    """Put all of it in Flower's loop. Once a process.

    Args:
        contact: touched whenever the coordinator has answered.
    """
    connection: Any = line
    connection.make_simple_http_retry_invoker, connection.HeartbeatSender, Heart.contact = patient, Heart, contact
    loop: Any = flower
    push, pull = loop._push_messages, loop._pull_and_store_message

    @wraps(push)
    def send(state: Any, object_store: Any, push_object: Callable[..., None], **more: Any) -> None:
        push(Replies(state, object_store), Objects(object_store), push_object=insistent(push_object), **more)

    @wraps(pull)
    def take(*, state: Any, object_store: Any, receive: Callable[[], Any], **more: Any) -> int:
        def heard() -> Any:
            for left in list(state.msg_store):
                state.delete_messages(message_ids=[left])
                object_store.delete(left)
            answer = receive()
            note(contact)
            return answer

        while (run := pull(state=state, object_store=object_store, receive=heard, **more)) is None:
            time.sleep(POLL_SECONDS)
        return int(run)

    loop._push_messages, loop._pull_and_store_message = send, take


def main() -> None:
    """``python -m site_agent.supernode``: the options are those of ``flower-supernode``."""
    from flwr.supernode.cli.flower_supernode import flower_supernode

    make_sound(Path(os.environ["FLWR_HOME"]) / CONTACT)
    try:
        flower_supernode()
    except Exception as error:
        log(ERROR, "the SuperNode failed: %s", type(error).__name__)
    # It asks no more, and its server on loopback would keep the process.
    flwr_exit(ExitCode.SUPERNODE_CONNECTION_ERROR, "the coordinator was lost")


if __name__ == "__main__":
    main()
