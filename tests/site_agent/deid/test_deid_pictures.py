"""Pictures."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

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


def output(data):
    out = clean_picture(data, "a.x", Recipe(clean_pixel_data=False), KEY)
    return out, Image.open(io.BytesIO(out.data))


def colour():
    samples = smooth(90, 130).astype(np.uint8)
    return np.stack([samples, samples // 3, 200 - samples], -1)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF"])
@pytest.mark.parametrize("orientation", [2, 3, 6, 8])
def test_a_turned_picture_stays_turned(form, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(colour(), form, exif=exif)
    shown = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    out, picture = output(data)
    assert np.array_equal(np.array(picture), np.array(shown)) and picture.getexif().get(0x0112, 1) == 1
    assert out.shape == np.array(shown).shape and not np.array_equal(np.array(shown), colour())


def linear_profile(space):
    """A profile whose tone curves are straight: far from sRGB in every mid tone."""

    def tag(kind, body):
        return kind + bytes(4) + body

    def xyz(*values):
        return tag(b"XYZ ", b"".join(round(v * 65536).to_bytes(4, "big", signed=True) for v in values))

    tags = {b"wtpt": xyz(0.9642, 1, 0.8249)}
    if space == b"RGB ":
        tags |= {
            b"rXYZ": xyz(0.4361, 0.2225, 0.0139),
            b"gXYZ": xyz(0.3851, 0.7169, 0.0971),
            b"bXYZ": xyz(0.1431, 0.0606, 0.7141),
        }
    for name in (b"rTRC", b"gTRC", b"bTRC") if space == b"RGB " else (b"kTRC",):
        tags[name] = tag(b"curv", bytes(4))
    table, body, at = b"", b"", 132 + 12 * len(tags)
    for name, value in tags.items():
        table += name + (at + len(body)).to_bytes(4, "big") + len(value).to_bytes(4, "big")
        body += value + bytes(-len(value) % 4)
    size = at + len(body)
    head = (
        size.to_bytes(4, "big")
        + bytes(4)
        + b"\x02\x40\0\0"
        + b"mntr"
        + space
        + b"XYZ "
        + bytes(12)
        + b"acsp"
        + bytes(28)
    )
    head += b"".join(round(v * 65536).to_bytes(4, "big") for v in (0.9642, 1, 0.8249))
    return head.ljust(128, b"\0") + len(tags).to_bytes(4, "big") + table + body


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF"])
@pytest.mark.parametrize("space", [b"RGB ", b"GRAY"])
def test_colours_of_another_profile_are_converted(form, space):
    samples = np.full((64, 64, 3), 64, np.uint8) if space == b"RGB " else np.full((64, 64), 64, np.uint8)
    out, picture = output(encoded(samples, form, icc_profile=linear_profile(space)))
    # linear 64/255 is 137 in sRGB (IEC 61966-2-1)
    assert "icc_profile" not in picture.info and np.abs(np.array(picture).astype(int) - 137).max() <= 2
    assert out.actions["colours converted to sRGB"] == 1


def test_opacity_is_no_colour():
    samples = np.dstack([np.full((64, 64, 3), 64, np.uint8), np.arange(64 * 64).reshape(64, 64).astype(np.uint8)])
    _, picture = output(encoded(samples, "PNG", icc_profile=linear_profile(b"RGB ")))
    assert (
        np.array_equal(np.array(picture)[..., 3], samples[..., 3]) and abs(int(np.array(picture)[0, 0, 0]) - 137) <= 2
    )


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_srgb_stays_exact(form):
    data = encoded(colour(), form, icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    out, picture = output(data)
    assert out.suffix == (".png" if form == "PNG" else ".jpg")
    assert np.array_equal(np.array(picture), np.array(Image.open(io.BytesIO(data))))


def test_a_profile_that_is_none_is_quarantined():
    with pytest.raises(Quarantine) as refused:
        output(encoded(colour(), "PNG", icc_profile=b"no profile at all" * 20))
    assert refused.value.reason == "picture-unusual"


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
@pytest.mark.parametrize("profile", [None, linear_profile(b"GRAY")])
@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_sixteen_bits_stay_exact(form, profile, order):
    samples = (np.arange(90 * 110).reshape(90, 110) * 6).astype(order)
    if form == "PNG":
        samples = samples.astype("<u2")
    _, picture = output(encoded(samples, form, **({"icc_profile": profile} if profile else {})))
    assert np.array_equal(np.array(picture).astype(int), samples.astype(int))


@pytest.mark.parametrize("form", ["png", "tiff"])
def test_sixteen_bit_colours_are_not_cut(form):
    import cv2

    done, data = cv2.imencode("." + form, (colour().astype(np.uint16) * 200))
    with pytest.raises(Quarantine) as refused:
        output(data.tobytes())
    assert done and refused.value.reason == "picture-unusual"


@pytest.mark.parametrize("form", ["PNG", "TIFF", "GIF", "MPO"])
def test_moving_pictures_and_pages_are_quarantined(form):
    buffer = io.BytesIO()
    pages = [Image.fromarray(colour()), Image.fromarray(255 - colour())]
    pages[0].save(buffer, form, save_all=True, append_images=pages[1:])
    with pytest.raises(Quarantine) as refused:
        output(buffer.getvalue())
    assert refused.value.reason in ("picture-unusual", "damaged" if form == "GIF" else "")


def test_text_beside_a_glaring_patch_goes():
    """As in DICOM: over the whole range of 16 bits the letters differ from their ground by one grey value."""
    samples = (smooth(400, 400) + 100).astype(np.uint16)
    samples[300:312, 300:312] = 60000
    samples[310:340, 30:60] = 40000
    mask = write_text(samples, TEXT, CORNER, 420)
    out = clean_picture(encoded(samples, "PNG"), "x.png", Recipe(), KEY)
    assert not legible(np.array(Image.open(io.BytesIO(out.data))), mask)
