"""``image-dp-gan`` at a site, mode ``local``: images, fakes, and the pull to the measured means (see :mod:`medsynx.generators.gan_training`)."""

from __future__ import annotations

from medsynx.generators.base import Arrays, ImagePatients, State
from medsynx.generators.dp_gan_networks import plain, seed_fakes, tensors
from medsynx.generators.gan_training import CriticTrainer, play
from medsynx.generators.image_dp_gan_networks import Fakes, make_critic, make_generator, records_of, settings
from medsynx.generators.image_networks import device
from medsynx.plan import PricedStep
from medsynx.study import Study


def train(
    study: Study, priced: PricedStep, state: State, weights: Arrays, patients: ImagePatients, keep: Arrays
) -> tuple[Arrays, Arrays]:
    """One round at one site.

    Args:
        state: public; says which round this is and what the classes' means look like.
        weights: the shared generator.
        keep: this site's critic of the round before, or empty.

    Returns:
        The trained generator (its running mean) and the critic, float32 by name.
    """
    assert priced.step.sampling is not None
    seed_fakes()
    p, facts = settings(study), state.facts
    generator, fakes = make_generator(study, weights).to(device()), Fakes(study, facts)
    expected = max(1.0, priced.step.sampling.rate * float(facts["patients"]) / int(facts["sites"]))
    trainer = CriticTrainer(make_critic(study).to(device()), p, priced.noise_multiplier, expected)
    if keep:
        trainer.critic.load_state_dict(tensors(keep))
    done = int(facts["rounds"])
    mean = play(
        p,
        generator,
        trainer,
        lambda: fakes(generator),
        patients,
        records_of(study, patients, device()),
        priced.step.sampling,
        (done / p.exchanges, (done + 1) / p.exchanges),
    )
    return plain(mean), plain(trainer.critic)
