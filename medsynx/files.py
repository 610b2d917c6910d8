"""Files that are there whole or not at all, whatever stops the writer."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

PRIVATE = 0o600  #: for the owner's eyes only


@contextmanager
def replacing(path: Path, mode: int = 0o666) -> Iterator[BinaryIO]:
    """A file to write that takes the place of ``path`` when the block ends; both are on the disk then. Nothing is left of a block that fails.

    Args:
        mode: as :func:`os.open` takes it (the umask applies), from the first byte on.
    """
    # Two processes or threads do not write into one, nor do those of two containers that share a folder and have one process id.
    part = path.with_name(f"{path.name}.{secrets.token_hex(8)}.part")
    try:
        with os.fdopen(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode), "wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    with suppress(OSError):  # not every file system syncs folders, nor may everybody who writes into one read it
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write(path: Path, content: str | bytes, mode: int = 0o666) -> None:
    """Put this content (text as UTF-8) in the place of the file; see :func:`replacing`."""
    with replacing(path, mode) as out:
        out.write(content.encode() if isinstance(content, str) else content)
