"""``mean-embedding``: one noised sum of random features a class, and a generator trained until its images have the same mean features.

Differentially private mean embeddings with random features (Harder, Adamczewski and Park 2021, "DP-MERF"), class-conditional, federated by one
secure sum. Sites only compute features; training happens at the coordinator, sees the noised embedding alone, and costs no privacy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from medsynx.generators.base import Arrays, Artefact, Contribution, ImagePatients, Patients, State, Total
from medsynx.generators.image_sum import ImageSum, left_out, present, shares
from medsynx.generators.random_features import RandomFeatures
from medsynx.generators.torch_needed import torch_needed
from medsynx.plan import PricedStep, Step
from medsynx.study import Study

EMBEDDING = "embedding"


class Parameters(BaseModel):
    """Settings; all public.

    Attributes:
        features: frequencies of each of the two views; a class sends four times as many numbers.
        steps: training steps of the generator.
        learning_rate: at their start (Adam, falling to 0 along a cosine).
        latent: numbers of noise the generator starts from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    features: int = Field(default=1000, ge=8, le=10_000)
    steps: int = Field(default=250, ge=1, le=100_000)
    learning_rate: float = Field(default=1e-2, gt=0, le=0.1)
    latent: int = Field(default=32, ge=2, le=512)


def random_features(study: Study) -> RandomFeatures:
    """The study's features: a public draw seeded by its digest. No privacy rests on it."""
    assert study.image is not None
    p = Parameters.model_validate(study.family.parameters)
    return RandomFeatures(study.image.shape, p.features, int(study.digest[:16], 16))


def layout(study: Study) -> ImageSum:
    """The cargo: a block of features and a count for each class."""
    assert study.image is not None
    return ImageSum(4 * Parameters.model_validate(study.family.parameters).features, len(study.image.classes))


class MeanEmbedding:
    """The family; see :class:`medsynx.generators.base.Family` for the verbs."""

    def parameters(self, raw: dict[str, Any]) -> Parameters:
        """See :class:`Parameters`."""
        return Parameters.model_validate(raw)

    def plan(self, study: Study) -> tuple[Step, ...]:
        """One sum."""
        cargo = layout(study)
        return (Step(EMBEDDING, "secure-sum", "train", cargo.size, 1.0, cargo.sensitivity),)

    def next_step(self, study: Study, state: State) -> Step | None:
        """The sum, once."""
        return None if EMBEDDING in state.arrays else self.plan(study)[0]

    def contribute(
        self, study: Study, priced: PricedStep, state: State, patients: Patients, keep: Arrays
    ) -> Contribution:
        """The exact sum of this site's patients; the door adds the noise."""
        assert isinstance(patients, ImagePatients)
        features = random_features(study)
        return Contribution({"sum": layout(study).add_up(patients, lambda images, label: features(images))})

    def combine(self, study: Study, priced: PricedStep, state: State, total: Total) -> State:
        """Keep the noised embedding and how noisy it is."""
        return State({EMBEDDING: total.arrays["sum"]}, {"noise_std": total.noise_std})

    def export(self, study: Study, state: State) -> Artefact:
        """Train the generator; ONNX from ``z`` and one-hot ``label`` to pixels.

        Raises:
            MedsynxError: ``patients-too-few`` when noise hides every class, ``install-incomplete`` without torch.
        """
        assert study.image is not None
        cargo, p = layout(study), self.parameters(study.family.parameters)
        sums, counts = cargo.split(state.arrays[EMBEDDING])
        std = cargo.count_std(float(state.facts["noise_std"]))
        share = shares(counts, std)
        with torch_needed():
            from medsynx.generators.mean_embedding_training import train
        targets = (sums / np.maximum(counts, 1.0)[:, None]).astype(np.float32)
        model = train(
            random_features(study),
            targets,
            present(counts, std),
            study.image.shape,
            p,
            seed=int(study.digest[16:24], 16),
        )
        manifest = {"kind": "onnx-images", "file": "generator.onnx", "latent": p.latent, "shares": share}
        notes = (
            f"One noised sum of {cargo.width:,} random features a class; the generator was trained on it for {p.steps} steps.",
            *left_out(study.image.classes, counts, std),
        )
        return Artefact({"generator.onnx": model}, manifest, notes)
