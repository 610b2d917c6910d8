"""DataFrame <-> integer codes <-> one-hot tensors, from the public dictionary alone.

A column's codes are 0..K-1. Binned columns (numeric, date): one code a bin, then ``missing``. Level columns (categorical, ordinal, boolean):
one code a level, then ``other``, then ``missing``. Nothing is fitted: a row's codes depend on that row and the manifest only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medsynx.errors import MedsynxError
from medsynx.study import BooleanColumn, DataColumn, DateColumn, LevelColumn, NumericColumn, Study

if TYPE_CHECKING:
    import pandas as pd

Codes = NDArray[np.int64]


@dataclass
class EncodeReport:
    """What encoding did to a table: counts by column, and records ``left_out`` by reason. It stays at the site."""

    rows: int = 0
    clipped: dict[str, int] = field(default_factory=dict)
    other: dict[str, int] = field(default_factory=dict)
    missing: dict[str, int] = field(default_factory=dict)
    dropped_columns: list[str] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)


def size(column: DataColumn) -> int:
    """Number of codes of a column, ``other`` and ``missing`` included."""
    return len(column.levels) + 2 if isinstance(column, LevelColumn | BooleanColumn) else len(column.cuts)


def values(column: DataColumn) -> int:
    """Number of codes that are values of the dictionary: without ``other`` and ``missing``."""
    return len(column.levels) if isinstance(column, LevelColumn | BooleanColumn) else len(column.cuts) - 1


def sizes(study: Study) -> tuple[int, ...]:
    """Number of codes of each data column, in manifest order."""
    return tuple(size(c) for c in study.data_columns.values())


def labels(column: DataColumn) -> list[str]:
    """A short label for each code, for axes and tables."""
    if isinstance(column, LevelColumn | BooleanColumn):
        return [*column.levels, "other", "missing"]
    return [f"{a:g}–{b:g}" for a, b in zip(column.cuts, column.cuts[1:], strict=False)] + ["missing"]


def encode(frame: pd.DataFrame, study: Study, *, strict: bool = False) -> tuple[Codes, EncodeReport]:
    """Encode a table.

    Args:
        frame: one row a record; a column the dictionary lacks is dropped and named.
        strict: refuse unknown columns and unknown levels instead.

    Returns:
        int64 codes of shape (rows, data columns) in manifest order, and what was clipped, unseen or missing.

    Raises:
        MedsynxError: ``table-empty``, ``column-missing``, ``column-unknown``, ``column-type``, ``level-unknown``, ``value-not-finite``.
    """
    if len(frame) == 0:
        raise MedsynxError("table-empty", "the table has no rows")
    absent = [n for n in study.columns if n not in frame.columns]
    if absent:
        raise MedsynxError("column-missing", f"the table lacks {', '.join(absent)}")
    report = EncodeReport(rows=len(frame), dropped_columns=[str(c) for c in frame.columns if c not in study.columns])
    if strict and report.dropped_columns:
        raise MedsynxError("column-unknown", f"not in the dictionary: {', '.join(report.dropped_columns)}")
    missing = frozenset(study.missing_values)
    out = np.empty((len(frame), len(study.data_columns)), np.int64)
    for j, (name, column) in enumerate(study.data_columns.items()):
        values = frame[name]
        absent_cells = values.isna().to_numpy() | values.astype(str).str.strip().isin(missing).to_numpy()
        report.missing[name] = int(absent_cells.sum())
        if isinstance(column, LevelColumn | BooleanColumn):
            out[:, j] = _encode_levels(name, values, column, absent_cells, report, strict)
        else:
            out[:, j] = _encode_binned(name, values, column, absent_cells, report)
    return out, report


def _encode_levels(
    name: str,
    values: pd.Series,
    column: LevelColumn | BooleanColumn,
    absent: NDArray[np.bool_],
    report: EncodeReport,
    strict: bool,
) -> Codes:
    known = len(column.levels)
    code = {level: k for k, level in enumerate(column.levels)}
    seen = [code.get(_spelling(v, code), known) for v in values]
    codes = np.where(absent, known + 1, np.asarray(seen, np.int64))
    report.other[name] = int((codes == known).sum())
    if strict and report.other[name]:
        raise MedsynxError(
            "level-unknown",
            f"columns.{name}: {report.other[name]} of {len(values)} cells hold no level of the dictionary",
        )
    return codes


def _spelling(value: Any, code: dict[str, int]) -> str:
    """A cell as the dictionary may spell it: a whole number read as a float (a column with gaps) also matches its integer spelling."""
    if isinstance(value, bool | np.bool_):
        for candidate in (str(value), str(value).lower(), "yes" if value else "no", str(int(value))):
            if candidate in code:
                return candidate
    text = str(value).strip()
    if text in code:
        return text
    try:
        number = float(text)
    except ValueError:
        return text
    return str(int(number)) if number.is_integer() else f"{number:g}"


def _encode_binned(
    name: str, values: pd.Series, column: NumericColumn | DateColumn, absent: NDArray[np.bool_], report: EncodeReport
) -> Codes:
    import pandas as pd

    if isinstance(column, DateColumn):
        stamps = pd.to_datetime(values.mask(absent), errors="coerce", format="ISO8601", utc=True)
        numbers = ((stamps - pd.Timestamp(column.origin, tz="UTC")) / pd.Timedelta(days=1)).to_numpy(float)
    else:
        numbers = pd.to_numeric(values.mask(absent), errors="coerce").to_numpy(float)
    wrong = int((np.isnan(numbers) & ~absent).sum())
    if wrong:
        kind = "ISO dates" if isinstance(column, DateColumn) else "numbers"
        raise MedsynxError("column-type", f"columns.{name}: {wrong} of {len(values)} cells are not {kind}")
    infinite = int(np.isinf(numbers).sum())
    if infinite:
        raise MedsynxError("value-not-finite", f"columns.{name}: {infinite} of {len(values)} cells are infinite")
    lower, upper = column.bounds
    report.clipped[name] = int(((numbers < lower) | (numbers > upper)).sum())
    bins = len(column.cuts) - 1
    codes = np.searchsorted(np.asarray(column.cuts), np.clip(numbers, lower, upper), side="right") - 1
    return np.where(absent, bins, np.clip(codes, 0, bins - 1)).astype(np.int64)


def decode(codes: Codes, study: Study, rng: np.random.Generator) -> pd.DataFrame:
    """Codes back to a table in the dictionary's spelling.

    A bin becomes a uniform value inside it (whole for ``integer`` and dates), ``other`` the word ``other``, ``missing`` an empty cell. Values
    keep the study's order constraints wherever the bins let them, and then stay in their bins.

    Args:
        codes: int64, shape (rows, data columns), manifest order.
        rng: draws the values inside bins.
    """
    import pandas as pd

    out: dict[str, Any] = {}
    binned = {
        name: _Bins(codes[:, j], column, rng)
        for j, (name, column) in enumerate(study.data_columns.items())
        if isinstance(column, NumericColumn | DateColumn)
    }
    _put_in_order(binned, study)
    for j, (name, column) in enumerate(study.data_columns.items()):
        if isinstance(column, LevelColumn | BooleanColumn):
            out[name] = np.array([*column.levels, _word_for_other(column), None], dtype=object)[codes[:, j]]
            continue
        value, gap = binned[name].value, binned[name].gap
        if isinstance(column, DateColumn):
            days = pd.Series(pd.Timestamp(column.origin) + pd.to_timedelta(value, unit="D")).dt.strftime("%Y-%m-%d")
            out[name] = days.mask(gap, None)
        elif column.integer:
            out[name] = pd.array(value.astype(np.int64), dtype="Int64")
            out[name][gap] = pd.NA
        else:
            out[name] = np.where(gap, np.nan, value)
    return pd.DataFrame(out)


class _Bins:
    """Values drawn inside the bins of one column: ``value``, within ``low`` and ``high`` (both included), and where it is missing."""

    def __init__(self, code: Codes, column: NumericColumn | DateColumn, rng: np.random.Generator) -> None:
        cuts = np.asarray(column.cuts)
        bins = len(cuts) - 1
        at = np.minimum(code, bins - 1)
        self.gap, self.rng = code == bins, rng
        self.whole = isinstance(column, DateColumn) or column.integer
        self.shift = column.origin.toordinal() if isinstance(column, DateColumn) else 0
        self.low, self.high = cuts[at], cuts[at + 1]
        if self.whole:
            self.low = np.ceil(self.low)
            self.high = np.where(at == bins - 1, np.floor(self.high), np.ceil(self.high) - 1)
        self.digits = 10.0 ** _decimals(column)
        self.value = self.draw(self.low, self.high)

    def draw(self, low: NDArray[np.float64], high: NDArray[np.float64]) -> NDArray[np.float64]:
        """Uniform values; cut, not rounded, to few digits: rounding could carry one into the next bin."""
        if self.whole:
            return low + np.floor(self.rng.random(len(low)) * (high - low + 1))
        return np.maximum(low, np.floor((low + self.rng.random(len(low)) * (high - low)) * self.digits) / self.digits)


def _put_in_order(binned: dict[str, _Bins], study: Study) -> None:
    """Draw values again, within their bins, where the first of an ordered pair came out above the second."""
    pairs = [(binned[a], binned[b]) for a, b in study.orders if a in binned]

    def wrong(a: _Bins, b: _Bins) -> NDArray[np.int64]:
        return np.flatnonzero((a.value + a.shift > b.value + b.shift) & ~a.gap & ~b.gap)

    for a, b in pairs * 3:
        at = wrong(a, b)
        turn = b.shift - a.shift
        a.value[at] = a.draw(a.low[at], np.minimum(a.high[at], b.high[at] + turn))
        b.value[at] = b.draw(np.maximum(b.low[at], a.value[at] - turn), b.high[at])
    # Chains may still be out of order: then every value goes as low as its bin and its predecessors let it.
    at = np.unique(np.concatenate([wrong(a, b) for a, b in pairs] or [np.empty(0, np.int64)]))
    for bins in {id(x): x for pair in pairs for x in pair}.values():
        bins.value[at] = bins.low[at]
    for a, b in pairs * len(pairs):
        both = at[~a.gap[at] & ~b.gap[at]]
        b.value[both] = np.maximum(b.value[both], a.value[both] + a.shift - b.shift)


def _word_for_other(column: LevelColumn | BooleanColumn) -> str:
    """``other``, or a longer word when that is a level of this column."""
    word = "other"
    while word in column.levels:
        word += "_"
    return word


def _decimals(column: NumericColumn | DateColumn) -> int:
    """Digits that keep a hundredth of the narrowest bin."""
    narrowest = float(np.diff(column.cuts).min())
    return max(0, int(np.ceil(2 - np.log10(narrowest))))


def allowed(conditions: Mapping[str, Any], study: Study) -> dict[int, NDArray[np.bool_]]:
    """Conditions in the dictionary's words as masks over codes.

    Args:
        conditions: column -> a level, a number (its bin), None (missing), a list of these, or ``{"min": a, "max": b}`` for a binned
            column: the bins that lie within; either end may be left out.

    Returns:
        Column position -> mask over the column's codes.

    Raises:
        MedsynxError: ``condition-invalid``.
    """
    out, names = {}, list(study.data_columns)
    for name, wanted in conditions.items():
        if name not in names:
            raise MedsynxError("condition-invalid", f"the study has no column {name!r}")
        column = study.data_columns[name]
        mask = np.zeros(size(column), bool)
        if isinstance(wanted, dict):
            if isinstance(column, LevelColumn | BooleanColumn) or not set(wanted) <= {"min", "max"} or not wanted:
                raise MedsynxError("condition-invalid", f"columns.{name}: a range is {{min, max}} of a binned column")
            low, high = (
                _day(column, wanted[k]) if k in wanted else e
                for k, e in zip(("min", "max"), column.bounds, strict=True)
            )
            cuts = np.asarray(column.cuts)
            mask[:-1] = (cuts[:-1] >= low) & (cuts[1:] <= high)
            if not mask.any():
                raise MedsynxError(
                    "condition-invalid", f"columns.{name}: no bin of the dictionary lies within this range"
                )
        else:
            for value in wanted if isinstance(wanted, list | tuple) else [wanted]:
                mask[_code(name, column, value)] = True
        out[names.index(name)] = mask
    return out


def _code(name: str, column: DataColumn, value: Any) -> int:
    if value is None:
        return size(column) - 1
    if isinstance(column, LevelColumn | BooleanColumn):
        known = {level: k for k, level in enumerate([*column.levels, _word_for_other(column)])}
        spelled = _spelling(value, known)
        if spelled not in known:
            raise MedsynxError("condition-invalid", f"columns.{name}: no such level in the dictionary")
        return known[spelled]
    number, (lower, upper) = _day(column, value), column.bounds
    if not lower <= number <= upper:
        raise MedsynxError("condition-invalid", f"columns.{name}: outside the bounds {lower:g} to {upper:g}")
    return min(int(np.searchsorted(column.cuts, number, side="right")) - 1, len(column.cuts) - 2)


def _day(column: NumericColumn | DateColumn, value: Any) -> float:
    """A number, or a date as days since the column's origin."""
    import pandas as pd

    try:
        if isinstance(column, DateColumn) and not isinstance(value, int | float):
            return (pd.Timestamp(value) - pd.Timestamp(column.origin)) / pd.Timedelta(days=1)
        return float(value)
    except (TypeError, ValueError):
        raise MedsynxError("condition-invalid", "a binned column is compared with a number or an ISO date") from None


def to_onehot(codes: Codes, study: Study) -> NDArray[np.float32]:
    """Codes (rows, columns) to one-hot float32 (rows, sum of sizes), the columns' blocks in manifest order."""
    width = sizes(study)
    offsets = np.concatenate([[0], np.cumsum(width)[:-1]]).astype(np.int64)
    out = np.zeros((len(codes), int(sum(width))), np.float32)
    np.put_along_axis(out, codes + offsets, 1.0, axis=1)
    return out


def from_onehot(tensor: NDArray[Any], study: Study) -> Codes:
    """One-hot (or scores) back to codes: the largest entry of each column's block."""
    edges = np.cumsum(sizes(study))[:-1]
    return np.stack([block.argmax(axis=1) for block in np.split(tensor, edges, axis=1)], axis=1).astype(np.int64)
