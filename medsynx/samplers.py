"""Drawing rows from a bundle with numpy or ONNX Runtime alone: no torch, no flwr, no training code.

Kinds of ``sampler.json``: ``clique-tree`` (conditional tables of a junction tree, numpy; exact under conditions on any columns),
``onnx-softmax`` (a generator network that gives one block of logits a column; it takes no conditions), ``onnx-diffusion`` (a network that
restores noised rows, applied step by step; no conditions) and ``parquet-pool`` (synthetic rows to draw from; conditions are a filter).
"""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from medsynx import codec
from medsynx.bundle import Bundle
from medsynx.codec import Codes
from medsynx.errors import MedsynxError
from medsynx.generators.graphical.sample import CliqueTable, CliqueTreeSampler
from medsynx.study import Study

if TYPE_CHECKING:
    import pandas as pd

MAX_ROWS, CHUNK = 10_000_000, 100_000


class Sampler(Protocol):
    """Draws coded records; the same generator state gives the same rows."""

    def sample(self, rows: int, rng: np.random.Generator) -> Codes:
        """Codes of shape (rows, data columns)."""


def _session(model: bytes) -> Any:
    import onnxruntime as ort

    ort.disable_telemetry_events()
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    try:
        return ort.InferenceSession(model, options, providers=ort.get_available_providers())
    except Exception:  # ONNX Runtime's own errors have no base class but this
        raise ValueError("not a model that ONNX Runtime can run") from None


class OnnxSoftmaxSampler:
    """A generator network: standard normal ``z`` (rows, latent) in, logits (rows, sum of sizes) out; each column is drawn from its softmax."""

    def __init__(self, model: bytes, latent: int, sizes: tuple[int, ...]) -> None:
        self.session = _session(model)
        self.input, self.latent, self.sizes = self.session.get_inputs()[0].name, latent, sizes

    def sample(self, rows: int, rng: np.random.Generator) -> Codes:
        """See :class:`Sampler`."""
        z = rng.standard_normal((rows, self.latent), dtype=np.float32)
        (logits,) = self.session.run(None, {self.input: z})
        blocks = np.split(np.asarray(logits), np.cumsum(self.sizes)[:-1], axis=1)
        # Gumbel-max: the index of the largest perturbed logit is a draw from the softmax.
        return np.stack([(b + rng.gumbel(size=b.shape)).argmax(axis=1) for b in blocks], axis=1).astype(np.int64)


class OnnxDiffusionSampler:
    """Multinomial diffusion (Hoogeboom et al. 2021): rows of pure chance are restored over ``timesteps`` steps of a cosine schedule.

    The network takes one-hot rows ``x`` (rows, sum of sizes) and their timesteps ``t`` (rows,) and gives logits of the row without noise.
    """

    def __init__(self, model: bytes, timesteps: int, sizes: tuple[int, ...]) -> None:
        self.session, self.sizes = _session(model), sizes
        at = np.arange(timesteps + 1) / timesteps
        level = np.cos((at + 0.008) / 1.008 * np.pi / 2) ** 2
        self.keep = 1 - np.minimum(1 - level[1:] / level[:-1], 0.999)  # chance that a step leaves a cell alone

    def sample(self, rows: int, rng: np.random.Generator) -> Codes:
        """See :class:`Sampler`."""
        kept = np.cumprod(self.keep)
        codes = np.stack([rng.integers(0, k, rows) for k in self.sizes], axis=1)
        for t in reversed(range(len(self.keep))):
            x = np.concatenate([np.eye(k, dtype=np.float32)[codes[:, j]] for j, k in enumerate(self.sizes)], axis=1)
            (logits,) = self.session.run(None, {"x": x, "t": np.full(rows, t, np.int64)})
            before, edges = kept[t - 1] if t else 1.0, np.cumsum(self.sizes)[:-1]
            for j, (block, now) in enumerate(zip(*(np.split(a, edges, axis=1) for a in (logits, x)), strict=True)):
                clean = np.exp(block - block.max(axis=1, keepdims=True))
                clean /= clean.sum(axis=1, keepdims=True)
                k = self.sizes[j]
                # q(x[t-1] | x[t], clean row) up to a factor: what the step could have made of it, times where the clean row would be.
                chance = (self.keep[t] * now + (1 - self.keep[t]) / k) * (before * clean + (1 - before) / k)
                codes[:, j] = (np.log(np.maximum(chance, 1e-30)) + rng.gumbel(size=chance.shape)).argmax(axis=1)
        return codes


class PoolSampler:
    """Rows of a finished pool, drawn with equal chance: within one call each once before any comes again."""

    def __init__(self, table: bytes, sizes: tuple[int, ...]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        file, names = pq.ParquetFile(io.BytesIO(table)), [str(j) for j in range(len(sizes))]
        if file.metadata.num_rows > MAX_ROWS or any(file.schema_arrow.field(n).type != pa.int32() for n in names):
            raise ValueError(
                "not a pool of codes, or larger than any"
            )  # said by the header, before anything is unpacked
        found = file.read(columns=names)
        codes = np.stack([found.column(n).to_numpy() for n in names], axis=1).astype(np.int64)
        if not len(codes) or codes.min() < 0 or (codes >= np.asarray(sizes)).any():
            raise ValueError("the pool does not fit the dictionary")
        self.codes = codes

    def given(self, masks: Mapping[int, np.ndarray]) -> PoolSampler:
        """The pool's rows that meet the conditions. Raises ``condition-invalid`` when none does."""
        meets = np.ones(len(self.codes), bool)
        for column, mask in masks.items():
            meets &= mask[self.codes[:, column]]
        if not meets.any():
            raise MedsynxError("condition-invalid", "no row of the pool meets these conditions")
        out = copy.copy(self)
        out.codes = self.codes[meets]
        return out

    def sample(self, rows: int, rng: np.random.Generator) -> Codes:
        """See :class:`Sampler`."""
        turns = [rng.permutation(len(self.codes)) for _ in range(-(-rows // len(self.codes)))]
        drawn: Codes = self.codes[np.concatenate(turns)[:rows]]
        return drawn


def open_sampler(manifest: dict[str, Any], files: dict[str, bytes], study: Study) -> Sampler:
    """The sampler a ``sampler.json`` describes; ``files`` are the artefact's, by the names the manifest uses.

    Raises:
        MedsynxError: ``bundle-unreadable`` for an unknown kind or tables that do not fit the study.
    """
    sizes = codec.sizes(study)
    try:
        match manifest:
            case {"kind": "clique-tree", "file": str(name), "tables": [*tables]}:
                with np.load(io.BytesIO(files[name]), allow_pickle=False) as arrays:
                    return CliqueTreeSampler([_clique(t, arrays[t["table"]]) for t in tables], sizes)
            case {"kind": "onnx-softmax", "file": str(name), "latent": int(latent)}:
                return OnnxSoftmaxSampler(files[name], latent, sizes)
            case {"kind": "onnx-diffusion", "file": str(name), "timesteps": int(timesteps)} if 1 <= timesteps <= 1000:
                return OnnxDiffusionSampler(files[name], timesteps, sizes)
            case {"kind": "parquet-pool", "file": str(name)}:
                return PoolSampler(files[name], sizes)
    except (
        KeyError,
        IndexError,
        TypeError,
        ValueError,
        OSError,
        NotImplementedError,
    ):  # the last two are pyarrow's, of damaged pages
        raise MedsynxError("bundle-unreadable", "the sampler does not fit its files") from None
    raise MedsynxError("bundle-unreadable", "the bundle has a sampler this release does not know")


def _clique(entry: dict[str, Any], table: np.ndarray) -> CliqueTable:
    parent = entry["parent"]
    table = table.astype(np.float64)
    return CliqueTable(tuple(entry["columns"]), tuple(entry["given"]), None if parent is None else int(parent), table)


def bundle_sampler(bundle: Bundle) -> Sampler:
    """The sampler of a verified bundle."""
    prefix = "artefact/"
    files = {n.removeprefix(prefix): b for n, b in bundle.files.items() if n.startswith(prefix)}
    return open_sampler(bundle.json("sampler.json"), files, bundle.study)


def draw(
    bundle: Bundle, rows: int, seed: int | None = None, conditions: Mapping[str, Any] | None = None
) -> Iterator[pd.DataFrame]:
    """Synthetic rows in chunks of at most 100,000.

    The same bundle, rows, seed and conditions give the same table; the seed has no part in the privacy noise.

    Args:
        conditions: column -> what it may be, see :func:`medsynx.codec.allowed`. Rows then follow the generator's distribution given that.

    Raises:
        MedsynxError: before the first chunk: ``not-rows`` for a generator of images, ``rows-invalid``, ``condition-invalid``, or what
            :func:`open_sampler` raises.
    """
    if bundle.study.image:
        raise MedsynxError("not-rows", f"{bundle.study.name} is a generator of images, not of rows")
    if not 1 <= rows <= MAX_ROWS:
        raise MedsynxError("rows-invalid", f"{rows} rows asked for")
    sampler, study, rng = bundle_sampler(bundle), bundle.study, np.random.default_rng(seed)
    if conditions:
        if not isinstance(sampler, CliqueTreeSampler | PoolSampler):
            raise MedsynxError("condition-invalid", f"the family {study.family.name} draws without conditions only")
        sampler = sampler.given(codec.allowed(conditions, study))

    def chunks() -> Iterator[pd.DataFrame]:
        for start in range(0, rows, CHUNK):
            yield codec.decode(sampler.sample(min(CHUNK, rows - start), rng), study, rng)

    return chunks()
