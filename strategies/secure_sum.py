"""One secure sum over a federation: the five exchanges of :mod:`medsynx.secure_sum`, carried by whatever carries the steps.

A site that fails or falls silent in one exchange is not asked in the next. Once its masked vector is there it counts, whatever becomes of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from medsynx.generators.base import State
from medsynx.plan import PricedStep
from medsynx.secure_sum.relay import Relay, TooFew
from medsynx.secure_sum.ring import RING, Residues
from medsynx.secure_sum.terms import Message
from medsynx.study import Study
from medsynx.wire import Reply, Request
from strategies.aggregate import fault
from strategies.federation import Answer, Federation
from strategies.journal import Journal


@dataclass
class SecureSum:
    """One step's secure sum at the coordinator.

    Attributes:
        total: sum of the vectors of ``answered``, once there is one.
        answered: sites whose vector is in the total.
        journal: what was said before the coordinator stopped, if it did.
        asked: the sites this sum was begun with: the journal's, whoever is there now.
        missing: why the others' are not.
        silent: sites that fell out after their vector had arrived, and why; they are in the total all the same.
        private: whether every site in the total had its noise on.
    """

    federation: Federation
    study: Study
    priced: PricedStep
    request: Request
    journal: Journal = field(default_factory=lambda: Journal(None, ""))
    asked: list[str] = field(default_factory=list)
    total: Residues | None = None
    answered: list[str] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    silent: dict[str, str] = field(default_factory=dict)
    private: bool = True
    bytes_per_site: int = 0

    def conduct(self, sites: list[str]) -> None:
        """All five exchanges.

        Args:
            sites: to begin with; a sum that was begun before goes on with its own.

        Raises:
            TooFew: fewer sites are left than a total needs; ``missing`` and ``silent`` say why.
            MedsynxError: ``reply-invalid`` when some site's shares were wrong.
        """
        begun = self.journal.read("advert")
        self.asked = sites if begun is None else [answer.site for answer in begun]
        privacy = self.study.privacy
        relay = Relay(self.study.rounds.quorum, privacy.tolerated_dropouts, RING)
        try:
            letters = relay.advertised(self._messages("advert", {site: {} for site in self.asked}))
            letters = relay.shared(self._messages("share", letters))
            vectors = self._vectors(letters)
            letters = relay.masked({site: reply.message for site, reply in vectors.items()})
        finally:
            self.missing |= relay.faulty
        self.answered = relay.survivors
        self.private = all(vectors[s].private for s in self.answered)
        self.bytes_per_site = max(sum(a.nbytes for a in vectors[s].arrays.values()) for s in self.answered)
        masked = RING.add(RING.unpack(vectors.pop(s).arrays["sum"]) for s in self.answered)
        letters = relay.confirmed(self._messages("confirm", letters, self.silent))
        self.total = relay.total(masked, self._messages("unmask", letters, self.silent))

    def _vectors(self, letters: dict[str, Message]) -> dict[str, Reply]:
        """Usable masked vectors."""
        replies = self._ask("mask", letters, self.missing)
        for site, reply in list(replies.items()):
            if code := fault(reply, self._request("mask", letters[site]), self.priced, self.study, masked=True):
                self.missing[site] = code
                del replies[site]
        return replies

    def _messages(
        self, exchange: str, letters: dict[str, Message], failed: dict[str, str] | None = None
    ) -> dict[str, Message]:
        replies = self._ask(exchange, letters, self.missing if failed is None else failed)
        return {site: reply.message for site, reply in replies.items()}

    def _request(self, exchange: str, message: Message) -> Request:
        state = self.request.state if exchange == "mask" else State()
        return replace(self.request, state=state, exchange=exchange, message=message)

    def _ask(self, exchange: str, letters: dict[str, Message], failed: dict[str, str]) -> dict[str, Reply]:
        requests = {site: self._request(exchange, message) for site, message in letters.items()}
        answers = self.journal.read(exchange)
        if answers is None:
            heard = self.federation.ask(requests, sorted(requests), self.study.rounds.deadline_seconds)
            answers = [_plain(answer) for answer in heard]
            self.journal.write(exchange, answers)
        out = {}
        for answer in answers:
            reason = _reason(answer, requests[answer.site])
            if reason is None and answer.reply is not None:
                out[answer.site] = answer.reply
            else:
                failed[answer.site] = reason or "late"
        return out


def _plain(answer: Answer) -> Answer:
    """The answer when it has the form of one, so that it can be kept: one array, a message of texts and texts by name."""
    reply = answer.reply
    if reply is None:
        return answer
    said = [v for value in reply.message.values() for v in (value.values() if isinstance(value, dict) else [value])]
    plain = set(reply.arrays) <= {"sum"} and all(isinstance(value, str) for value in said)
    return answer if plain else Answer(answer.site, Reply(refusal="reply-invalid"))


def _reason(answer: Answer, request: Request) -> str | None:
    if answer.reply is None:
        return answer.reason or "late"
    return answer.reply.refusal or (None if answer.reply.answers == request.digest else "reply-replayed")


__all__ = ["SecureSum", "TooFew"]
