"""What a study says about its images: size, intensities and classes. All of it is public, so loading an image looks at no other image."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, field_validator, model_serializer

MAX_CLASSES = 100


class ImageSpec(BaseModel):
    """The images of a study.

    Attributes:
        shape: height, width (pixels) and channels (1 grey, 3 RGB) of real images after resampling and of synthetic ones.
        intensity: values of the stored pixels that become 0 and 1; what lies outside is clipped. A property of the modality
            (0-255, a CT window), never a minimum or percentile of a data set.
        classes: names of the labels. A stored label is such a name or, where no name is a number, its position from 0.
        percentiles: of one image's own pixels, moved to the ends of ``intensity`` before anything else, for pixels without a unit (MR).
        modalities: DICOM objects of another Modality are left out; all are taken when empty.
        slices: how many frames of a multi-frame object or sections of a volume are images, at even steps (see :meth:`positions`). None: the
            middle one, and a file of arrays holds images, not volumes.
        plane: how a volume that knows its orientation (NIfTI) is cut.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)
    shape: tuple[int, int, int]
    intensity: tuple[float, float]
    classes: tuple[str, ...] = Field(min_length=1, max_length=MAX_CLASSES)
    percentiles: tuple[float, float] | None = None
    modalities: tuple[Annotated[str, Field(pattern=r"^[A-Z]{2,16}$")], ...] = ()
    slices: int | None = Field(default=None, ge=1, le=100)
    plane: Literal["axial", "coronal", "sagittal"] = "axial"

    @model_serializer(mode="wrap")
    def _without_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What a study does not say is not part of its digest, so that a later field changes no study."""
        fields = type(self).model_fields
        return {
            n: v for n, v in handler(self).items() if fields[n].is_required() or getattr(self, n) != fields[n].default
        }

    @field_validator("percentiles")
    @classmethod
    def _shares(cls, percentiles: tuple[float, float] | None) -> tuple[float, float] | None:
        if percentiles is not None and not 0 <= percentiles[0] < percentiles[1] <= 100:
            raise ValueError("percentiles are two numbers of 0 to 100, the lower one first")
        return percentiles

    @field_validator("shape")
    @classmethod
    def _sane(cls, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        if not (8 <= shape[0] <= 512 and 8 <= shape[1] <= 512 and shape[2] in (1, 3)):
            raise ValueError("shape is (height 8-512, width 8-512, channels 1 or 3)")
        return shape

    @field_validator("intensity")
    @classmethod
    def _rising(cls, intensity: tuple[float, float]) -> tuple[float, float]:
        low, high = intensity
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError("intensity is two finite numbers, the lower one first")
        return intensity

    @field_validator("classes", mode="before")
    @classmethod
    def _as_text(cls, classes: object) -> object:
        if not isinstance(classes, list | tuple):
            return classes
        return [{True: "yes", False: "no"}[c] if isinstance(c, bool) else str(c) for c in classes]

    @field_validator("classes")
    @classmethod
    def _distinct(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        twice = sorted({c for c in classes if classes.count(c) > 1 or not c})
        if twice:
            raise ValueError(f"classes are empty or named twice: {', '.join(twice)}")
        return classes

    def positions(self, count: int) -> list[int]:
        """Which of ``count`` frames or sections are read: the middles of ``slices`` equal parts, all where there are no more."""
        parts = min(self.slices or 1, count)
        return [(2 * i + 1) * count // (2 * parts) for i in range(parts)]

    @property
    def spelled(self) -> dict[str, int]:
        """Every spelling of a stored label -> position of its class."""
        names = {c: k for k, c in enumerate(self.classes)}
        numbered = any(c.lstrip("+-").replace(".", "", 1).isdigit() for c in self.classes)
        return names if numbered else names | {str(k): k for k in range(len(self.classes))}
