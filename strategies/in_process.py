"""A federation inside one process: each site is a function. For simulation, benchmarks and tests; no sockets, no Ray."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait

from medsynx.wire import Reply, Request
from strategies.federation import Answer, Requests, addressed


class InProcessFederation:
    """See :class:`strategies.federation.Federation`.

    Args:
        handlers: site name -> function that answers a request.
        workers: sites that compute at the same time; 1 keeps a simulation on one core.
    """

    def __init__(self, handlers: dict[str, Callable[[Request], Reply]], workers: int = 1) -> None:
        self.handlers, self.workers = handlers, workers

    def sites(self) -> list[str]:
        """Every site."""
        return sorted(self.handlers)

    def ask(self, request: Requests, sites: list[str], deadline_seconds: float) -> list[Answer]:
        """Ask each site. One that raises answers ``site-failed``; one that is not done by the deadline is late."""
        if self.workers == 1:
            return [self._one(addressed(request, site), site, deadline_seconds) for site in sorted(sites)]
        pool = ThreadPoolExecutor(self.workers)
        futures = {
            site: pool.submit(self._one, addressed(request, site), site, deadline_seconds) for site in sorted(sites)
        }
        wait(futures.values(), timeout=deadline_seconds)
        pool.shutdown(wait=False, cancel_futures=True)
        return [f.result() if f.done() and not f.cancelled() else Answer(s, None, "late") for s, f in futures.items()]

    def _one(self, request: Request, site: str, deadline_seconds: float) -> Answer:
        handler, began = self.handlers.get(site), time.monotonic()
        if handler is None:
            return Answer(site, None, "offline")
        try:
            reply = handler(request)
        except Exception:
            reply = Reply(refusal="site-failed")
        return Answer(site, None, "late") if time.monotonic() - began > deadline_seconds else Answer(site, reply)
