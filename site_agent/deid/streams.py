"""Comments inside compressed pixels: JPEG, JPEG-LS and JPEG 2000 code streams carry text nobody sees. Taken out without decoding."""

from __future__ import annotations

KEEP_APPLICATION = {0xEE: b"Adobe", 0xE8: b"mrfx"}  # the colour transform; JPEG-LS colour transform (HP)


def strip_frame(frame: bytes) -> bytes:
    """One frame without comments and without bytes after its end; unchanged when it is none of these formats (RLE)."""
    if frame[:2] == b"\xff\xd8":
        return strip_jpeg(frame)
    if frame[:4] == b"\xff\x4f\xff\x51":
        return _strip_j2k(frame)
    if frame[4:8] == b"jP  ":
        at = frame.find(b"jp2c")  # a JP2 box around the code stream: DICOM wants the stream alone
        if at > 0 and frame[at + 4 : at + 6] == b"\xff\x4f":
            return _strip_j2k(frame[at + 4 :])
    return frame


def strip_jpeg(data: bytes) -> bytes:
    """Drop COM and APPn (ISO/IEC 10918-1, B.2.4) but the two that decoders need. Raises ValueError on a broken stream."""
    out, i = bytearray(data[:2]), 2
    while i + 4 <= len(data) and data[i] == 0xFF:
        marker = data[i + 1]
        if marker == 0xFF:
            i += 1
            continue
        if marker == 0xDA:
            break
        size = int.from_bytes(data[i + 2 : i + 4], "big")
        if size < 2 or i + 2 + size > len(data):
            raise ValueError("a segment is longer than the stream")
        application = 0xE0 <= marker <= 0xEF
        needed = application and data[i + 4 :].startswith(KEEP_APPLICATION.get(marker, b"\0\0\0\0\0"))
        if needed or not (marker == 0xFE or application):
            out += data[i : i + 2 + size]
        i += 2 + size
    end = data.rfind(b"\xff\xd9")
    body = data[i : end + 2] if end > i else data[i:]
    return _even(bytes(out) + body)


def _strip_j2k(data: bytes) -> bytes:
    """Drop COM (ISO/IEC 15444-1, A.9.2) from the main header and from tile-part headers, whose length (Psot) is mended."""
    out, i, body = bytearray(data[:2]), 2, b""
    while i + 4 <= len(data):
        marker = data[i : i + 2]
        if marker == b"\xff\x90":
            body = _tile_parts(data, i)
            break
        size = int.from_bytes(data[i + 2 : i + 4], "big")
        if marker != b"\xff\x64":
            out += data[i : i + 2 + size]
        i += 2 + size
    if not body:
        raise ValueError("no tile in the stream")
    return _even(bytes(out) + body)


def _tile_parts(data: bytes, i: int) -> bytes:
    out = bytearray()
    while data[i : i + 2] == b"\xff\x90":
        length = int.from_bytes(data[i + 6 : i + 10], "big")
        end = i + length if length else _end_of_codestream(data)
        head, j = bytearray(data[i : i + 12]), i + 12
        while j + 4 <= end and data[j : j + 2] != b"\xff\x93":
            size = int.from_bytes(data[j + 2 : j + 4], "big")
            if data[j : j + 2] != b"\xff\x64":
                head += data[j : j + 2 + size]
            j += 2 + size
        part = head + data[j:end]
        if length:
            part[6:10] = len(part).to_bytes(4, "big")
        out += part
        i = end
    return bytes(out) + b"\xff\xd9"


def _end_of_codestream(data: bytes) -> int:
    at = data.rfind(b"\xff\xd9")
    return at if at > 0 else len(data)


def _even(data: bytes) -> bytes:
    return data + b"\0" if len(data) % 2 else data
