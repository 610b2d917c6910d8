"""What lies in a source: files in folders, in archives and on discs with a DICOMDIR. Nothing here writes."""

from __future__ import annotations

import io
import os
import stat
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from medsynx.errors import MedsynxError
from site_agent.deid.quarantine import Quarantine

LARGEST_FILE = 4 << 30  # bytes in memory at once
LARGEST_ARCHIVE = 64 << 30  # bytes, all members unpacked
LARGEST_NESTED = 256 << 20
MOST_RATIO = 200
STEP = 1 << 20
MOST_MEMBERS = 1_000_000
DEPTH = 2
OFFICE = ("xl/workbook.xml", "[Content_Types].xml")


@dataclass(frozen=True)
class Source:
    """One file: ``path`` on disk, and the members that lead to it inside archives.

    ``name`` is relative to the source folder and is what a person recognises; it never leaves the process but on screen.
    """

    name: str
    path: Path
    members: tuple[str, ...] = ()
    size: int = 0
    modified: int = 0
    trouble: str = ""
    volume_beside: bool = False

    def read(self) -> bytes:
        """The bytes. Raises Quarantine: ``unreadable``, ``too-large``, ``archive-locked`` or ``damaged``."""
        if self.trouble:
            raise Quarantine(self.trouble)
        if self.size > LARGEST_FILE:
            raise Quarantine("too-large")
        try:
            if not self.members:
                return self.path.read_bytes()
            return _member(self.path, self.members)
        except OSError:
            raise Quarantine("unreadable") from None


def _member(path: Path, members: tuple[str, ...]) -> bytes:
    handle: Path | io.BytesIO = path
    data = b""
    for member in members:
        try:
            with zipfile.ZipFile(handle) as archive:
                data = _unpacked(archive, archive.getinfo(member))
        except (zipfile.BadZipFile, NotImplementedError, EOFError, KeyError, zlib.error) as error:
            raise Quarantine("damaged", type(error).__name__) from None
        except RuntimeError:
            raise Quarantine("archive-locked") from None
        handle = io.BytesIO(data)
    return data


def _unpacked(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    return b"".join(_steps(archive, info, LARGEST_FILE))


def _steps(archive: zipfile.ZipFile, info: zipfile.ZipInfo, most: int) -> Iterator[bytes]:
    """A member piece by piece: read at once, one that lies about its size is whole in memory before that is seen."""
    if info.file_size > most:
        raise Quarantine("too-large", "a member of an archive")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # the others cannot be unpacked in steps
        raise Quarantine("damaged", f"compression method {info.compress_type}")
    with archive.open(info) as f:
        while part := f.read(STEP):
            yield part


def check_parts(data: bytes, most: int) -> None:
    """Every part of a workbook is what it declares, and all are at most ``most`` bytes. Raises Quarantine: ``too-large`` or ``damaged``."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            infos = archive.infolist()
            if sum(i.file_size for i in infos) > min(most, MOST_RATIO * max(len(data), 1 << 16)):
                raise Quarantine("too-large", "a workbook, unpacked")
            for info in infos:
                for _ in _steps(archive, info, most):
                    pass
    except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError, zlib.error) as error:
        raise Quarantine("damaged", type(error).__name__) from None


def inflated(data: bytes, limit: int) -> bytes:
    """A raw deflate stream (RFC 1951), as in deflated DICOM. Raises Quarantine: ``too-large`` beyond ``limit`` bytes, or ``damaged``."""
    unpack = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        out = unpack.decompress(data, limit)
        if unpack.unconsumed_tail or not unpack.eof:
            more = unpack.decompress(unpack.unconsumed_tail, 1)
            raise Quarantine("too-large" if more else "damaged", "deflated data")
    except zlib.error as error:
        raise Quarantine("damaged", type(error).__name__) from None
    return out


def find(roots: list[Path]) -> Iterator[Source]:
    """Every file below the roots, in a stable order.

    Raises:
        MedsynxError: ``source-invalid`` when a root does not exist.
    """
    for root in roots:
        if not root.exists():
            raise MedsynxError("source-invalid", f"{root} does not exist")
    several = len(roots) > 1
    for root in roots:
        prefix = f"{root.name}/" if several else ""
        if root.is_dir():
            yield from _folder(root, root, prefix)
        elif root.name.upper() == "DICOMDIR":
            yield from _disc(root, prefix)
        else:
            yield from _file(root, prefix + root.name)


def _folder(root: Path, folder: Path, prefix: str) -> Iterator[Source]:
    try:
        entries = sorted(os.scandir(folder), key=lambda e: e.name)
    except OSError:
        yield Source(f"{prefix}{folder.relative_to(root).as_posix()}/", folder, trouble="unreadable")
        return
    names = {e.name for e in entries}
    for entry in entries:
        path = Path(entry.path)
        name = prefix + path.relative_to(root).as_posix()
        if entry.is_symlink() and not _inside(path, root):
            yield Source(name, path, trouble="link")
        elif entry.is_dir(follow_symlinks=False):
            yield from _folder(root, path, prefix)
        elif entry.is_dir():  # a link to a folder of the source: its files are read where they lie
            yield Source(name, path, trouble="link")
        else:
            yield from _file(path, name, names)


def _inside(path: Path, root: Path) -> bool:
    try:
        return path.resolve(strict=True).is_relative_to(root.resolve())
    except (OSError, RuntimeError):
        return False


def _disc(index: Path, prefix: str) -> Iterator[Source]:
    """The files a DICOMDIR names, and the index itself, which is judged like any file."""
    from pydicom import dcmread

    yield from _file(index, prefix + index.name)
    try:
        records = dcmread(index).DirectoryRecordSequence
    except Exception:  # the index is quarantined as damaged; a disc without one is given as a folder
        return
    for record in records:
        parts = record.get("ReferencedFileID")
        if parts:
            parts = [parts] if isinstance(parts, str) else list(parts)
            path = index.parent.joinpath(*parts)
            if _inside(path, index.parent):
                yield from _file(path, prefix + "/".join(parts))


def _file(path: Path, name: str, beside: set[str] | None = None) -> Iterator[Source]:
    try:
        status = path.stat()
    except OSError:
        yield Source(name, path, trouble="unreadable")
        return
    if not stat.S_ISREG(status.st_mode):
        yield Source(name, path, trouble="not-recognised")
        return
    stem = path.name.removesuffix(".json")
    volume = stem != path.name and bool({stem + ".nii", stem + ".nii.gz"} & (beside or set()))
    whole = Source(name, path, (), status.st_size, status.st_mtime_ns, volume_beside=volume)
    try:
        with path.open("rb") as f:
            head = f.read(4)
    except OSError:
        yield Source(name, path, trouble="unreadable")
        return
    if head == b"PK\x03\x04":
        yield from _archive(whole, path)
    else:
        yield whole


def _archive(whole: Source, handle: Path | io.BytesIO) -> Iterator[Source]:
    """Members of an archive, or the archive itself with its trouble."""

    def refuse(reason: str) -> Source:
        return Source(whole.name, whole.path, whole.members, whole.size, whole.modified, trouble=reason)

    try:
        with zipfile.ZipFile(handle) as archive:
            infos = [i for i in archive.infolist() if not i.is_dir()]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        yield refuse("damaged")
        return
    names = {i.filename for i in infos}
    total = sum(i.file_size for i in infos)
    if len(infos) > MOST_MEMBERS or total > LARGEST_ARCHIVE or total > MOST_RATIO * max(whole.size, 1 << 16):
        yield refuse("archive-bomb")
        return
    if any(i.flag_bits & 1 for i in infos):
        yield refuse("archive-locked")
        return
    if any(n in names for n in OFFICE):
        yield whole
        return
    for info in sorted(infos, key=lambda i: i.filename):
        name = f"{whole.name}!/{info.filename}"
        stem = info.filename.removesuffix(".json")
        volume = stem != info.filename and bool({stem + ".nii", stem + ".nii.gz"} & names)
        inner = Source(
            name, whole.path, (*whole.members, info.filename), info.file_size, whole.modified, volume_beside=volume
        )
        if not info.filename.lower().endswith(".zip"):
            yield inner
        elif len(inner.members) >= DEPTH or info.file_size > LARGEST_NESTED:
            yield Source(name, inner.path, inner.members, inner.size, inner.modified, trouble="archive-bomb")
        else:
            try:
                yield from _archive(inner, io.BytesIO(inner.read()))
            except Quarantine as refused:
                yield Source(name, inner.path, inner.members, inner.size, inner.modified, trouble=refused.reason)
