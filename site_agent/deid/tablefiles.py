"""Tables as files: CSV, Parquet and workbooks in, CSV and Parquet out. Where rows and header disagree nothing is guessed."""

from __future__ import annotations

import csv
import io
from typing import Any

import numpy as np
import pandas as pd

from site_agent.deid.quarantine import Quarantine
from site_agent.deid.sources import check_parts

LARGEST = 1 << 30  # bytes
MOST_CELLS = 200_000_000


def looks_like_table(data: bytes, text: str | None) -> bool:
    """Parquet by magic, a workbook by its parts, CSV by a header line of several names."""
    if data[:4] == b"PAR1" or (data[:4] == b"PK\x03\x04" and b"xl/workbook.xml" in data):
        return True
    if text is None:
        return False
    first = text.lstrip("\ufeff").split("\n", 1)
    return len(first) == 2 and "," in first[0] and len(first[0]) < 100_000 and first[1].strip() != ""


def read_table(data: bytes) -> pd.DataFrame:
    """The table with the column names of the file. Raises Quarantine: ``damaged``, ``empty``, ``too-large`` or ``table-undeclared``."""
    if len(data) > LARGEST:
        raise Quarantine("too-large", "table")
    try:
        frame = (_parquet if data[:4] == b"PAR1" else _workbook if data[:4] == b"PK\x03\x04" else _csv)(data)
    except Quarantine:
        raise
    except Exception as error:  # parsers quote cells in their messages: the type is enough
        raise Quarantine("damaged", type(error).__name__) from None
    twice = int(frame.columns.duplicated().sum())
    if twice:
        raise Quarantine("damaged", f"{twice} column names are used twice")
    if frame.empty:
        raise Quarantine("empty", "no rows")
    return frame


def write_table(frame: pd.DataFrame, kind: str) -> bytes:
    """Text columns as ``parquet`` or ``csv``."""
    if kind == "parquet":
        buffer = io.BytesIO()
        frame.astype(str).to_parquet(buffer, index=False)
        return buffer.getvalue()
    return frame.to_csv(index=False, lineterminator="\n").encode()


def spelling(value: Any) -> str:
    """A cell as a person would write it, '' for nothing."""
    if value is None or value is pd.NaT or value is pd.NA or (isinstance(value, float) and np.isnan(value)):
        return ""
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    if isinstance(value, bool | np.bool_):
        return str(bool(value)).lower()
    if isinstance(value, pd.Timestamp):
        return value.date().isoformat()
    return str(value).strip()


def _csv(data: bytes) -> pd.DataFrame:
    text = data.decode("utf-8-sig")
    if "\0" in text:
        raise Quarantine("damaged", "a zero byte in text")
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    header = next(rows, [])
    count = 0
    for row in rows:
        if not row or (len(row) == 1 < len(header) and not row[0].strip()):
            continue  # a blank line
        if len(row) != len(
            header
        ):  # pandas would take the first field for an index, and move every value by one column
            raise Quarantine("damaged", f"row {count + 1} has {len(row)} fields, the header {len(header)}")
        count += 1
    frame = pd.read_csv(io.StringIO(text), header=None, index_col=False, dtype=str, keep_default_na=False)
    if list(frame.iloc[0]) != header or len(frame) != count + 1:
        raise Quarantine("damaged", "two readers of CSV do not agree on the rows")
    return _headed(frame)


def _workbook(data: bytes) -> pd.DataFrame:
    check_parts(data, LARGEST)
    sheets = pd.read_excel(io.BytesIO(data), sheet_name=None, header=None, dtype=str, keep_default_na=False)
    filled = [s for s in sheets.values() if len(s) > 1]
    if len(filled) != 1:
        raise Quarantine("table-undeclared", f"{len(filled)} sheets with rows; save one as CSV")
    frame = _headed(filled[0].fillna(""))
    nameless = frame.columns == ""
    if (frame.loc[:, nameless] != "").any(axis=None):
        raise Quarantine("damaged", "cells beside the header")
    return frame.loc[:, ~nameless]


def _headed(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.iloc[1:].set_axis(list(frame.iloc[0]), axis=1).reset_index(drop=True)


def _parquet(data: bytes) -> pd.DataFrame:
    from pyarrow import parquet

    file = parquet.ParquetFile(io.BytesIO(data))
    if file.metadata.num_rows * file.metadata.num_columns > MOST_CELLS:
        raise Quarantine("too-large", "table")
    return file.read().to_pandas(
        ignore_metadata=True
    )  # an index is a column like any other: it needs the dictionary's word
