"""A federation over Flower's Message API: own deadlines and polling, so that no site can hold up a round."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from queue import Empty, Queue
from typing import TYPE_CHECKING

import httpx
from flwr.app import Message
from flwr.common.constant import ErrorCode
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError

from medsynx.flower_records import ACTION, reply_from_records, request_to_records
from medsynx.wire import Reply, Request
from strategies.federation import Answer, Requests

if TYPE_CHECKING:
    from flwr.serverapp import Grid

POLL_SECONDS = 0.5
#: a site and its reply (None when that cannot be read), or what the SuperLink's failure was
Inbox = Queue[tuple[str, Message | Exception | None]]


class FlowerFederation:
    """See :class:`strategies.federation.Federation`.

    Args:
        grid: Flower's grid of this run.
        read: tells the approved site name -> node id; nobody else is asked and nobody else's answer counts.
    """

    def __init__(self, grid: Grid, read: Callable[[], dict[str, int]]) -> None:
        self.grid, self.read, self.roster = grid, read, read()

    def sites(self) -> list[str]:
        """Sites of the roster, as it is now, that the SuperLink counts as online: a site with a new key is another node."""
        self.roster = self.read()
        online = set(self.grid.get_node_ids())
        return sorted(site for site, node in self.roster.items() if node in online)

    def ask(self, request: Requests, sites: list[str], deadline_seconds: float) -> list[Answer]:
        """Push one message a site, collect replies until the deadline. A site Flower calls unavailable is offline, a silent one late.

        A site that goes away meanwhile and is back before the deadline is asked the same again. What it answered already it answers alike, without
        another charge; a step it had paid for and not answered it refuses. Each site's reply is pulled by a thread of its own: Flower waits for
        minutes for the objects of a reply whose sender died half-way, and the other sites' replies must not wait with it.
        """
        answers: dict[str, Answer] = {}
        away: set[str] = set()
        asked = [s for s in sorted(sites) if s in self.roster]
        answers.update({s: Answer(s, None, "offline") for s in sites if s not in self.roster})
        if isinstance(request, Request):
            records = dict.fromkeys(asked, request_to_records(request))
        else:
            records = {s: request_to_records(request[s]) for s in asked}
        until, inbox = time.monotonic() + deadline_seconds, Inbox()

        def message(site: str) -> Message:
            return Message(records[site], self.roster[site], ACTION, ttl=until - time.monotonic() + 60)

        messages = [message(s) for s in asked]
        # The grid answers with one id a message, in order; an empty one was not taken.
        taken = {s: m for s, m in zip(asked, self._push(messages), strict=True) if m}
        for site, number in taken.items():
            threading.Thread(target=self._pull, args=(site, message, number, until, inbox, away), daemon=True).start()
        waiting = set(taken)
        while waiting:
            try:  # also past the deadline: what came before it and was not looked at yet
                site, reply = inbox.get(timeout=max(0.0, until - time.monotonic()))
            except Empty:
                break
            if isinstance(reply, Exception):
                raise reply
            waiting.discard(site)
            answers[site] = _answer(site, reply, self.roster[site])
        return [answers.get(s, Answer(s, None, "offline" if s in away else "late")) for s in sorted(sites)]

    def _push(self, messages: list[Message]) -> list[str]:
        """An id a message. A SuperLink that could not store one (its disk is full) is away, like one that does not answer: the run starts again."""
        try:
            return list(self.grid.push_messages(messages))
        except ObjectPushError:
            raise OSError("the SuperLink did not store a message") from None

    def _pull(
        self, site: str, message: Callable[[str], Message], number: str, until: float, inbox: Inbox, away: set[str]
    ) -> None:
        """The site's reply into the inbox; while it is unavailable it is ``away``."""
        try:
            while time.monotonic() < until:
                if site in away and self.roster[site] in set(self.grid.get_node_ids()):
                    (number,) = self._push([message(site)])
                    if number:
                        away.discard(site)
                for reply in [] if site in away else self.grid.pull_messages([number]):
                    if not _unavailable(reply):
                        inbox.put((site, reply))
                        return
                    away.add(site)
                time.sleep(POLL_SECONDS)
        except (httpx.HTTPError, OSError) as error:  # the SuperLink's, not the site's: told to whoever asked
            inbox.put((site, error))
        except Exception:  # of the objects that the site sent
            inbox.put((site, None))


def _unavailable(reply: Message) -> bool:
    """Whether it is no reply but the SuperLink's word that the site is not online."""
    return reply.has_error() and reply.error.code == ErrorCode.NODE_UNAVAILABLE


def _answer(site: str, reply: Message | None, node: int) -> Answer:
    """A site's answer. Whatever its message breaks is ``reply-invalid``."""
    try:
        return _read(site, reply, node)
    except Exception:
        return Answer(site, Reply(refusal="reply-invalid"))


def _read(site: str, reply: Message | None, node: int) -> Answer:
    if reply is None:
        return Answer(site, Reply(refusal="reply-invalid"))
    if reply.has_error():
        lost = reply.error.code in (ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE)
        return Answer(site, None, "offline") if lost else Answer(site, Reply(refusal="site-failed"))
    if reply.metadata.src_node_id != node:
        return Answer(site, Reply(refusal="reply-invalid"))
    return Answer(site, reply_from_records(reply.content))
