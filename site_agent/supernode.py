"""Flower's SuperNode, with the loop that takes messages and sends replies made sound, and asking every second in place of three.

flwr's loop takes one message and then sends whichever reply it finds. A message may get two: its run ended while the reply was being stored, or a
process was spoken for that had just answered. From then on every reply would wait for the next message, and the site be late for ever. Here a reply
to a message that is done with is dropped. And a reply whose content never comes, because its sender was killed, is given up instead of waited for.

flwr internals used here are pinned by ``flwr==1.41.*`` and a contract test.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import wraps
from typing import Any

from flwr.supernode import start_client_internal as flower

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


def make_sound() -> None:
    """Put both in Flower's loop. Once a process."""
    loop: Any = flower
    push, pull = loop._push_messages, loop._pull_and_store_message

    @wraps(push)
    def send(state: Any, object_store: Any, **more: Any) -> None:
        push(Replies(state, object_store), Objects(object_store), **more)

    @wraps(pull)
    def take(**more: Any) -> int:
        while (run := pull(**more)) is None:
            time.sleep(POLL_SECONDS)
        return int(run)

    loop._push_messages, loop._pull_and_store_message = send, take


def main() -> None:
    """``python -m site_agent.supernode``: the options are those of ``flower-supernode``."""
    from flwr.supernode.cli.flower_supernode import flower_supernode

    make_sound()
    flower_supernode()


if __name__ == "__main__":
    main()
