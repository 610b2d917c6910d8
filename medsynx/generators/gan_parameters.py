"""What a study may say about any of our GANs; all public."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from medsynx.generators.averaging import BETAS, Centre, Server, adam_reach


class GanParameters(BaseModel):
    """Training settings that ``dp-gan`` and ``image-dp-gan`` share.

    Attributes:
        critic_steps: noisy critic steps a round (in ``dp-gan``'s mode ``summed`` a round is one step).
        generator_every: critic steps to a turn of the generator.
        generator_steps: steps of the generator in its turn; they cost no privacy.
        sample_rate: chance of each patient to be in a critic step's batch.
        batch: fakes of a step.
        clip_norm: bound of one patient's gradient; fakes are clipped alike.
        latent: numbers of noise the generator starts from.
        generator_rate, critic_rate: learning rates (Adam), held for half of the training and faded out in the other.
        critic_decay: weight decay of the critic (AdamW): what it learnt from noise is forgotten again.
        average: decay of the running mean of the generator's weights, which is what is published.
        centre: how the sites' weights become one; ``median`` and ``trimmed-mean`` hold against a minority of bad sites.
        server: the coordinator's step towards it: FedAvg, FedAvgM or FedAdam.
        server_rate: length of that step.
        proximal: FedProx (Li et al. 2020): weight of half the squared distance to the shared generator in a site's loss.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    critic_steps: int = Field(default=60, ge=1, le=10_000)
    generator_every: int = Field(default=1, ge=1, le=1000)
    generator_steps: int = Field(default=3, ge=1, le=100)
    sample_rate: float = Field(default=0.3, gt=0, le=1)
    batch: int = Field(default=256, ge=8, le=4096)
    clip_norm: float = Field(default=1.0, gt=0, le=100)
    latent: int = Field(default=32, ge=2, le=512)
    generator_rate: float = Field(default=2e-3, gt=0, le=0.1)
    critic_rate: float = Field(default=0.032, gt=0, le=0.1)
    critic_decay: float = Field(default=2.0, ge=0, le=50)
    average: float = Field(default=0.99, ge=0, lt=1)
    centre: Centre = "mean"
    server: Server = "average"
    server_rate: float = Field(default=1.0, gt=0, le=10)
    proximal: float = Field(default=0.0, ge=0, le=100)

    @property
    def reach(self) -> float:
        """How far a round at a site moves a weight of the generator, whatever the site's patients."""
        turns = self.critic_steps // self.generator_every
        return adam_reach(self.generator_rate, turns * self.generator_steps, BETAS)
