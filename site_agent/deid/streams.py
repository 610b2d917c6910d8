"""Compressed pixels without anything a decoder does not read: JPEG, JPEG-LS, JPEG 2000 and RLE streams carry text nobody sees.

Markers are parsed, never searched for, and what follows the first end of image goes. A form that is not known raises ValueError. What no
parser can see is left to the second reader: bytes behind the last coded block inside a scan or a tile.
"""

from __future__ import annotations

import re

JPEG_FRAMES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # SOFn of ISO/IEC 10918-1, SOF55 of 14495-1
SCAN_END = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)
SCAN_END_LS = re.compile(rb"\xff[\x80-\xcf\xd8-\xfe]", re.DOTALL)  # JPEG-LS stuffs one bit, so a byte below 80 is data
#: markers of ISO/IEC 15444-1 and -15 that decoders need, and those that only describe: lengths, registration, comments
J2K_NEEDED = {0x50, 0x51, 0x52, 0x53, 0x56, 0x59, 0x5C, 0x5D, 0x5E, 0x5F, 0x60, 0x61}
J2K_DROPPED = {0x55, 0x57, 0x58, 0x63, 0x64}


def strip_frame(frame: bytes, size: tuple[int, int] | None = None) -> bytes:
    """One frame without comments and without bytes after its end, an even number of bytes.

    Args:
        frame: JPEG, JPEG-LS, JPEG 2000 or RLE; anything else raises ValueError.
        size: rows and columns. RLE does not say where its last segment ends; without them bytes behind it stay.
    """
    if frame[:2] == b"\xff\xd8":
        return strip_jpeg(frame)
    if frame[:4] == b"\xff\x4f\xff\x51":
        return _strip_j2k(frame)
    if frame[4:8] == b"jP  ":  # boxes around the code stream: DICOM wants the stream alone
        return _strip_j2k(_codestream(frame))
    return _strip_rle(frame, size)


def strip_jpeg(data: bytes) -> bytes:
    """Every segment a decoder needs, up to the first end of image. Raises ValueError on a broken stream."""
    out, i, frame = bytearray(data[:2]), 2, 0
    while True:
        while data[i : i + 2] == b"\xff\xff":
            i += 1
        if i + 2 > len(data) or data[i] != 0xFF:
            raise ValueError("no marker where one must be")
        marker = data[i + 1]
        if marker == 0xD9:
            return _even(bytes(out) + b"\xff\xd9")
        size = int.from_bytes(data[i + 2 : i + 4], "big")
        if size < 2 or i + 2 + size > len(data):
            raise ValueError("a segment is longer than the stream")
        body = data[i + 4 : i + 2 + size]
        i += 2 + size
        if marker in JPEG_FRAMES:
            if frame:
                raise ValueError("a second picture")
            frame = marker
        out += _segment(marker, body)
        if marker == 0xDA:
            end = (SCAN_END_LS if frame == 0xF7 else SCAN_END).search(data, i)
            if end is None:
                raise ValueError("no end of image")
            out += data[i : end.start()]
            i = end.start()


def _segment(marker: int, body: bytes) -> bytes:
    """The segment as it is kept, b'' when no decoder needs it. Of the two application segments in use only the colour transform stays."""
    if marker == 0xEE and body[:5] == b"Adobe" and len(body) >= 12:
        body = b"Adobe\0\x64\0\0\0\0" + body[11:12]
    elif marker == 0xE8 and body[:4] == b"mrfx" and len(body) >= 5:  # JPEG-LS of HP
        body = body[:5]
    elif marker == 0xFE or 0xE0 <= marker <= 0xEF:
        return b""
    elif not _exact(marker, body):
        raise ValueError(f"marker {marker:02X} is unknown, or longer than what it says")
    return b"\xff" + bytes([marker]) + (len(body) + 2).to_bytes(2, "big") + body


def _exact(marker: int, body: bytes) -> bool:
    """Whether a segment holds what its form asks for and not one byte more."""
    if marker in JPEG_FRAMES:
        return len(body) >= 6 and len(body) == 6 + 3 * body[5]
    if marker == 0xDA:
        return len(body) >= 1 and len(body) == 4 + 2 * body[0]
    if marker == 0xF8:  # JPEG-LS presets; its colour tables are no use in DICOM
        return len(body) == 11 and body[0] == 1
    if marker in (0xDC, 0xDD):
        return len(body) == 2
    if marker not in (0xC4, 0xDB):
        return False
    at = 0
    while at < len(body):  # several tables in one segment
        at += 17 + sum(body[at + 1 : at + 17]) if marker == 0xC4 else 65 + 64 * (body[at] >> 4 & 1)
    return at == len(body)


def _codestream(data: bytes) -> bytes:
    """The first contiguous code stream of a JP2 file, found by its boxes."""
    i = 0
    while i + 8 <= len(data):
        length, kind, head = int.from_bytes(data[i : i + 4], "big"), data[i + 4 : i + 8], 8
        if length == 1:
            length, head = int.from_bytes(data[i + 8 : i + 16], "big"), 16
        end = i + length if length else len(data)
        if kind == b"jp2c":
            return data[i + head : end]
        if length and length < head:
            break
        i = end
    raise ValueError("no code stream in the boxes")


def _strip_j2k(data: bytes) -> bytes:
    """What describes goes from the main header and from the tile-part headers, whose length (Psot) is mended."""
    header, i = _j2k_header(data, 2, b"\xff\x90")
    out, parts = bytearray(data[:2]) + header, 0
    while data[i : i + 2] == b"\xff\x90":
        length = int.from_bytes(data[i + 6 : i + 10], "big")
        if length and length < 14:
            raise ValueError("a tile is shorter than its header")
        header, body = _j2k_header(data, i + 12, b"\xff\x93")
        end = i + length if length else data.find(b"\xff\xd9", body)  # no such pair occurs in coded data
        if not body <= end <= len(data):
            raise ValueError("a tile ends outside the stream")
        part = bytearray(data[i : i + 12]) + header + data[body:end]
        if length:
            part[6:10] = len(part).to_bytes(4, "big")
        out += part
        i, parts = end, parts + 1
    if not parts:
        raise ValueError("no tile in the stream")
    return _even(bytes(out) + b"\xff\xd9")


def _j2k_header(data: bytes, i: int, end: bytes) -> tuple[bytes, int]:
    """Needed marker segments from ``i`` to the marker ``end``, and where that is."""
    out = bytearray()
    while data[i : i + 2] != end:
        size = int.from_bytes(data[i + 2 : i + 4], "big")
        if size < 2 or i + 2 + size > len(data) or data[i] != 0xFF:
            raise ValueError("a header is longer than the stream")
        if data[i + 1] in J2K_NEEDED:
            out += data[i : i + 2 + size]
        elif data[i + 1] not in J2K_DROPPED:
            raise ValueError(f"marker {data[i + 1]:02X} is unknown")
        i += 2 + size
    return bytes(out), i


def _strip_rle(data: bytes, size: tuple[int, int] | None) -> bytes:
    """PS3.5 G.5: a header of 64 bytes with unused offsets 0, then the segments without a gap."""
    count = int.from_bytes(data[:4], "little")
    starts = [int.from_bytes(data[4 * k : 4 * k + 4], "little") for k in range(1, count + 1)] if count <= 15 else []
    if not starts or starts != sorted(starts) or starts[0] < 64 or starts[-1] >= len(data):
        raise ValueError("no RLE header")
    segments = [data[a:b] for a, b in zip(starts, [*starts[1:], len(data)], strict=True)]
    if size:
        segments = [_ended(s, size[0] * size[1]) for s in segments]
    out, offsets = bytearray(64), [count]
    for segment in segments:
        offsets.append(len(out))
        out += _even(segment)
    out[: 4 * len(offsets)] = b"".join(n.to_bytes(4, "little") for n in offsets)
    return bytes(out)


def _ended(segment: bytes, samples: int) -> bytes:
    """An RLE segment up to its last sample."""
    i = done = 0
    while done < samples and i < len(segment):
        n = segment[i]
        i += n + 2 if n < 128 else 2 if n > 128 else 1
        done += n + 1 if n < 128 else 257 - n if n > 128 else 0
    if done != samples or i > len(segment):
        raise ValueError("an RLE segment does not end with its last sample")
    return segment[:i]


def _even(data: bytes) -> bytes:
    return data + b"\0" if len(data) % 2 else data
