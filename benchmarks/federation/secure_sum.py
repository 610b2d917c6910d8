"""Seconds and bytes of one secure sum: the protocol's own work, every site played one after another on one core, without transport or disk.

    python benchmarks/federation/secure_sum.py                # the table of docs/benchmarks.md, a JSON line a row
    python benchmarks/federation/secure_sum.py 10 1000000 0.1 # sites, numbers, share that drops out before sending

Drop-outs fall out after they shared their secrets and before they send a vector, the costliest moment. The quorum is what they leave, and a twentieth
of the sites may collude. Each total is compared with plain addition. Vectors arrive one by one and are added as they come.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from statistics import median
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from medsynx.secure_sum.relay import Relay
from medsynx.secure_sum.ring import RING, Residues
from medsynx.secure_sum.site import Mask, Session
from medsynx.secure_sum.terms import Message, Terms, survivors_needed

TABLE = [
    *[(n, 10_000, d) for n in (4, 10, 50, 200, 1000) for d in (0.0, 0.1, 0.3)],
    *[(n, 1_000_000, d) for n in (4, 10, 50, 200) for d in (0.0, 0.1, 0.3)],
    *[(n, 10_000_000, d) for n in (4, 10, 50) for d in (0.0, 0.1, 0.3)],
]
COORDINATOR = ""


class Clock:
    """CPU seconds and bytes, by site; the coordinator's seconds under no name."""

    def __init__(self, sites: list[str]) -> None:
        self.seconds, self.up, self.down = (dict.fromkeys([COORDINATOR, *sites], 0.0) for _ in range(3))

    def work(self, call: Any, *told: Any) -> Any:
        began = time.process_time()
        answer = call(*told)
        self.seconds[COORDINATOR] += time.process_time() - began
        return answer

    def tell(self, site: str, call: Any, told: Any = None) -> Any:
        began = time.process_time()
        answer = call() if told is None else call(told)
        self.seconds[site] += time.process_time() - began
        self.down[site] += 0 if told is None else len(json.dumps(told))
        vector, message = answer if isinstance(answer, tuple) else (np.empty(0), answer)
        self.up[site] += vector.nbytes + len(json.dumps(message))
        return answer


def masked(mask: Mask, vector: Residues) -> tuple[NDArray[np.uint8], Message]:
    return RING.pack(mask(vector)), mask.message


def one(n: int, size: int, share: float) -> dict[str, Any]:
    keys = {f"site-{k:04d}": Ed25519PrivateKey.generate() for k in range(n)}
    roster = {s: k.public_key().public_bytes_raw() for s, k in keys.items()}
    colluding = n // 20
    gone = set(list(keys)[: int(np.floor(share * n))])
    quorum = n - len(gone)
    if quorum < survivors_needed(n, quorum, colluding):
        raise SystemExit("so many may not drop out")
    terms = Terms("d" * 64, "run", "step", roster, quorum, colluding)
    sites = {s: Session(terms, s, {}) for s in keys}
    relay, clock, rng = Relay(quorum, colluding, RING), Clock(list(keys)), np.random.default_rng(0)
    base = rng.integers(-RING.half // n + 9, RING.half // n - 9, size)

    began = time.process_time()
    answers = {s: clock.tell(s, lambda x=x, s=s: x.advert(keys[s].sign)) for s, x in sites.items()}
    letters = clock.work(relay.advertised, answers)
    letters = clock.work(relay.shared, {s: clock.tell(s, sites[s].share, m) for s, m in letters.items()})
    total, plain, answers = np.zeros(size, np.uint64), np.zeros(size, np.int64), {}
    for s, m in letters.items():
        if s not in gone:
            vector = RING.encode(base + len(s))
            sent, answers[s] = clock.tell(s, lambda t, s=s, v=vector: masked(sites[s].accept(t, keys[s].sign), v), m)
            clock.work(lambda sent=sent: np.add(total, RING.unpack(sent), out=total))
            plain += base + len(s)
    letters = clock.work(relay.masked, answers)
    answers = {s: clock.tell(s, lambda t, s=s: sites[s].confirm(t, keys[s].sign), m) for s, m in letters.items()}
    letters = clock.work(relay.confirmed, answers)
    out = clock.work(relay.total, total, {s: clock.tell(s, sites[s].unmask, m) for s, m in letters.items()})
    ended = time.process_time()
    assert (RING.decode(out) == plain).all(), "the total is wrong"
    stay = [s for s in keys if s not in gone]
    return {
        "sites": n,
        "numbers": size,
        "dropped": len(gone),
        "neighbours": relay._graph.degree,
        "site_seconds": median(clock.seconds[s] for s in stay),
        "coordinator_seconds": clock.seconds[COORDINATOR],
        "all_seconds": ended - began,
        "site_kilobytes_up": median(clock.up[s] for s in stay) / 1000,
        "of_these_vector": size * RING.width / 1000,
        "site_kilobytes_down": median(clock.down[s] for s in stay) / 1000,
        "peak_megabytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def main() -> None:
    rows = [(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))] if len(sys.argv) == 4 else TABLE
    for row in rows:
        print(json.dumps({k: round(v, 3) for k, v in one(*row).items()}), flush=True)


if __name__ == "__main__":
    main()
