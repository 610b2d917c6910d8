"""Reading and writing plain tables: CSV (UTF-8, comma) and Parquet."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from medsynx.errors import MedsynxError
from medsynx.files import replacing

if TYPE_CHECKING:
    import pandas as pd

PARQUET = (".parquet", ".pq")


def read_table(path: Path) -> pd.DataFrame:
    """Read a table; CSV cells stay text, spelled as in the file.

    Raises:
        MedsynxError: ``table-unreadable`` or ``table-empty``; never quotes a cell.
    """
    import pandas as pd

    try:
        if path.suffix.lower() in PARQUET:
            frame = pd.read_parquet(path)
        else:
            frame = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
    except UnicodeDecodeError:
        raise MedsynxError("table-unreadable", f"{path.name} is not UTF-8 text") from None
    except pd.errors.EmptyDataError:
        raise MedsynxError("table-empty", f"{path.name} is empty") from None
    except OSError as error:
        raise MedsynxError("table-unreadable", f"{path.name}: {error.strerror or 'cannot be read'}") from None
    except Exception:  # the parsers' own errors quote cells
        raise MedsynxError("table-unreadable", f"{path.name} is not a well-formed table") from None
    if frame.empty:
        raise MedsynxError("table-empty", f"{path.name} has no rows")
    return frame


def write_table(path: Path, chunks: Iterable[pd.DataFrame]) -> None:
    """Write chunks of one table to CSV or Parquet, whole or not at all."""
    with replacing(path) as out:
        if path.suffix.lower() in PARQUET:
            import pyarrow as pa
            import pyarrow.parquet as pq

            writer = None
            for chunk in chunks:
                table = pa.Table.from_pandas(chunk, preserve_index=False, schema=writer.schema if writer else None)
                writer = writer or pq.ParquetWriter(out, table.schema)
                writer.write_table(table)
            if writer:
                writer.close()
        else:
            for number, chunk in enumerate(chunks):
                chunk.to_csv(out, index=False, header=number == 0)
