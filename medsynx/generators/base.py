"""What every family provides, and the four values that pass between a site and the coordinator.

``State`` is public: it has only ever seen noised totals, travels to every site and is what checkpoints store.
``Patients`` exists only inside a hospital. A ``Contribution`` is raw and never leaves the process that made it: only the door turns it into cargo.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from medsynx.plan import PricedStep, Step
from medsynx.study import PrivacySpec, Study

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class State:
    """Public progress of a run: named numeric arrays (no objects) and JSON-able ``facts``."""

    arrays: Arrays = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Patients:
    """Encoded, capped records of one site, grouped by patient.

    Attributes:
        codes: int64, shape (rows, columns), columns in ``study.data_columns`` order.
        patient: int64, shape (rows,), 0..number of patients - 1.
    """

    codes: NDArray[np.int64]
    patient: NDArray[np.int64]

    @property
    def count(self) -> int:
        """Number of patients: private, it leaves a site only with noise."""
        return int(self.patient.max()) + 1 if len(self.patient) else 0

    def weights(self, unit: int, privacy: PrivacySpec) -> NDArray[np.int64]:
        """What each record adds to a cell, in units: ``unit``, or ``unit // k`` for a patient of k records where records are averaged."""
        if privacy.records == "averaged" and len(self.patient):
            return unit // np.bincount(self.patient)[self.patient]
        return np.full(len(self.codes), unit, np.int64)


@dataclass(frozen=True)
class ImagePatients(Patients):
    """The same for images: ``codes`` has one column, the position of the image's class.

    Attributes:
        images: float32 in 0..1, shape (rows, channels, height, width), the study's size.
    """

    images: NDArray[np.float32]


@dataclass(frozen=True)
class Contribution:
    """Raw result of one step at one site.

    Attributes:
        arrays: ``secure-sum``: one int64 vector ``"sum"`` of ``step.size`` numbers, without noise.
            ``model-update``: float32 weights, already trained with DP-SGD.
        keep: what must stay at this site for the run's next step (a critic's weights); never sent.
    """

    arrays: Arrays
    keep: Arrays = field(default_factory=dict)


@dataclass(frozen=True)
class Total:
    """What the coordinator gets from a step: the noised sum of int64 vectors (``"sum"``), or the mean of model weights.

    ``noise_std`` is the standard deviation of the noise in the sum, in cargo units; ``sites`` how many contributed.
    """

    arrays: Arrays
    noise_std: float
    sites: int


@dataclass(frozen=True)
class Artefact:
    """A finished generator: files by name (NPZ without objects, ONNX), the sampler manifest that reads them, and sentences for the report."""

    files: dict[str, bytes]
    sampler: dict[str, Any]
    notes: tuple[str, ...] = ()


class Family(Protocol):
    """Five verbs, no I/O. Steps and states are public; only ``contribute`` sees patients, and only inside a site."""

    def parameters(self, raw: dict[str, Any]) -> BaseModel:
        """Validate the study's ``family.parameters``. Raises pydantic's ValidationError."""

    def plan(self, study: Study) -> tuple[Step, ...]:
        """Every step a run may take, from the manifest alone: an upper bound over all adaptive choices.

        Shares of the steps on one part add up to 1; the evaluation then takes its share of all of them.
        """

    def next_step(self, study: Study, state: State) -> Step | None:
        """Coordinator: the next planned step, or None when finished."""

    def contribute(
        self, study: Study, priced: PricedStep, state: State, patients: Patients, keep: Arrays
    ) -> Contribution:
        """Site: the raw contribution. ``keep`` is what this site kept from the step before.

        A model-update trains with the priced noise itself; a secure-sum leaves the noise to the door.
        """

    def combine(self, study: Study, priced: PricedStep, state: State, total: Total) -> State:
        """Coordinator: fold a noised total into the state. Post-processing only."""

    def export(self, study: Study, state: State) -> Artefact:
        """Coordinator: the finished generator."""
