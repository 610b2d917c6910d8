"""Generator families: one file each, all with the same five verbs (:mod:`medsynx.generators.base`)."""

from __future__ import annotations

from importlib import import_module

from medsynx.generators.base import Family
from medsynx.study import FamilySpec

#: family name -> "module:class"; a new family is one new file and one line here.
FAMILIES: dict[str, str] = {
    "marginals": "medsynx.generators.marginals:Marginals",
    "dp-gan": "medsynx.generators.dp_gan:DpGan",
    "synthcity": "medsynx.generators.synthcity:Synthcity",
    "mean-embedding": "medsynx.generators.mean_embedding:MeanEmbedding",
    "moments": "medsynx.generators.moments:Moments",
    "image-dp-gan": "medsynx.generators.image_dp_gan:ImageDpGan",
}
#: those that make images; the others make tables
IMAGE_FAMILIES = frozenset({"mean-embedding", "moments", "image-dp-gan"})


def get_family(name: str) -> Family:
    """The family of this name. Raises KeyError for an unknown one; a study never holds one."""
    module, _, attribute = FAMILIES[name].partition(":")
    family: Family = getattr(import_module(module), attribute)()
    return family


def families_of(spec: FamilySpec) -> tuple[str, ...]:
    """Names of every family that takes part: the study's own and, where it learns from another one's rows, that teacher. A site allows them all."""
    teacher = getattr(get_family(spec.name).parameters(spec.parameters), "teacher", None)
    return (spec.name, teacher.name) if teacher else (spec.name,)
