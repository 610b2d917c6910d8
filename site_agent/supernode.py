"""Flower's SuperNode, with the loop that takes messages and sends replies made sound, and asking every second in place of three.

A line that goes dead must cost a hospital no more than the time it is dead. flwr's SuperNode gives up when a TLS handshake meets its time limit, or
at one answer of 500; its process then lives on and asks nothing for ever. A heartbeat that fails so ends the heartbeats alone. Here a handshake is
tried again like any other request, and a SuperNode that has given up ends, for whoever runs it to start another.

flwr's loop takes one message and then sends whichever reply it finds. A message may get two: its run ended while the reply was being stored, or a
process was spoken for that had just answered. From then on every reply would wait for the next message, and the site be late for ever. Here a reply
to a message that is done with is dropped. And a reply whose content never comes, because its sender was killed, is given up instead of waited for.

flwr internals used here are pinned by ``flwr==1.41.*`` and a contract test.
"""

from __future__ import annotations

import os
import signal
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
from flwr.supercore.retry import RetryInvoker, make_simple_http_retry_invoker
from flwr.supernode import fleet_http_connection as line
from flwr.supernode import start_client_internal as flower

from medsynx.flower_processes import CONTACT

POLL_SECONDS = 1.0
CONTENT_SECONDS = 60.0  #: to wait for one object of a reply


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


class Heart(HeartbeatSender):
    """Flower's, which ends the process when it can beat no more: the site would count as offline and not know."""

    def _run(self) -> None:
        try:
            super()._run()
        except Exception as error:
            log(ERROR, "no heartbeat: %s", type(error).__name__)
            os.kill(os.getpid(), signal.SIGTERM)


def patient() -> RetryInvoker:
    """Flower's way to try requests again, for which a limit of time in a TLS handshake is a limit of time like any other."""
    invoker = make_simple_http_retry_invoker()
    hopeless = invoker.should_giveup
    assert hopeless is not None
    invoker.should_giveup = lambda error: not isinstance(error, httpx.TimeoutException) and hopeless(error)
    return invoker


def make_sound(contact: Path) -> None:
    """Put all of it in Flower's loop. Once a process.

    Args:
        contact: touched whenever the coordinator has answered.
    """
    connection: Any = line
    connection.make_simple_http_retry_invoker, connection.HeartbeatSender = patient, Heart
    loop: Any = flower
    push, pull = loop._push_messages, loop._pull_and_store_message

    @wraps(push)
    def send(state: Any, object_store: Any, **more: Any) -> None:
        push(Replies(state, object_store), Objects(object_store), **more)

    @wraps(pull)
    def take(*, receive: Callable[[], Any], **more: Any) -> int:
        def heard() -> Any:
            answer = receive()
            with suppress(OSError):
                contact.touch()
            return answer

        while (run := pull(receive=heard, **more)) is None:
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
