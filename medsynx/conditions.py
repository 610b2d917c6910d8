"""Conditions as a command line spells them, and what those of an image generator mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from medsynx.errors import MedsynxError
from medsynx.study import BooleanColumn, LevelColumn, Study

CLASS = "class"  #: the one condition that images are drawn under


def parse_conditions(texts: Iterable[str], study: Study) -> dict[str, Any]:
    """``COLUMN=VALUE`` texts as the mapping that :func:`medsynx.codec.allowed` takes and checks.

    A column named twice may be either; ``LOW..HIGH`` is a range of a binned column, and either end may be left out; nothing after ``=`` is a
    missing value. Of images the one "column" is ``class``.

    Raises:
        MedsynxError: ``condition-invalid``.
    """
    out: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        column = study.data_columns.get(name)
        if equals and name == CLASS and study.image:
            out.setdefault(name, []).append(value)
            continue
        if not equals or column is None:
            if study.image:
                raise MedsynxError("condition-invalid", f"{text!r} is not {CLASS}=NAME", hint=_known(study))
            raise MedsynxError("condition-invalid", f"{text!r} is not COLUMN=VALUE with a column of the study")
        span = ".." in value and not isinstance(column, LevelColumn | BooleanColumn)
        if name in out and (span or isinstance(out[name], dict)):
            raise MedsynxError("condition-invalid", f"columns.{name}: one range, or single values")
        if span:
            low, _, high = value.partition("..")
            out[name] = {end: v for end, v in (("min", low), ("max", high)) if v}
        else:
            out.setdefault(name, []).append(value or None)
    return out


def classes_of(conditions: Mapping[str, Any], study: Study) -> tuple[str, ...]:
    """The classes that conditions on images allow, in the study's order; none for no condition.

    Args:
        conditions: empty, or ``class`` -> a name or a list of names.

    Raises:
        MedsynxError: ``condition-invalid``; its hint lists the classes.
    """
    assert study.image is not None
    strange = [name for name in conditions if name != CLASS]
    if strange:
        raise MedsynxError("condition-invalid", f"images have no {strange[0]!r}", hint=_known(study))
    if CLASS not in conditions:
        return ()
    found = conditions[CLASS]
    named = [str(value) for value in found] if isinstance(found, list | tuple) else [str(found)]
    unknown = [name for name in named if name not in study.image.classes]
    if unknown or not named:
        raise MedsynxError("condition-invalid", f"no class {', '.join(unknown) or 'is named'}", hint=_known(study))
    return tuple(name for name in study.image.classes if name in named)


def _known(study: Study) -> str:
    assert study.image is not None
    return f"Name one of its classes: {', '.join(study.image.classes)}."
