"""Code streams: nothing stays that a decoder does not read, and the pixels do not change."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import pixel_array

from site_agent.deid.jpeg12 import install
from site_agent.deid.streams import strip_frame, strip_jpeg
from tests.site_agent.deid.helpers import smooth

install()
SECRET = b"Qozivaruk 1950"
SHIPPED = Path(str(get_testdata_file("CT_small.dcm"))).parent


def frames_of(ds):
    return list(generate_frames(ds.PixelData, number_of_frames=int(ds.get("NumberOfFrames", 1) or 1)))


def compressed():
    for path in sorted(SHIPPED.glob("*.dcm")):
        ds = pydicom.dcmread(path, force=True)
        syntax = getattr(ds, "file_meta", {}).get("TransferSyntaxUID")
        if syntax and syntax.is_encapsulated and "PixelData" in ds:
            yield path.name


def segment(marker, body):
    return bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2, "big") + body


def first_frame(name):
    ds = pydicom.dcmread(SHIPPED / name)
    return frames_of(ds)[0], (ds.Rows, ds.Columns)


def jpeg(**options):
    buffer = io.BytesIO()
    grey = smooth(96, 128).astype(np.uint8)
    Image.fromarray(np.stack([grey, grey // 2, 255 - grey], -1)).save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()


def decoded(data):
    return np.array(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize("name", compressed())
def test_the_pixels_stay(name):
    ds = pydicom.dcmread(SHIPPED / name, force=True)
    try:
        before = pixel_array(ds, raw=True)
    except Exception:
        pytest.skip("no decoder reads this file")
    frames = frames_of(ds)
    new = [strip_frame(f + b"\0\0" if i == 0 else f, (ds.Rows, ds.Columns)) for i, f in enumerate(frames)]
    assert all(len(f) % 2 == 0 and strip_frame(f, (ds.Rows, ds.Columns)) == f for f in new)
    ds.PixelData = encapsulate(new)
    assert np.array_equal(pixel_array(ds, raw=True), before)


@pytest.mark.parametrize(
    "tail", [SECRET, SECRET + b"\xff\xd9", jpeg(comment=SECRET), segment(0xFE, SECRET) + b"\xff\xd9"]
)
@pytest.mark.parametrize(
    "name", ["SC_rgb_jpeg_dcmtk.dcm", "MR_small_jpeg_ls_lossless.dcm", "MR_small_jp2klossless.dcm", "JPEG2000.dcm"]
)
def test_nothing_stays_behind_the_end(name, tail):
    frame, size = first_frame(name)
    assert SECRET in frame + tail and strip_frame(frame + tail, size) == strip_frame(frame, size)


def between_scans(data, extra):
    """The progressive JPEG with a segment behind its first scan."""
    at = data.index(b"\xff\xc4", data.index(b"\xff\xda"))
    return data[:at] + extra + data[at:]


@pytest.mark.parametrize("marker", [0xFE, 0xE1, 0xED])
def test_comments_between_progressive_scans_go(marker):
    plain = jpeg(progressive=True)
    data = between_scans(plain, segment(marker, SECRET))
    assert data.count(b"\xff\xda") > 3 and SECRET in data
    out = strip_jpeg(data)
    assert SECRET not in out and np.array_equal(decoded(out), decoded(plain))


def test_the_colour_transform_carries_no_text():
    frame, _ = first_frame("SC_rgb_jpeg_app14_dcmd.dcm")
    at = frame.index(b"Adobe")
    short = frame[: at - 4] + segment(0xEE, b"Adobe" + SECRET[:6] + frame[at + 11 : at + 12]) + frame[at + 12 :]
    long = frame[: at - 4] + segment(0xEE, frame[at : at + 12] + SECRET) + frame[at + 12 :]
    for data in (short, long):
        assert SECRET[:6] in data and strip_frame(data) == strip_frame(frame)
    assert np.array_equal(decoded(strip_frame(long)), decoded(frame))


@pytest.mark.parametrize("marker", [0xDB, 0xC4, 0xDD, 0xC0, 0xDA, 0xF0, 0xF8, 0x02])
def test_a_segment_longer_than_its_content_is_refused(marker):
    data = jpeg()
    at = data.find(bytes([0xFF, marker]))
    size = int.from_bytes(data[at + 2 : at + 4], "big") if at > 0 else 0
    old = data[at + 4 : at + 2 + size] if at > 0 else b""
    longer = (
        (data[:at] + segment(marker, old + SECRET) + data[at + 2 + size :])
        if at > 0
        else data[:2] + segment(marker, SECRET) + data[2:]
    )
    with pytest.raises(ValueError, match=r"unknown|longer"):
        strip_jpeg(longer)


@pytest.mark.parametrize("data", [jpeg()[:-2], jpeg()[:200], b"\xff\xd8", jpeg()[:2] + SECRET + jpeg()[2:], b"nothing"])
def test_a_stream_that_ends_early_or_is_none_is_refused(data):
    with pytest.raises(ValueError):
        strip_frame(data)


@pytest.mark.parametrize("marker", [0x64, 0x63, 0x55, 0x58])
@pytest.mark.parametrize("place", [b"\xff\x90", b"\xff\x93"])
def test_what_only_describes_a_jpeg_2000_goes(marker, place):
    frame, size = first_frame("MR_small_jp2klossless.dcm")
    at, tile = frame.index(place), frame.index(b"\xff\x90")
    extra = segment(marker, b"\0\1" + SECRET)
    data = bytearray(frame[:at] + extra + frame[at:])
    if place == b"\xff\x93":
        length = int.from_bytes(frame[tile + 6 : tile + 10], "big")
        data[tile + 6 : tile + 10] = (length + len(extra)).to_bytes(4, "big")
    assert strip_frame(bytes(data), size) == strip_frame(frame, size)


def test_an_unknown_marker_of_jpeg_2000_is_refused():
    frame, _ = first_frame("MR_small_jp2klossless.dcm")
    at = frame.index(b"\xff\x90")
    with pytest.raises(ValueError, match="unknown"):
        strip_frame(frame[:at] + segment(0x70, SECRET) + frame[at:])


def test_the_code_stream_is_found_by_its_boxes():
    frame, size = first_frame("MR_small_jp2klossless.dcm")

    def box(kind, body):
        return (len(body) + 8).to_bytes(4, "big") + kind + body

    file = (
        box(b"jP  ", b"\r\n\x87\n")
        + box(b"xml ", b"<x>jp2c\xff\x4f " + SECRET + b"</x>")
        + box(b"jp2c", frame.rstrip(b"\0"))
    )
    assert strip_frame(file + box(b"uuid", SECRET), size) == strip_frame(frame, size)


def test_rle_keeps_its_samples_only():
    frame, size = first_frame("SC_rgb_rle.dcm")
    plain = strip_frame(frame, size)
    count = int.from_bytes(frame[:4], "little")
    header = frame[: 4 + 4 * count] + SECRET.ljust(60 - 4 * count, b"x")
    literal = bytes([len(SECRET) - 1]) + SECRET  # a run that decodes to samples nobody asked for
    for data in (header + frame[64:], frame + SECRET, frame + literal):
        assert SECRET in data and strip_frame(data, size) == plain
    gap = bytearray(frame[:64] + SECRET + frame[64:])
    for k in range(1, count + 1):
        gap[4 * k : 4 * k + 4] = (int.from_bytes(frame[4 * k : 4 * k + 4], "little") + len(SECRET)).to_bytes(
            4, "little"
        )
    assert strip_frame(bytes(gap), size) == plain
    assert SECRET not in strip_frame(header + frame[64:])  # the header needs no size
    for broken in (frame[:70], b"\x10" + frame[1:], frame[:64]):
        with pytest.raises(ValueError):
            strip_frame(broken, size)
