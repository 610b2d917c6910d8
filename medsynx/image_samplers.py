"""Drawing images from a bundle with numpy or ONNX Runtime alone: no torch, no training code.

Kinds of ``sampler.json``: ``onnx-images`` (a generator network from noise and class to pixels) and ``dct-gaussian`` (mean and factors of the
covariance of each class's low frequencies).
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from medsynx.bundle import Bundle
from medsynx.errors import MedsynxError
from medsynx.image_spec import ImageSpec
from medsynx.progress import track
from medsynx.study import Study

MAX_IMAGES, CHUNK = 1_000_000, 64


@dataclass(frozen=True)
class Images:
    """Synthetic images.

    Attributes:
        pixels: float32 in 0..1, shape (images, channels, height, width).
        label: int64, shape (images,): position of the class in the study.
    """

    pixels: NDArray[np.float32]
    label: NDArray[np.int64]


class Painter(Protocol):
    """What a kind of sampler is: pixels for given classes."""

    def paint(self, label: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.float32]:
        """(images,) -> (images, channels, height, width) in 0..1."""


class ImageSampler:
    """Draws classes by their noised shares and images of them; the same generator state gives the same images.

    Args:
        shares: of each class, 0 for one that is not made.
    """

    def __init__(self, painter: Painter, shares: list[float], classes: tuple[str, ...]) -> None:
        self.painter, self.classes = painter, classes
        self.shares = np.asarray(shares, float)

    @property
    def made(self) -> list[int]:
        """Positions of the classes that are made."""
        return np.flatnonzero(self.shares > 0).tolist()

    def given(self, classes: tuple[str, ...]) -> ImageSampler:
        """The sampler of some classes, which keep their shares among each other. Raises ``condition-invalid`` for one that is not made."""
        self._require(classes)
        wanted = np.isin(self.classes, classes)
        return ImageSampler(self.painter, np.where(wanted, self.shares, 0.0).tolist(), self.classes)

    def sample(self, images: int, rng: np.random.Generator) -> Images:
        """Images whose classes follow the shares as closely as whole numbers can, in random order."""
        return self.of(self.labels(images, rng), rng)

    def labels(self, images: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Classes of that many images, as :meth:`sample` deals them."""
        share = self.shares / self.shares.sum()
        whole = np.floor(share * images).astype(int)
        short = images - whole.sum()
        whole[np.argsort(whole - share * images, kind="stable")[:short]] += 1
        return rng.permutation(np.repeat(np.arange(len(share)), whole))

    def chunks(self, label: NDArray[np.int64], rng: np.random.Generator) -> Iterator[Images]:
        """One image of each given class, a few at a time. Raises ``condition-invalid``, at once, for a class that is not made."""
        self._require([self.classes[k] for k in np.unique(label)])
        some = (label[i : i + CHUNK] for i in range(0, len(label), CHUNK))
        return (Images(self.painter.paint(part, rng), part.astype(np.int64)) for part in some)

    def _require(self, names: Sequence[str]) -> None:
        made = [self.classes[k] for k in self.made]
        absent = ", ".join(name for name in names if name not in made)
        if absent:
            raise MedsynxError(
                "condition-invalid",
                f"noise hides how many patients have {absent}: it is not made",
                hint=f"Name one of the classes that are: {', '.join(made)}.",
            )

    def of(self, label: NDArray[np.int64], rng: np.random.Generator) -> Images:
        """What :meth:`chunks` gives, in one."""
        return _joined(self.chunks(label, rng))


def _joined(chunks: Iterator[Images]) -> Images:
    held = list(chunks)
    return Images(np.concatenate([c.pixels for c in held]), np.concatenate([c.label for c in held]))


class OnnxPainter:
    """A generator network: standard normal ``z`` (images, latent) and one-hot ``label`` (images, classes) in, pixels out."""

    def __init__(self, model: bytes, latent: int, spec: ImageSpec) -> None:
        import onnxruntime as ort

        ort.disable_telemetry_events()
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(model, options, providers=ort.get_available_providers())
        self.latent, self.classes = latent, len(spec.classes)
        if {i.name for i in self.session.get_inputs()} != {"z", "label"}:
            raise ValueError("not a generator of images")

    def paint(self, label: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.float32]:
        """See :class:`Painter`."""
        z = rng.standard_normal((len(label), self.latent), dtype=np.float32)
        (pixels,) = self.session.run(None, {"z": z, "label": np.eye(self.classes, dtype=np.float32)[label]})
        return np.asarray(pixels, np.float32)


class GaussianPainter:
    """Each class a Gaussian over low frequencies.

    Args:
        arrays: ``means`` (classes, size), ``factors`` (classes, size, rank), ``rows`` and ``columns`` (frequencies, pixels) of the cosines.
    """

    def __init__(self, arrays: dict[str, NDArray[np.float32]], spec: ImageSpec) -> None:
        self.means, self.factors = arrays["means"], arrays["factors"]
        self.rows, self.columns, self.channels = arrays["rows"], arrays["columns"], spec.shape[2]
        size = (self.channels, len(self.rows), len(self.columns))
        fits = self.means.shape == (len(spec.classes), int(np.prod(size))) == self.factors.shape[:2]
        if not fits or (self.rows.shape[1], self.columns.shape[1]) != spec.shape[:2]:
            raise ValueError("not the study's images")

    def paint(self, label: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.float32]:
        """See :class:`Painter`."""
        z = rng.standard_normal((len(label), self.factors.shape[2]), dtype=np.float32)
        found = self.means[label]
        for k in np.unique(label):
            found[label == k] += z[label == k] @ self.factors[k].T
        blocks = found.reshape(len(label), self.channels, len(self.rows), len(self.columns))
        return np.clip(self.rows.T @ blocks @ self.columns + 0.5, 0, 1).astype(np.float32)


def open_image_sampler(manifest: dict[str, Any], files: dict[str, bytes], study: Study) -> ImageSampler:
    """The sampler a ``sampler.json`` describes; ``files`` are the artefact's.

    Raises:
        MedsynxError: ``bundle-unreadable`` for an unknown kind or files that do not fit the study.
    """
    spec = study.image
    if spec is None:
        raise MedsynxError("bundle-unreadable", "the study of this bundle has no images")
    try:
        painter: Painter
        match manifest:
            case {"kind": "onnx-images", "file": str(name), "latent": int(latent), "shares": [*found]}:
                painter = OnnxPainter(files[name], latent, spec)
            case {"kind": "dct-gaussian", "file": str(name), "shares": [*found]}:
                with np.load(io.BytesIO(files[name]), allow_pickle=False) as arrays:
                    painter = GaussianPainter(dict(arrays), spec)
            case _:
                raise MedsynxError("bundle-unreadable", "the bundle has a sampler this release does not know")
        shares = [float(s) for s in found]
        if len(shares) != len(spec.classes) or not (min(shares) >= 0 and sum(shares) > 0):
            raise ValueError("not the study's classes")
    except (KeyError, IndexError, TypeError, ValueError):
        raise MedsynxError("bundle-unreadable", "the sampler does not fit its files") from None
    return ImageSampler(painter, shares, spec.classes)


def draw_images(bundle: Bundle, images: int, seed: int | None = None, classes: tuple[str, ...] = ()) -> Images:
    """Synthetic images of a verified bundle. The same bundle, number, seed and classes give the same images.

    Args:
        classes: of these alone, see :func:`medsynx.conditions.classes_of`; of all when empty.

    Raises:
        MedsynxError: ``rows-invalid``, ``condition-invalid`` for a class that is not made, or what :func:`open_image_sampler` raises.
    """
    return _joined(draw_chunks(bundle, images, seed, classes))


def draw_chunks(
    bundle: Bundle, images: int, seed: int | None = None, classes: tuple[str, ...] = ()
) -> Iterator[Images]:
    """The images of :func:`draw_images`, a few at a time. Raises the same, before the first are drawn."""
    if not 1 <= images <= MAX_IMAGES:
        raise MedsynxError("rows-invalid", f"{images} images asked for", hint=f"Ask for 1 to {MAX_IMAGES:,} images.")
    prefix = "artefact/"
    files = {n.removeprefix(prefix): b for n, b in bundle.files.items() if n.startswith(prefix)}
    sampler = open_image_sampler(bundle.json("sampler.json"), files, bundle.study)
    sampler = sampler.given(classes) if classes else sampler
    rng = np.random.default_rng(seed)
    return track(sampler.chunks(sampler.labels(images, rng), rng), "drawing images", -(-images // CHUNK))
