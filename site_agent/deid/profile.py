"""What PS3.15 Table E.1-1 says about an attribute under a recipe, and what the IOD says about leaving it empty."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from site_agent.deid.recipe import Recipe

TABLE = Path(__file__).parent / "standard" / "ps315.json"


@cache
def _table() -> dict[str, Any]:
    body: dict[str, Any] = json.loads(TABLE.read_text("utf-8"))
    return body


def edition() -> str:
    """Edition and hash of the table in use, for reports."""
    return f"{_table()['source']['edition']} {hashlib.sha256(TABLE.read_bytes()).hexdigest()[:16]}"


class Profile:
    """Table E.1-1 and Table E.3.4-1 under one recipe.

    Where several options apply, cleaning wins over keeping: the stricter promise holds.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.options = recipe.options
        self._actions = {
            int(tag, 16): self._choose(*rule)
            for tag, rule in _table()["attributes"].items()
            if len(tag) == 8 and "x" not in tag
        }
        self._content = {key: self._choose(*rule) for key, rule in _table()["content_items"].items()}

    def _choose(self, basic: str, options: dict[str, str]) -> str:
        chosen = {options[name] for name in self.options if name in options}
        return "C" if "C" in chosen else "K" if "K" in chosen else basic

    def action(self, tag: int) -> str | None:
        """``X`` remove, ``Z`` empty, ``D`` dummy, ``U`` map, ``K`` keep, ``C`` clean, a compound of these, or None when the table is silent."""
        return self._actions.get(tag)

    def content_action(self, scheme: str, code: str, value_type: str) -> str | None:
        """The same for a content item of a structured report, by its concept."""
        return self._content.get(f"{scheme}:{code}:{value_type}")


@cache
def _standard(name: str) -> Any:
    """One of highdicom's JSON tables, read from its folder: importing the package costs half a second a process."""
    spec = importlib.util.find_spec("highdicom")
    assert spec is not None and spec.submodule_search_locations
    return json.loads((Path(spec.submodule_search_locations[0]) / "_standard" / f"{name}.json").read_text("utf-8"))


@lru_cache(maxsize=64)
def _types(sop_class: str) -> dict[tuple[str, ...], str]:
    """(path of keywords, keyword) -> strictest type (1, 1C, 2, 2C, 3) over the modules of the SOP class's IOD."""
    iod = _standard("sop_class_iod_map").get(sop_class)
    found: dict[tuple[str, ...], str] = {}
    modules = _standard("module_attribute_map")
    for module in _standard("iod_module_map").get(iod, ()):
        for a in modules.get(module["key"], ()):
            key = (*a["path"], a["keyword"])
            found[key] = min(found.get(key, "9"), a["type"])
    return found


def attribute_type(sop_class: str, path: tuple[str, ...], keyword: str) -> str:
    """``1``, ``2`` or ``3``: required, required but may be empty, optional (also when the IOD does not have it)."""
    return _types(sop_class).get((*path, keyword), "3")[0]


def known_sop_class(sop_class: str) -> bool:
    """Whether the standard knows this storage class, in its present edition or, retired, in an earlier one."""
    from pydicom._uid_dict import UID_dictionary

    name, kind = UID_dictionary.get(sop_class, ("", ""))[:2]
    return sop_class in _standard("sop_class_iod_map") or (kind == "SOP Class" and "Image Storage" in name)


def resolve(action: str, type_: str) -> str:
    """A compound code of the table as one letter, by the attribute's type (PS3.15 E.3, notes to Table E.1-1a)."""
    if "/" not in action:
        return action
    choices = action.replace("U*", "U").split("/")
    if "U" in choices:  # X/Z/U*: references stay, their UIDs are mapped when the sequence is walked
        return "U"
    wanted = {"1": "D", "2": "Z", "3": "X"}[type_]
    if wanted in choices:
        return wanted
    return "D" if type_ == "1" and "D" in choices else "Z" if "Z" in choices and type_ != "3" else choices[0]
