"""Archives, workbooks and deflated data that unpack to more than they say: bounded in memory, and refused."""

from __future__ import annotations

import io
import tracemalloc
import zipfile
import zlib

import pytest

from site_agent.deid.quarantine import Quarantine
from site_agent.deid.sources import Source, find, inflated
from site_agent.deid.tablefiles import read_table

ZEROS = 64 << 20


def archive(name="a", size=ZEROS, declared=None, method=zipfile.ZIP_DEFLATED):
    """A zip with one member of zeros, which may declare another size, and the check sum to go with it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as z:
        z.writestr(name, bytes(size))
    data = bytearray(buffer.getvalue())
    if declared is not None:
        for magic, at in ((b"PK\x03\x04", 14), (b"PK\x01\x02", 16)):
            begin = data.find(magic) + at
            data[begin : begin + 4] = zlib.crc32(bytes(declared)).to_bytes(4, "little")
            data[begin + 8 : begin + 12] = declared.to_bytes(4, "little")
    return bytes(data)


def peak(work):
    tracemalloc.start()
    try:
        reason = None
        try:
            work()
        except Quarantine as refused:
            reason = refused.reason
        return reason, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_member_that_lies_about_its_size_is_never_whole_in_memory(tmp_path):
    (tmp_path / "a.zip").write_bytes(archive(declared=100))
    (source,) = find([tmp_path])
    assert source.members == ("a",)
    _, memory = peak(source.read)
    assert memory < ZEROS / 4


def test_a_member_of_a_method_that_cannot_be_bounded_is_refused(tmp_path):
    (tmp_path / "a.zip").write_bytes(archive(declared=100, method=zipfile.ZIP_BZIP2))
    (source,) = find([tmp_path])
    reason, memory = peak(source.read)
    assert reason == "damaged" and memory < ZEROS / 4


def test_a_member_beyond_the_limit_is_refused(tmp_path, monkeypatch):
    from site_agent.deid import sources

    (tmp_path / "a.zip").write_bytes(archive(size=4 << 20))
    (source,) = find([tmp_path])
    assert len(source.read()) == 4 << 20
    monkeypatch.setattr(sources, "LARGEST_FILE", 1 << 20)
    for one in (source, Source(source.name, source.path, source.members)):
        with pytest.raises(Quarantine) as refused:
            one.read()
        assert refused.value.reason == "too-large"


def test_a_workbook_is_no_way_around_the_limits(tmp_path):
    bomb = archive("xl/workbook.xml")
    (tmp_path / "a.xlsx").write_bytes(bomb)
    (source,) = find([tmp_path])
    assert source.trouble == "archive-bomb"
    for data, reason in ((bomb, "too-large"), (archive("xl/workbook.xml", declared=100), "damaged")):
        got, memory = peak(lambda data=data: read_table(data))
        assert got == reason and memory < ZEROS / 4


def deflated(data):
    pack = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return pack.compress(data) + pack.flush()


def test_deflated_data_has_a_limit():
    packed = deflated(bytes(ZEROS))
    assert inflated(deflated(b"some text"), 9) == b"some text" == inflated(deflated(b"some text") + b"\0", 100)
    for data, limit, reason in (
        (packed, 1 << 20, "too-large"),
        (packed[:-9], ZEROS * 2, "damaged"),
        (b"\xff" * 9, 99, "damaged"),
    ):
        got, memory = peak(lambda data=data, limit=limit: inflated(data, limit))
        assert got == reason and (reason == "damaged" or memory < ZEROS / 4)
