"""What a study may say about the family ``synthcity``; all public."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from medsynx.errors import MedsynxError
from medsynx.generators.synthcity.catalogue import SHARDS, STUDENTS, UNAVAILABLE, UNSOUND
from medsynx.study import FamilySpec


class _Parameters(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Mode(BaseModel):
    mode: Literal["shard", "student"]
    plugin: str

    @field_validator("plugin")
    @classmethod
    def _usable(cls, plugin: str) -> str:
        if plugin in UNAVAILABLE:
            raise ValueError(f"{plugin} cannot be used: {UNAVAILABLE[plugin]}; see docs/synthcity.md")
        return plugin


class Shard(_Parameters):
    """Synthcity's network, trained at the sites with DP-SGD and averaged.

    Attributes:
        rounds: exchanges with the sites.
        steps: noisy gradients a round.
        sample_rate: chance of each patient to be in a step's batch.
        batch: the constant a noised gradient is divided by (never the private batch size), and the size of a batch of fakes.
        clip_norm: bound of one patient's gradient.
        hidden, layers: width and number of the hidden layers.
        latent: numbers of noise the generator starts from.
        learning_rate: of every network (Adam).
        generator_every: critic steps for one step of the generator (ctgan, adsgan).
        timesteps: of the diffusion (ddpm).
    """

    plugin: Literal["ctgan", "adsgan", "tvae", "ddpm"]
    mode: Literal["shard"]
    rounds: int = Field(default=5, ge=1, le=200)
    steps: int = Field(default=300, ge=1, le=10_000)
    sample_rate: float = Field(default=0.05, gt=0, le=1)
    batch: int = Field(default=64, ge=8, le=4096)
    clip_norm: float = Field(default=1.0, gt=0, le=100)
    hidden: int = Field(default=96, ge=8, le=1024)
    layers: int = Field(default=2, ge=1, le=4)
    latent: int = Field(default=24, ge=2, le=512)
    learning_rate: float = Field(default=2e-3, gt=0, le=0.1)
    generator_every: int = Field(default=3, ge=1, le=100)
    timesteps: int = Field(default=32, ge=4, le=1000)

    @field_validator("hidden")
    @classmethod
    def _even(cls, hidden: int) -> int:
        if hidden % 2:
            raise ValueError("an even number: half of the time embedding is sines, half cosines")
        return hidden


class Student(_Parameters):
    """A plugin trained at the coordinator on rows drawn from a private generator, its teacher.

    Attributes:
        teacher: the family whose steps the run takes; it spends the whole budget.
        rows: how many rows of the teacher the student sees, and the size of a pool.
        iterations: the plugin's ``n_iter``; its own default when absent.
        seconds: after which the training is ended and the run fails.
    """

    plugin: str
    mode: Literal["student"]
    teacher: FamilySpec = FamilySpec(name="marginals")
    rows: int = Field(default=10_000, ge=100, le=1_000_000)
    iterations: int | None = Field(default=None, ge=1, le=100_000)
    seconds: int = Field(default=1800, ge=10, le=86_400)

    @field_validator("plugin")
    @classmethod
    def _known(cls, plugin: str) -> str:
        if plugin not in STUDENTS:
            raise ValueError(f"{plugin!r} is not one of {', '.join(STUDENTS)}")
        return plugin

    @model_validator(mode="after")
    def _teachable(self) -> Student:
        from medsynx.generators import FAMILIES, IMAGE_FAMILIES, get_family

        name, raw = self.teacher.name, self.teacher.parameters
        if name not in FAMILIES or name in IMAGE_FAMILIES or raw.get("mode") == "student":
            raise ValueError(f"the teacher {name!r} is not a family that learns from patients' tables")
        if "centre" in raw:
            raise ValueError("a teacher's `centre` is not applied: its updates are averaged")
        get_family(name).parameters(raw)
        return self


def parse(raw: dict[str, Any]) -> Shard | Student:
    """The parameters of a study.

    Raises:
        MedsynxError: ``plugin-unsound`` for a plugin that claims a privacy it does not give.
        pydantic.ValidationError: for anything else that is wrong.
    """
    plugin = raw.get("plugin")
    if isinstance(plugin, str) and plugin in UNSOUND:
        raise MedsynxError("plugin-unsound", f"Synthcity's {plugin} is refused: {UNSOUND[plugin]}")
    return Shard.model_validate(raw) if _Mode.model_validate(raw).mode == "shard" else Student.model_validate(raw)


assert set(SHARDS) == set(Shard.model_fields["plugin"].annotation.__args__)  # type: ignore[union-attr]
