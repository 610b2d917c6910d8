"""What the API says of a generator."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, Field, FiniteFloat, StrictBool, model_validator

from server.generators.models import Generator, Status


class Privacy(BaseModel):
    """The short privacy statement; epsilons are null when noise was off."""

    epsilon: FiniteFloat | None
    epsilon_coordinator: FiniteFloat | None
    delta: FiniteFloat
    unit: str = Field(max_length=64)
    trust: str = Field(max_length=64)


class Check(BaseModel):
    """One threshold of the gate and the figure held against it."""

    name: str = Field(max_length=64)
    threshold: FiniteFloat
    value: FiniteFloat | None
    passed: StrictBool


class Gate(BaseModel):
    """Whether the study's thresholds are met."""

    passed: StrictBool
    checks: list[Check] = Field(max_length=64)


class Figure(BaseModel):
    """A figure of the evaluation. ``floor``, of a distance, is what a generator without any error would show under the noise, and is taken off
    already; what is not ``reliable`` opens no gate."""

    value: FiniteFloat | None
    floor: FiniteFloat | None = None
    reliable: bool = True

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        return value if isinstance(value, dict) else {"value": value}  # as the first release stored it


class Summary(BaseModel):
    """What is said of a bundle's gate, privacy and evaluation."""

    gate: Gate | None
    privacy: Privacy
    evaluation: dict[Annotated[str, Field(max_length=64)], Figure] | None


class GeneratorOut(Summary):
    """A registered generator."""

    id: str
    name: str
    title: str
    family: str
    study_digest: str
    bundle_digest: str
    signer: str
    created_at: datetime
    status: Status
    has_report: bool

    @classmethod
    def of(cls, g: Generator) -> GeneratorOut:
        """From its row."""
        return cls.model_validate({**g.model_dump(exclude={"summary", "file", "changed_by"}), **g.summary})
