"""Which of Synthcity 0.2.12's plugins may be named by a study, and why the others may not. Known without importing the library.

``docs/synthcity.md`` explains every line; ``tests/medsynx/test_synthcity_findings.py`` shows every defect on the installed version.
"""

from __future__ import annotations

from typing import Literal

Mode = Literal["shard", "student"]

#: Plugins whose networks can be trained at the sites with DP-SGD.
SHARDS = ("ctgan", "adsgan", "tvae", "ddpm")
#: Students whose network maps noise to one row and is exported as ONNX.
NETWORKS = ("ctgan", "adsgan", "tvae", "rtvae")
#: Students exported as a pool of rows.
POOLS = (
    "ddpm",
    "nflow",
    "arf",
    "bayesian_network",
    "marginal_distributions",
    "uniform_sampler",
    "dummy_sampler",
    "decaf",
)
#: Students of a study with follow-up time and event, exported as a pool of rows.
SURVIVAL = ("survae", "survival_ctgan", "survival_gan", "survival_nflow")
STUDENTS = (*NETWORKS, *POOLS, *SURVIVAL)

#: Plugins that claim a privacy they do not give: refused by name, in both modes.
UNSOUND = {
    "dpgan": "its noised critic is trained backwards, and its accountant assumes Poisson samples that it does not draw",
    "pategan": "it trains its critic on the real rows themselves, without noise, and leaves votes uncharged",
    "privbayes": "it divides the noise of a count by the number of patients, so that the noise all but vanishes",
    "aim": "it runs on the real rows again, at full epsilon, each time rows are drawn",
}
_IMAGES = (
    "it makes images, for which there is the family image-dp-gan: its networks take 32, 64 or 128 pixels and as many classes as the labels they are "
    "shown, and the labels of what it makes come from a classifier fitted to real images without noise"
)
#: Plugins that cannot be used, in either mode, and why.
UNAVAILABLE = {
    "goggle": "it needs the package dgl, which is not installed",
    "great": "it downloads a language model, and a run fetches nothing from the internet",
    "radialgan": "it needs a column that names domains, which no dictionary has",
    "image_cgan": _IMAGES,
    "image_adsgan": _IMAGES + "; its identifiability penalty shows real images to the generator",
}
