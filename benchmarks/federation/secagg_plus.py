"""Flower's stock SecAgg+ beside this project's secure sum: seconds and bytes of one sum each, by turns, in one process.

    python benchmarks/federation/secagg_plus.py                # every size, a JSON line each with medians and ratios
    python benchmarks/federation/secagg_plus.py 50 10000 0.3 3 # sites, numbers, share that drops out before sending, repeats

Stock is Flower's own ``SecAggPlusWorkflow`` and ``secaggplus_mod`` as installed; only the transport is ours, a :class:`Grid` that hands each message
over as Flower's protobuf. Both have the same neighbours, threshold and drop-outs at the same moment. Seconds are the CPU's in a site's answers and
in the coordinator's code, without transport; bytes are stock's protobuf and our JSON with packed vectors. Stock keeps its own numbers: floats
clipped to +-8, rounded by chance to 2^22 levels, summed modulo 2^32 and sent as eight bytes; ours are exact integers of 40 bits sent as five.
"""

from __future__ import annotations

import json
import logging
import random
import sys
import time
from collections.abc import Iterable
from statistics import median
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.client.mod import secaggplus_mod
from flwr.common import Code, FitIns, FitRes, Parameters, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.compat.common import recorddict_compat as compat
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from flwr.server import LegacyContext, ServerConfig
from flwr.server.client_proxy import ClientProxy
from flwr.server.strategy import FedAvg
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD, Key
from flwr.supercore.task_identity import TaskIdentity
from secure_sum import one

from medsynx.secure_sum.graph import density
from medsynx.secure_sum.terms import survivors_needed

TABLE = [
    *[(n, size, d, 3) for size in (10_000, 1_000_000) for n in (4, 10, 50) for d in (0.0, 0.3)],
    *[(200, size, d, 1) for size in (10_000, 1_000_000) for d in (0.0, 0.3)],
]
WEIGHT = 1000  #: examples of each site, the workflow's largest by default: nothing is lost to weighting


class Grid:
    """Sites in this process. Each message is copied by way of Flower's protobuf, whose bytes are counted."""

    def __init__(self, vectors: dict[int, Parameters], gone: set[int]) -> None:
        self.vectors, self.gone = vectors, gone
        self.contexts = {k: Context(1, k, {}, RecordDict(), {}) for k in vectors}
        self.seconds, self.up, self.down = (dict.fromkeys(vectors, 0.0) for _ in range(3))
        self.elsewhere = 0.0

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        entered = time.process_time()
        answers = [self._one(message) for message in messages]
        self.elsewhere += time.process_time() - entered
        return answers

    def _one(self, message: Message) -> Message:
        site = message.metadata.dst_node_id
        message = Message(copied(message.content, self.down, site), metadata=message.metadata)
        if (
            site in self.gone
            and message.content.config_records["secaggplus_configs"]["stage"] == "collect_masked_vectors"
        ):
            return Message(Error(code=0, reason="dropped out"), reply_to=message)
        began = time.process_time()
        answer = secaggplus_mod(message, self.contexts[site], self._train)
        self.seconds[site] += time.process_time() - began
        return Message(copied(answer.content, self.up, site), metadata=answer.metadata)

    def _train(self, message: Message, context: Context) -> Message:
        result = FitRes(Status(Code.OK, ""), self.vectors[context.node_id], WEIGHT, {})
        return Message(compat.fitres_to_recorddict(result, True), reply_to=message)


def copied(content: RecordDict, count: dict[int, float], site: int) -> RecordDict:
    raw = recorddict_to_proto(content).SerializeToString()
    count[site] += len(raw)
    return recorddict_from_proto(ProtoRecordDict.FromString(raw))


class Proxy(ClientProxy):
    """A name for the strategy; nobody calls it."""

    get_properties = get_parameters = fit = evaluate = reconnect = None  # type: ignore[assignment]


class Everybody(FedAvg):
    """Asks all sites."""

    def configure_fit(self, server_round: int, parameters: Parameters, client_manager: Any) -> Any:
        return [(p, FitIns(parameters, {})) for p in client_manager.all().values()]


def stock(n: int, size: int, share: float) -> dict[str, float]:
    """One sum by Flower's workflow, whose average is compared with numpy's."""
    gone = set(range(1, n + 1)[: int(np.floor(share * n))])
    colluding = n // 20
    degree, threshold = density(n, colluding, n - survivors_needed(n, n - len(gone), colluding))
    rng = np.random.default_rng(0)
    vector = rng.uniform(-4, 4, size)
    grid = Grid({k: ndarrays_to_parameters([vector + k / n]) for k in range(1, n + 1)}, gone)
    context = LegacyContext(Context(1, 0, {}, RecordDict(), {}), ServerConfig(), Everybody())
    for k in grid.vectors:
        proxy = Proxy(str(k))
        proxy.node_id = k
        context.client_manager.register(proxy)
    context.state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({Key.CURRENT_ROUND: 1})
    empty = compat.parameters_to_arrayrecord(
        ndarrays_to_parameters([]), True
    )  # the model goes down another way in both
    context.state.array_records[MAIN_PARAMS_RECORD] = empty
    workflow = SecAggPlusWorkflow(degree + 1, threshold, max_weight=float(WEIGHT))
    began = time.process_time()
    workflow(grid, context)  # type: ignore[arg-type]
    ended = time.process_time()
    (average,) = parameters_to_ndarrays(
        compat.arrayrecord_to_parameters(context.state.array_records[MAIN_PARAMS_RECORD], True)
    )
    stay = [k for k in grid.vectors if k not in gone]
    error = np.abs(average - (vector + np.mean(stay) / n)).max()
    assert error < 1e-4, f"the average is off by {error}"
    return {
        "site_seconds": median(grid.seconds[k] for k in stay),
        "coordinator_seconds": ended - began - grid.elsewhere,
        "site_kilobytes_up": median(grid.up[k] for k in stay) / 1000,
        "site_kilobytes_down": median(grid.down[k] for k in stay) / 1000,
        "largest_error": float(error),
    }


def main() -> None:
    logging.getLogger("flwr").setLevel(logging.ERROR)
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1  # messages ask for them
    random.seed(0)  # only the order of stock's ring
    words = sys.argv[1:]
    rows = [(int(words[0]), int(words[1]), float(words[2]), int(words[3]))] if words else TABLE
    for n, size, share, repeats in rows:
        both = [(one(n, size, share), stock(n, size, share)) for _ in range(repeats)]
        out: dict[str, Any] = {"sites": n, "numbers": size, "dropped": int(np.floor(share * n)), "repeats": repeats}
        for k in ("site_seconds", "coordinator_seconds", "site_kilobytes_up", "site_kilobytes_down"):
            ours, theirs = (median(pair[side][k] for pair in both) for side in (0, 1))
            out[k] = {"ours": round(ours, 4), "stock": round(theirs, 4), "ratio": round(theirs / ours, 1)}
        print(json.dumps(out | {"stock_error": max(pair[1]["largest_error"] for pair in both)}), flush=True)


if __name__ == "__main__":
    main()
