"""The child of :mod:`medsynx.generators.synthcity.student`: trains one plugin on ``rows.parquet`` of a folder. Started with ``-m``, never imported.

Every column becomes the ranks of the codes that occur in it, so that Synthcity's own label encoding has nothing to change.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medsynx.codec import Codes
from medsynx.generators.synthcity.catalogue import NETWORKS, SURVIVAL
from medsynx.generators.synthcity.student import write_codes

CONDITIONS = 8192  #: conditional vectors kept with a network
ABSENT = -1e4  #: logit of a code that the teacher's rows never had


def main(folder: Path) -> None:
    """Reads ``job.json``, writes ``result.json`` and the student's file."""
    job = json.loads((folder / "job.json").read_text())
    frame = pd.read_parquet(folder / "rows.parquet")
    codes = np.stack([frame[str(j)].to_numpy(np.int64) for j in range(len(job["sizes"]))], axis=1)
    latent = 0
    if job["plugin"] in NETWORKS:
        model, latent = network(job, codes)
        (folder / "generator.onnx").write_bytes(model)
    else:
        write_codes(folder / "pool.parquet", pool(job, codes))
    (folder / "result.json").write_text(json.dumps({"latent": latent}))


def ranked(codes: Codes) -> tuple[pd.DataFrame, list[Any]]:
    """Ranks 0..k-1 of the codes that occur, and those codes, by column. Columns are named ``c0``, ``c1``, ..."""
    pairs = [np.unique(codes[:, j], return_inverse=True) for j in range(codes.shape[1])]
    return pd.DataFrame({f"c{j}": rank.astype(np.int64) for j, (_, rank) in enumerate(pairs)}), [u for u, _ in pairs]


def made(job: dict[str, Any], loader: Any) -> Any:
    """The trained plugin."""
    from synthcity.plugins import Plugins

    settings: dict[str, Any] = {"random_state": job["seed"], "workspace": Path("workspace")}
    if job["iterations"] is not None and "n_iter" in _arguments(Plugins().get_type(job["plugin"]), job["plugin"]):
        settings["n_iter"] = job["iterations"]
    plugin = Plugins().get(job["plugin"], **settings)
    plugin.strict = False  # strict drawing drops rows that occur twice, which bends every frequent combination
    plugin.fit(loader)
    return plugin


def _arguments(kind: Any, plugin: str) -> set[str]:
    import inspect

    # survival plugins hand n_iter on to the tabular plugin they wrap
    return set(inspect.signature(kind.__init__).parameters) | ({"n_iter"} if plugin in SURVIVAL else set())


def pool(job: dict[str, Any], codes: Codes) -> Codes:
    """Rows of a trained plugin, in the dictionary's codes."""
    from synthcity.plugins.core.dataloader import GenericDataLoader, SurvivalAnalysisDataLoader

    alive = job["survival"] if job["plugin"] in SURVIVAL else None
    if alive:
        time, event = alive["time"], alive["event"]
        usable = (codes[:, time] < alive["times"]) & np.isin(codes[:, event], alive["yes"] + alive["no"])
        codes = codes[usable]
    frame, found = ranked(codes)
    if alive:
        # A value within the bin: Synthcity would number few distinct times from 0, and then refuse a follow-up of 0.
        frame[f"c{time}"] = codes[:, time] + np.random.default_rng(job["seed"]).uniform(0.05, 0.95, len(codes))
        frame[f"c{event}"] = np.isin(codes[:, event], alive["yes"]).astype(int)
        horizons = np.quantile(frame[f"c{time}"], [0.25, 0.5, 0.75]).tolist()
        loader: Any = SurvivalAnalysisDataLoader(
            frame, target_column=f"c{event}", time_to_event_column=f"c{time}", time_horizons=horizons
        )
    else:
        loader = GenericDataLoader(frame)
    drawn = made(job, loader).generate(job["rows"]).dataframe()
    out = np.empty((len(drawn), codes.shape[1]), np.int64)
    for j, codes_found in enumerate(found):
        value = drawn[f"c{j}"].to_numpy(float)
        if alive and j == time:
            out[:, j] = np.clip(np.floor(value), 0, alive["times"] - 1)
        elif alive and j == event:
            out[:, j] = np.where(value >= 0.5, alive["yes"][0], alive["no"][0])
        else:
            out[:, j] = codes_found[np.clip(np.rint(value), 0, len(codes_found) - 1).astype(int)]
    return out


def network(job: dict[str, Any], codes: Codes) -> tuple[bytes, int]:
    """A trained network as ONNX: standard normal ``z`` to logits in the dictionary's codes; and the width of ``z``.

    The plugin's network starts from noise and from a conditional vector that names one level of one column. The last number of ``z`` picks
    one of :data:`CONDITIONS` such vectors, drawn from the plugin's own sampler.
    """
    import synthcity.plugins.core.models.tabular_gan as tabular_gan
    import synthcity.plugins.core.models.tabular_vae as tabular_vae
    import torch
    from synthcity.plugins.core.dataloader import GenericDataLoader
    from synthcity.plugins.core.models.tabular_encoder import TabularEncoder

    class OneHot(TabularEncoder):
        """Every column one-hot, however many codes it has: the network's outputs then are one block of logits a column."""

        def __init__(self, **settings: Any) -> None:
            super().__init__(**{**settings, "categorical_limit": 100_000})

    tabular_gan.TabularEncoder = tabular_vae.TabularEncoder = OneHot
    frame, found = ranked(codes)
    model = made(job, GenericDataLoader(frame)).model
    body = model.model.generator if hasattr(model.model, "generator") else model.model.decoder.model
    body = body.model[: len(body.model) - 1].eval()  # without the head that turns logits into draws
    conditions = np.asarray(model.dataloader_sampler.sample_conditional(CONDITIONS), np.float32)
    latent = int(body[0].model[0].in_features) - conditions.shape[1]

    # position of each dictionary code among the network's outputs; the extra last output is the logit of an absent code
    width, offset, order = sum(len(u) for u in found), 0, []
    for size, present in zip(job["sizes"], found, strict=True):
        at = {int(code): offset + k for k, code in enumerate(present)}
        order += [at.get(code, width) for code in range(size)]
        offset += len(present)

    class Whole(torch.nn.Module):
        conditions: torch.Tensor
        order: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.body = body
            self.register_buffer("conditions", torch.from_numpy(conditions))
            self.register_buffer("order", torch.tensor(order))

        def forward(self, z: torch.Tensor) -> torch.Tensor:
            uniform = (1 + torch.erf(z[:, latent] / math.sqrt(2))) / 2
            picked = (uniform * len(conditions)).long().clamp(0, len(conditions) - 1)
            logits = self.body(torch.cat([z[:, :latent], self.conditions[picked]], dim=1))
            return torch.cat([logits, torch.full_like(logits[:, :1], ABSENT)], dim=1)[:, self.order]

    torch.onnx.export(
        Whole().eval(),
        (torch.zeros(2, latent + 1),),
        "whole.onnx",
        input_names=["z"],
        output_names=["logits"],
        dynamic_axes={"z": {0: "rows"}, "logits": {0: "rows"}},
        opset_version=17,
        dynamo=False,
    )
    return Path("whole.onnx").read_bytes(), latent + 1


if __name__ == "__main__":
    main(Path(sys.argv[1]))
