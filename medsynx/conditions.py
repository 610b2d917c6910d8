"""Conditions as a command line spells them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from medsynx.errors import MedsynxError
from medsynx.study import BooleanColumn, LevelColumn, Study


def parse_conditions(texts: Iterable[str], study: Study) -> dict[str, Any]:
    """``COLUMN=VALUE`` texts as the mapping that :func:`medsynx.codec.allowed` takes and checks.

    A column named twice may be either; ``LOW..HIGH`` is a range of a binned column, and either end may be left out; nothing after ``=`` is a
    missing value.

    Raises:
        MedsynxError: ``condition-invalid``.
    """
    out: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        column = study.data_columns.get(name)
        if not equals or column is None:
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
