"""A pydicom decoder plugin for JPEG Extended with 12 bits a sample, which GDCM and Pillow decline; imagecodecs (libjpeg-turbo 3) reads it."""

from __future__ import annotations

from typing import Any

from pydicom.pixels.decoders import JPEGExtended12BitDecoder
from pydicom.uid import JPEGExtended12Bit

DECODER_DEPENDENCIES = {JPEGExtended12Bit: ("imagecodecs",)}


def is_available(uid: str) -> bool:
    """Whether this plugin reads the transfer syntax (pydicom's plugin interface)."""
    return uid == JPEGExtended12Bit


def decode_frame(frame: bytes, runner: Any) -> bytes:
    """One frame as little-endian samples; what the stream says about its depth wins, as in pydicom's own plugins."""
    import imagecodecs

    samples = imagecodecs.jpeg8_decode(frame)
    runner.set_option("bits_allocated", samples.dtype.itemsize * 8)
    return samples.astype(samples.dtype.newbyteorder("<")).tobytes()


def install() -> None:
    """Register the plugin behind pydicom's own; twice is once."""
    if "imagecodecs" not in JPEGExtended12BitDecoder.available_plugins:
        JPEGExtended12BitDecoder.add_plugin("imagecodecs", (__name__, "decode_frame"))
