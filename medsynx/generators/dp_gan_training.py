"""``dp-gan`` at a site, mode ``local``: one-hot rows and fakes, and the pull to the measured columns (see :mod:`medsynx.generators.gan_training`)."""

from __future__ import annotations

import torch
from torch import Tensor

from medsynx import codec
from medsynx.generators.base import Arrays, Patients, State
from medsynx.generators.dp_gan import Parameters
from medsynx.generators.dp_gan_networks import (
    Generator,
    fake_rows,
    make_critic,
    plain,
    pull_to_margins,
    seed_fakes,
    tensors,
)
from medsynx.generators.gan_training import CriticTrainer, play
from medsynx.plan import PricedStep
from medsynx.study import Study


def train(
    study: Study, p: Parameters, priced: PricedStep, state: State, weights: Arrays, patients: Patients, keep: Arrays
) -> tuple[Arrays, Arrays]:
    """One round at one site.

    Args:
        state: public; says which round this is and what the single columns look like.
        weights: the shared generator.
        keep: this site's critic of the round before, or empty.

    Returns:
        The trained generator (its running mean over the last steps) and the critic, float32 by name.
    """
    assert priced.step.sampling is not None
    seed_fakes()
    sizes, facts = codec.sizes(study), state.facts
    margins = torch.tensor(facts["margins"])
    generator = Generator(p.latent, p.hidden, sum(sizes))
    generator.load_state_dict(tensors(weights))
    expected = max(1.0, priced.step.sampling.rate * float(facts["patients"]) / int(facts["sites"]))
    trainer = CriticTrainer(make_critic(sum(sizes), p.critic_hidden), p, priced.noise_multiplier, expected)
    if keep:
        trainer.critic.load_state_dict(tensors(keep))

    def draw() -> tuple[Tensor, Tensor]:
        logits = generator(torch.randn(p.batch, p.latent))
        return fake_rows(logits, sizes), pull_to_margins(logits, sizes, margins)

    mean = play(
        p,
        generator,
        trainer,
        draw,
        patients,
        lambda at: torch.from_numpy(codec.to_onehot(patients.codes[at], study)),
        priced.step.sampling,
        (int(facts["rounds"]) / p.exchanges, (int(facts["rounds"]) + 1) / p.exchanges),
    )
    return plain(mean), plain(trainer.critic)
