"""Sizes of the image generator's weights, known without torch: a plan needs them, and so does a server that only reads bundles."""

from __future__ import annotations

import itertools
import math

HIDDEN = 200  #: width of the first layer
WIDTH = 32  #: channels at the coarsest size
LEAST = 16  #: and at the finest at least


def grid(shape: tuple[int, int, int]) -> tuple[int, int]:
    """Height and width of the coarsest size, at least about 7."""
    height, width, _ = shape
    times = 2 ** doublings(shape)
    return math.ceil(height / times), math.ceil(width / times)


def doublings(shape: tuple[int, int, int]) -> int:
    """How often the coarsest size is doubled; what is then too large is cut."""
    return max(1, math.floor(math.log2(min(shape[:2]) / 7)))


def widths(shape: tuple[int, int, int]) -> list[int]:
    """Channels before the first doubling and after each."""
    return [max(WIDTH // 2**k, LEAST) for k in range(doublings(shape) + 1)]


def generator_from_moments(
    shape: tuple[int, int, int], classes: int, latent: int, coefficients: int
) -> dict[str, tuple[int, ...]]:
    """Weights of ``image_networks.GeneratorFromMoments``, by name. ``coefficients``: numbers of one image's low frequencies."""
    channels = shape[2]
    coarse, wide = WIDTH * math.prod(grid(shape)), widths(shape)
    out: dict[str, tuple[int, ...]] = {
        "means": (classes, coefficients),
        "factors": (classes, coefficients * latent),
        "project.0.weight": (HIDDEN, latent + classes),
        "project.0.bias": (HIDDEN,),
        "project.1.weight": (HIDDEN,),
        "project.1.bias": (HIDDEN,),
        "project.3.weight": (coarse, HIDDEN),
        "project.3.bias": (coarse,),
        "project.4.weight": (coarse,),
        "project.4.bias": (coarse,),
    }
    for k, (before, after) in enumerate(itertools.pairwise(wide)):
        out |= {f"draw.{4 * k + 1}.weight": (after, before, 3, 3), f"draw.{4 * k + 1}.bias": (after,)}
        out |= {f"draw.{4 * k + 2}.{n}": (after,) for n in ("weight", "bias")}
    last = f"draw.{4 * (len(wide) - 1)}"
    return out | {f"{last}.weight": (channels, wide[-1], 5, 5), f"{last}.bias": (channels,)}


def stages(shape: tuple[int, int, int], wide: int) -> tuple[list[tuple[int, int]], int]:
    """(channels in, channels out) of the critic's strided convolutions, down to 8 pixels; and how many numbers come out."""
    height, width, fed = shape
    found: list[tuple[int, int]] = []
    while not found or min(height, width) > 8:
        out = wide * min(2 ** len(found), 2)
        found.append((fed, out))
        fed, height, width = out, height // 2, width // 2
    return found, fed * height * width


def critic(shape: tuple[int, int, int], classes: int, wide: int) -> dict[str, tuple[int, ...]]:
    """Weights of ``image_networks.Critic``, by name."""
    found, last = stages(shape, wide)
    out: dict[str, tuple[int, ...]] = {}
    for k, (fed, made) in enumerate(found):
        out |= {f"look.{3 * k}.weight": (made, fed, 4, 4), f"look.{3 * k}.bias": (made,)}
        out |= {f"look.{3 * k + 1}.{n}": (made,) for n in ("weight", "bias")}
    out |= {"common.weight": (1, last), "common.bias": (1,)}
    return out | {"own.weight": (classes, last), "own.bias": (classes,)}
