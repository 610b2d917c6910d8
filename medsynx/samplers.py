"""Drawing rows from a bundle with numpy or ONNX Runtime alone: no torch, no flwr, no training code.

Kinds of ``sampler.json``: ``clique-tree`` (conditional tables of a junction tree, numpy; exact under conditions on any columns) and
``onnx-softmax`` (a generator network that gives one block of logits a column; it takes no conditions).
"""

from __future__ import annotations

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
                    return CliqueTreeSampler([_clique(t, arrays[t["table"]]) for t in tables], sizes)
            case {"kind": "onnx-softmax", "file": str(name), "latent": int(latent)}:
                return OnnxSoftmaxSampler(files[name], latent, sizes)
    except (KeyError, IndexError, TypeError, ValueError):
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
        if not isinstance(sampler, CliqueTreeSampler):
            raise MedsynxError("condition-invalid", f"the family {study.family.name} draws without conditions only")
        sampler = sampler.given(codec.allowed(conditions, study))

    def chunks() -> Iterator[pd.DataFrame]:
        for start in range(0, rows, CHUNK):
            yield codec.decode(sampler.sample(min(CHUNK, rows - start), rng), study, rng)

    return chunks()
