"""Facts and arrays in one file that is there whole or not at all, for its owner's eyes only. No pickle."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from medsynx.files import PRIVATE, replacing
from medsynx.generators.base import Arrays


def write(file: Path, facts: Any, arrays: Arrays) -> None:
    """Replace the file; it is on the disk when this returns.

    Args:
        facts: anything JSON-able.
        arrays: by name; none is called ``facts``.
    """
    with replacing(file, PRIVATE) as out:
        np.savez(out, facts=np.frombuffer(json.dumps(facts).encode(), np.uint8), **arrays)


def read(file: Path) -> tuple[Any, Arrays] | None:
    """Facts and arrays, or None when there is no such file or it is spoilt (its zip's checksums say so)."""
    try:
        with np.load(file, allow_pickle=False) as held:
            arrays = dict(held)
        return json.loads(arrays.pop("facts").tobytes()), arrays
    except (OSError, ValueError, KeyError, TypeError, EOFError, NotImplementedError, BadZipFile, zlib.error):
        return None
