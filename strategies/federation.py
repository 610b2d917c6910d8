"""The transport joint: whoever carries requests to sites and brings answers back. One contract suite runs on every implementation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from medsynx.wire import Reply, Request


@dataclass(frozen=True)
class Answer:
    """What became of one site in one exchange. ``reply`` is None when nothing came in time; ``reason`` is ``"offline"`` or ``"late"`` then."""

    site: str
    reply: Reply | None
    reason: str | None = None


Requests = Request | Mapping[str, Request]  #: one for all, or by site


def addressed(request: Requests, site: str) -> Request:
    """The request that goes to a site."""
    return request if isinstance(request, Request) else request[site]


class Federation(Protocol):
    """Approved sites and a way to ask them.

    Constraints:
        ``sites`` MUST return only approved sites that were heard from, in sorted order.
        ``ask`` MUST return one answer for each of ``sites``, sorted by site, within ``deadline_seconds`` plus a few seconds of transport,
        whatever the sites do. It MUST NOT raise because of a site.
    """

    def sites(self) -> list[str]:
        """Names of the approved sites that can be asked now."""

    def ask(self, request: Requests, sites: list[str], deadline_seconds: float) -> list[Answer]:
        """Send one request to each of ``sites``, the same to all or one a site, and collect their answers."""
