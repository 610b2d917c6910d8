"""What a study says about its images: size, intensities and classes. All of it is public, so loading an image looks at no other image."""

from __future__ import annotations

import math

from pydantic import BaseModel, ConfigDict, Field, field_validator

MAX_CLASSES = 100


class ImageSpec(BaseModel):
    """The images of a study.

    Attributes:
        shape: height, width (pixels) and channels (1 grey, 3 RGB) of real images after resampling and of synthetic ones.
        intensity: values of the stored pixels that become 0 and 1; what lies outside is clipped. A property of the modality
            (0-255, a CT window), never a minimum or percentile of a data set.
        classes: names of the labels. A stored label is such a name or, where no name is a number, its position from 0.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)
    shape: tuple[int, int, int]
    intensity: tuple[float, float]
    classes: tuple[str, ...] = Field(min_length=1, max_length=MAX_CLASSES)

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

    @property
    def spelled(self) -> dict[str, int]:
        """Every spelling of a stored label -> position of its class."""
        names = {c: k for k, c in enumerate(self.classes)}
        numbered = any(c.lstrip("+-").replace(".", "", 1).isdigit() for c in self.classes)
        return names if numbered else names | {str(k): k for k in range(len(self.classes))}
