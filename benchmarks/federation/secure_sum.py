"""Seconds and bytes of one secure sum: the protocol's own work, every site played one after another on one core, without transport or disk.

    python benchmarks/federation/secure_sum.py                # the table of docs/benchmarks.md, a JSON line a row
    python benchmarks/federation/secure_sum.py 10 1000000 0.1 # sites, numbers, share that drops out before sending

Drop-outs fall out after they shared their secrets and before they send a vector, the costliest moment. The quorum is what they leave, and a twentieth
of the sites may collude. Each total is compared with plain addition.
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

from medsynx.secure_sum.relay import Relay
from medsynx.secure_sum.ring import RING
from medsynx.secure_sum.site import Session
from medsynx.secure_sum.terms import Terms, survivors_needed

TABLE = [
    *[(n, 10_000, d) for n in (4, 10, 50, 200) for d in (0.0, 0.1, 0.3)],
    *[(n, 1_000_000, d) for n in (4, 10, 50) for d in (0.0, 0.1, 0.3)],
    (200, 1_000_000, 0.1),
    (4, 10_000_000, 0.0),
    (4, 10_000_000, 0.3),
]


class Clock:
    """CPU seconds and bytes, by site."""

    def __init__(self, sites: list[str]) -> None:
        self.seconds, self.up, self.down = (dict.fromkeys(sites, 0.0) for _ in range(3))

    def tell(self, site: str, call: Any, told: Any = None, packed: int = 0) -> Any:
        began = time.process_time()
        answer = call() if told is None else call(told)
        self.seconds[site] += time.process_time() - began
        self.down[site] += 0 if told is None else len(json.dumps(told))
        self.up[site] += packed or len(json.dumps(answer))
        return answer


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
    base = rng.integers(-(2**30), 2**30, size)

    began = time.process_time()
    letters = relay.advertised({s: clock.tell(s, lambda x=x, s=s: x.advert(keys[s].sign)) for s, x in sites.items()})
    letters = relay.shared({s: clock.tell(s, sites[s].share, m) for s, m in letters.items()})
    total, plain = np.zeros(size, np.uint64), np.zeros(size, np.int64)
    for s, m in letters.items():
        if s not in gone:
            vector = RING.encode(base + len(s))
            sent = clock.tell(s, lambda t, s=s, v=vector: RING.pack(sites[s].accept(t)(v)), m, size * RING.width)
            total += RING.unpack(sent)
            plain += base + len(s)
    letters = relay.masked(set(keys) - gone)
    letters = relay.confirmed(
        {s: clock.tell(s, lambda t, s=s: sites[s].confirm(t, keys[s].sign), m) for s, m in letters.items()}
    )
    shares = {s: clock.tell(s, sites[s].unmask, m) for s, m in letters.items()}
    unmasking = time.process_time()
    out = relay.total(total, shares)
    ended = time.process_time()
    assert (RING.decode(out) == plain).all(), "the total is wrong"
    stay = [s for s in keys if s not in gone]
    return {
        "sites": n,
        "numbers": size,
        "dropped": len(gone),
        "neighbours": relay._graph.degree,
        "site_seconds": round(median(clock.seconds[s] for s in stay), 3),
        "unmask_seconds": round(ended - unmasking, 3),
        "all_seconds": round(ended - began, 2),
        "site_kilobytes_up": round(median(clock.up[s] for s in stay) / 1000, 1),
        "of_these_vector": round(size * RING.width / 1000, 1),
        "site_kilobytes_down": round(median(clock.down[s] for s in stay) / 1000, 1),
        "peak_megabytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def main() -> None:
    rows = [(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))] if len(sys.argv) == 4 else TABLE
    for row in rows:
        print(json.dumps(one(*row)), flush=True)


if __name__ == "__main__":
    main()
