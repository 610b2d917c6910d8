"""Drawing rows from a bundle with numpy or ONNX Runtime alone: no torch, no flwr, no training code.

Kinds of ``sampler.json``: ``clique-tree`` (conditional tables, numpy) and ``onnx-softmax`` (a generator network that gives one block of
logits a column).
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from medsynx import codec
from medsynx.bundle import Bundle
from medsynx.codec import Codes
from medsynx.errors import MedsynxError
from medsynx.study import Study

if TYPE_CHECKING:
    import pandas as pd

MAX_ROWS, CHUNK = 10_000_000, 100_000


class Sampler(Protocol):
    """Draws coded records; the same generator state gives the same rows."""

    def sample(self, rows: int, rng: np.random.Generator) -> Codes:
        """Codes of shape (rows, data columns)."""


class CliqueTreeSampler:
    """Ancestral sampling down a tree of conditional tables ``P(new columns | given columns)``.

    Attributes of a table: ``new`` and ``given`` (column positions) and ``cdf``, float64 of shape (cells of given, cells of new), rows
    rising to 1. One inverse-CDF look-up draws a table for all rows at once.
    """

    def __init__(self, tables: list[tuple[list[int], list[int], np.ndarray]], sizes: tuple[int, ...]) -> None:
        self.sizes = sizes
        self.tables = []
        for new, given, cdf in tables:
            flat = (cdf + np.arange(len(cdf))[:, None]).ravel()
            self.tables.append((new, given, cdf.shape[1], flat))

    def sample(self, rows: int, rng: np.random.Generator) -> Codes:
        """See :class:`Sampler`."""
        out = np.zeros((rows, len(self.sizes)), np.int64)
        for new, given, width, flat in self.tables:
            row = np.zeros(rows, np.int64)
            if given:
                row = np.ravel_multi_index([out[:, a] for a in given], [self.sizes[a] for a in given])
            cell = np.searchsorted(flat, row + rng.random(rows), side="right") - row * width
            cell = np.clip(cell, 0, width - 1)
            for a, values in zip(new, np.unravel_index(cell, [self.sizes[a] for a in new]), strict=True):
                out[:, a] = values
        return out


class OnnxSoftmaxSampler:
    """A generator network: standard normal ``z`` (rows, latent) in, logits (rows, sum of sizes) out; each column is drawn from its softmax."""

    def __init__(self, model: bytes, latent: int, sizes: tuple[int, ...]) -> None:
        import onnxruntime as ort

        ort.disable_telemetry_events()
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(model, options, providers=ort.get_available_providers())
        self.input, self.latent, self.sizes = self.session.get_inputs()[0].name, latent, sizes

    def sample(self, rows: int, rng: np.random.Generator) -> Codes:
        """See :class:`Sampler`."""
        z = rng.standard_normal((rows, self.latent), dtype=np.float32)
        (logits,) = self.session.run(None, {self.input: z})
        blocks = np.split(np.asarray(logits), np.cumsum(self.sizes)[:-1], axis=1)
        # Gumbel-max: the index of the largest perturbed logit is a draw from the softmax.
        return np.stack([(b + rng.gumbel(size=b.shape)).argmax(axis=1) for b in blocks], axis=1).astype(np.int64)


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
                    return CliqueTreeSampler([(t["new"], t["given"], arrays[t["cdf"]]) for t in tables], sizes)
            case {"kind": "onnx-softmax", "file": str(name), "latent": int(latent)}:
                return OnnxSoftmaxSampler(files[name], latent, sizes)
    except (KeyError, TypeError, ValueError):
        raise MedsynxError("bundle-unreadable", "the sampler does not fit its files") from None
    raise MedsynxError("bundle-unreadable", "the bundle has a sampler this release does not know")


def bundle_sampler(bundle: Bundle) -> Sampler:
    """The sampler of a verified bundle."""
    prefix = "artefact/"
    files = {n.removeprefix(prefix): b for n, b in bundle.files.items() if n.startswith(prefix)}
    return open_sampler(bundle.json("sampler.json"), files, bundle.study)


def draw(bundle: Bundle, rows: int, seed: int | None = None) -> Iterator[pd.DataFrame]:
    """Synthetic rows in chunks of at most 100,000. The same bundle, rows and seed give the same table; the seed has no part in the privacy noise.

    Raises:
        MedsynxError: ``rows-invalid``, or what :func:`open_sampler` raises - before the first chunk.
    """
    if not 1 <= rows <= MAX_ROWS:
        raise MedsynxError("rows-invalid", f"{rows} rows asked for")
    sampler, study, rng = bundle_sampler(bundle), bundle.study, np.random.default_rng(seed)

    def chunks() -> Iterator[pd.DataFrame]:
        for start in range(0, rows, CHUNK):
            yield codec.decode(sampler.sample(min(CHUNK, rows - start), rng), study, rng)

    return chunks()
