"""Pictures."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from site_agent.deid.pictures import clean_picture
from site_agent.deid.quarantine import Quarantine
from site_agent.deid.recipe import Recipe
from tests.site_agent.deid.helpers import FAMILY, KEY, OTHER, smooth, write_text
from tests.site_agent.deid.test_deid_pixels import CORNER, TEXT, legible


def encoded(samples, form, **options):
    buffer = io.BytesIO()
    Image.fromarray(samples).save(buffer, form, **options)
    return buffer.getvalue()


def with_metadata(samples, form):
    exif = Image.Exif()
    exif[0x010E], exif[0x013B] = f"{FAMILY} left knee", OTHER
    if form == "PNG":
        info = PngImagePlugin.PngInfo()
        info.add_text("Comment", f"{FAMILY} was here")
        info.add_itxt("XML:com.adobe.xmp", f"<x>{OTHER}</x>")
        return encoded(samples, "PNG", pnginfo=info, exif=exif)
    if form == "JPEG":
        return encoded(samples, "JPEG", exif=exif, comment=f"{FAMILY} {OTHER}".encode(), quality=90)
    return encoded(samples, "TIFF", tiffinfo={270: f"{FAMILY} knee", 315: OTHER})


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF"])
@pytest.mark.parametrize("colour", [False, True])
def test_metadata_goes_and_samples_stay(form, colour):
    samples = smooth(120, 160).astype(np.uint8)
    samples = np.stack([samples, samples // 2, 255 - samples], -1) if colour else samples
    data = with_metadata(samples, form) + (f"trailing {OTHER}".encode() if form != "TIFF" else b"")
    assert FAMILY.encode() in data
    out = clean_picture(data, f"{FAMILY}.x", Recipe(), KEY)
    assert FAMILY.encode() not in out.data and OTHER.encode() not in out.data and FAMILY not in out.name
    assert np.array_equal(np.array(Image.open(io.BytesIO(out.data))), np.array(Image.open(io.BytesIO(data))))
    assert not Image.open(io.BytesIO(out.data)).getexif().get(0x010E)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF"])
def test_burned_in_text_goes(form):
    samples = smooth(300, 400).astype(np.uint8)
    mask = write_text(samples, TEXT, CORNER, 255)
    out = clean_picture(encoded(samples, form), "a.x", Recipe(), KEY)
    assert out.changed_pixels and not legible(np.array(Image.open(io.BytesIO(out.data))), mask)


def test_text_hidden_in_opacity_goes():
    samples = np.zeros((300, 400, 4), np.uint8)
    samples[..., :3], samples[..., 3] = smooth(300, 400)[..., None].astype(np.uint8), 255
    mask = write_text(samples[..., 3], TEXT, CORNER, 0)
    out = np.array(Image.open(io.BytesIO(clean_picture(encoded(samples, "PNG"), "a.png", Recipe(), KEY).data)))
    assert not legible(out[..., 3], mask)


def test_pages_and_damage_are_quarantined():
    pages = io.BytesIO()
    one = Image.fromarray(smooth(60, 60).astype(np.uint8))
    one.save(pages, "TIFF", save_all=True, append_images=[one])
    for data, reason in (
        (pages.getvalue(), "picture-unusual"),
        (encoded(smooth(60, 60).astype(np.uint8), "PNG")[:80], "damaged"),
    ):
        with pytest.raises(Quarantine) as refused:
            clean_picture(data, "a", Recipe(), KEY)
        assert refused.value.reason == reason
