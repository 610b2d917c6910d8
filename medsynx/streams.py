"""Files that are sent while they are written."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

from medsynx.errors import MedsynxError
from medsynx.files import replacing


class Tail(io.RawIOBase):
    """A writable file that keeps only what was not taken yet, knows how far it has come and cannot go back."""

    def __init__(self) -> None:
        self.sink, self.at = bytearray(), 0

    def writable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """Bytes written so far, taken or not."""
        return self.at

    def write(self, data: object) -> int:
        """Append bytes."""
        added = bytes(data)  # type: ignore[call-overload]
        self.sink += added
        self.at += len(added)
        return len(added)

    def take(self) -> bytes:
        """What was written since the last call."""
        taken = bytes(self.sink)
        self.sink.clear()
        return taken


def write_whole(path: Path, chunks: Iterable[bytes]) -> None:
    """Write a file whole or not at all, whatever stops it. Raises ``disk-full`` with what the disk says."""
    try:
        with replacing(path) as out:
            out.writelines(chunks)
    except OSError as error:
        hint = "Choose a folder that exists and has space."
        raise MedsynxError("disk-full", f"{path} cannot be written: {error.strerror}", hint=hint) from None
