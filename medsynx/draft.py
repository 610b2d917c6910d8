"""A first draft of a study from a table, for a coordinator to edit. Whatever it takes from rows is marked: it is not private."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from medsynx.errors import MedsynxError
from medsynx.study import MAX_LEVELS

if TYPE_CHECKING:
    import pandas as pd

MISSING = ("", "NA", "NaN", "nan", "?")
MAX_DRAFT_LEVELS = 20
WARNING = """\
# !!! DRAFT, NOT PRIVATE !!!
# Every bound and level marked FROM ROWS below was read from the table. A patient can be recognised by an extreme value, so publishing
# them breaks the privacy promise. Replace each by what is publicly known (clinical ranges, code lists), then delete its mark.
# `medsynx study check FILE` refuses a study that still carries a mark.
"""
MARK = "# FROM ROWS"


def refuse_marks(file: Path) -> None:
    """Raise ``study-invalid`` for a manifest that still says somewhere that it was taken from rows."""
    if MARK in file.read_text("utf-8"):
        raise MedsynxError(
            "study-invalid",
            f"{file} still carries `{MARK}` marks",
            hint="Replace each marked bound by public knowledge and delete its mark.",
        )


def draft(frame: pd.DataFrame, name: str) -> str:
    """A YAML manifest with one line a column.

    Args:
        frame: text cells, as read by the command line.
        name: name of the study.
    """
    columns = {str(c): _column(frame[c]) for c in frame.columns}
    body = "\n".join(
        f"  {_flow(n)}: {_flow(spec)}  {MARK}" if marked else f"  {_flow(n)}: {_flow(spec)}"
        for n, (spec, marked) in columns.items()
    )
    rest = {
        "missing_values": list(MISSING),
        "family": {"name": "marginals"},
        "privacy": {"epsilon": 1.0, "delta": 1e-5, "trust": "local", "max_records_per_patient": 1},
        "rounds": {"quorum": 2, "deadline_seconds": 120},
    }
    return f"{WARNING}manifest: 1\nname: {name}\ntitle: ''\ncolumns:\n{body}\n{yaml.safe_dump(rest, sort_keys=False)}"


def _column(values: pd.Series) -> tuple[dict[str, Any], bool]:
    import pandas as pd

    cells = values.astype(str).str.strip()
    present = cells[~cells.isin(MISSING)]
    distinct = sorted(present.unique())
    numbers = pd.to_numeric(present, errors="coerce")
    numeric = len(present) > 0 and bool(numbers.notna().all())
    if not numeric and len(distinct) > MAX_DRAFT_LEVELS and len(distinct) > 0.5 * len(present):
        return {"type": "patient-id"}, True
    if numeric and len(distinct) > 10:
        whole = bool((numbers % 1 == 0).all())
        low, high = float(numbers.min()), float(numbers.max())
        return {"type": "numeric", "bounds": [low, high], "bins": 10, "integer": whole}, True
    if {d.lower() for d in distinct} <= {"false", "true"} and distinct:
        return {"type": "boolean", "levels": distinct if len(distinct) == 2 else ["false", "true"]}, True
    return {"type": "categorical", "levels": distinct[:MAX_LEVELS] or ["unknown"]}, True


def _flow(value: Any) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("...").strip()
