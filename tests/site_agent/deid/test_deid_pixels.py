"""Burned-in text: gone in every form pixels take; and pixels without text stay exactly as they were."""

from __future__ import annotations

import io

import numpy as np
import pydicom
import pytest
from PIL import Image, ImageDraw, ImageFont
from pydicom.pixels import pack_bits, pixel_array
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from site_agent.deid import pixels as pixels_module
from site_agent.deid import textfinder
from site_agent.deid.quarantine import Quarantine
from tests.site_agent.deid.helpers import MRN, clean, image, read_test_file, reread, smooth, to_bytes, write_text

TEXT = "QOZIVARUK 12.06.1950"
CORNER = (12, 14)


def legible(frame: np.ndarray, mask: np.ndarray) -> bool:
    """Whether the strokes can still be told from their surroundings."""
    y, x = np.nonzero(mask)
    box = slice(y.min(), y.max() + 1), slice(x.min(), x.max() + 1)
    grey = frame[box].astype(float)
    grey = grey.mean(axis=-1) if grey.ndim == 3 else grey
    return bool(grey.std() > 1e-9 and abs(np.corrcoef(grey.ravel(), mask[box].ravel())[0, 1]) > 0.3)


def grey(dtype=np.uint8, value=250):
    samples = smooth(300, 400).astype(dtype)
    return samples, write_text(samples, TEXT, CORNER, value)


def colour():
    samples = np.stack([smooth(300, 400, seed=s) for s in range(3)], -1).astype(np.uint8)
    return samples, write_text(samples, TEXT, CORNER, (255, 255, 255))


def as_compressed(ds, syntax):
    ds.compress(syntax, generate_instance_uid=False)
    return ds


def palette():
    samples, mask = grey(value=200)
    ds = image(samples, "PALETTE COLOR")
    for c in ("Red", "Green", "Blue"):
        setattr(ds, f"{c}PaletteColorLookupTableDescriptor", [256, 0, 8])
        # entries out of order: 200 shows as white, and 0 does not show as black
        table = np.roll(np.arange(256, dtype=np.uint8), 60)
        table[200] = 255
        setattr(ds, f"{c}PaletteColorLookupTableData", table.tobytes())
    return ds, mask


def cases():
    g, m = grey()
    yield "mono2", image(g), m
    yield "mono1", image(255 - g, "MONOCHROME1"), m
    g16, m16 = grey(np.uint16, 4000)
    yield "16 bit CT", image(g16, modality="CT"), m16
    c, mc = colour()
    yield "rgb", image(c, "RGB"), mc
    ybr = pydicom.pixels.convert_color_space(c, "RGB", "YBR_FULL")
    yield "ybr", image(np.ascontiguousarray(ybr), "YBR_FULL"), mc
    ds, mp = palette()
    yield "palette", ds, mp
    frames = np.stack([g] * 12)
    yield "12 frames", image(frames), m
    yield "rle", as_compressed(image(g), RLELossless), m
    yield "jpeg 2000", as_compressed(image(g), JPEG2000Lossless), m
    yield "jpeg-ls", as_compressed(image(g16), JPEGLSLossless), m16


@pytest.mark.parametrize(("name", "ds", "mask"), list(cases()), ids=lambda v: v if isinstance(v, str) else "")
def test_text_is_blanked_on_every_frame(name, ds, mask):
    before = pixel_array(io.BytesIO(to_bytes(ds)))
    before = before if "frames" in name else before[None]
    assert legible(before[0], mask)
    out = clean(ds)
    after = pixel_array(io.BytesIO(out.data))
    after = after if "frames" in name else after[None]
    assert out.changed_pixels and after.shape == before.shape
    assert not any(legible(frame, mask) for frame in after)
    assert np.array_equal(after[:, 150:], before[:, 150:])  # far from the text nothing moves
    assert reread(out).BurnedInAnnotation == "NO"


@pytest.mark.parametrize("photometric", ["MONOCHROME2", "RGB", "PALETTE COLOR"])
def test_text_on_one_frame_of_a_long_series(photometric):
    """Frame 14 of 30 is none of those looked at one by one."""
    still = smooth(240, 320).astype(np.uint8)
    frames = np.stack([np.stack([still] * 3, -1) if photometric == "RGB" else still] * 30)
    mask = write_text(frames[14], TEXT, CORNER, 250)
    ds = image(frames, photometric)
    if photometric == "PALETTE COLOR":
        for c in ("Red", "Green", "Blue"):
            setattr(ds, f"{c}PaletteColorLookupTableDescriptor", [256, 0, 8])
            table = np.arange(256)[::-1].copy()  # the ink's entry is the darkest
            table[250] = 255
            setattr(ds, f"{c}PaletteColorLookupTableData", table.astype(np.uint8).tobytes())
    after = pixel_array(io.BytesIO(clean(ds).data))
    assert not legible(after[14], mask)


@pytest.mark.parametrize("turns", [1, 3])
def test_text_along_a_side_is_blanked(turns):
    samples = smooth(300, 400).astype(np.uint8)
    mask = np.rot90(write_text(samples, TEXT, CORNER, 250), turns)
    out = clean(image(np.rot90(samples, turns).copy(), modality="CT"))
    assert not legible(pixel_array(io.BytesIO(out.data)), mask)


def test_small_letters_in_a_large_picture_are_blanked():
    samples = smooth(2200, 1900).astype(np.uint16)
    mask = write_text(samples, TEXT, (1700, 1500), 400, size=15)
    ds = image(samples, modality="DX", SOPClassUID="1.2.840.10008.5.1.4.1.1.1.1")
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    assert not legible(pixel_array(io.BytesIO(clean(ds).data)), mask)


def test_letters_larger_than_a_label_are_blanked():
    samples = smooth(400, 500).astype(np.uint16)
    mask = write_text(samples, "HARROW", (200, 60), 300, size=80)
    ds = image(samples, modality="CT", SOPClassUID="1.2.840.10008.5.1.4.1.1.2")
    assert not legible(pixel_array(io.BytesIO(clean(ds).data)), mask)


@pytest.mark.parametrize("modality", ["SEG", "RTDOSE", "CT", ""])
def test_what_the_modality_claims_spares_no_text(modality):
    samples, mask = grey()
    assert not legible(pixel_array(io.BytesIO(clean(image(samples, modality=modality)).data)), mask)


def test_a_narrow_strip_with_a_name_is_blanked():
    samples = smooth(36, 1400).astype(np.uint8)
    mask = write_text(samples, TEXT, (6, 14), 250)
    assert not legible(pixel_array(io.BytesIO(clean(image(samples)).data)), mask)


def test_text_on_one_frame_of_a_short_series():
    frames = np.stack([smooth(240, 320, seed=s).astype(np.uint8) for s in range(5)])
    mask = write_text(frames[3], TEXT, CORNER, 255)
    after = pixel_array(io.BytesIO(clean(image(frames)).data))
    assert not legible(after[3], mask)


@pytest.mark.parametrize(
    "name",
    [
        "CT_small.dcm",
        "JPEG2000.dcm",
        "JPGExtended.dcm",
        "SC_rgb_jpeg_gdcm.dcm",
        "examples_overlay.dcm",
        "liver_1frame.dcm",
    ],
)
def test_pixels_without_text_stay_exact(name):
    ds = read_test_file(name)
    ds.PatientID = ds.get("PatientID") or MRN
    out = clean(ds)
    assert not out.changed_pixels
    assert np.array_equal(pixel_array(io.BytesIO(out.data)), pixel_array(io.BytesIO(to_bytes(read_test_file(name)))))
    assert reread(out).file_meta.TransferSyntaxUID == ds.file_meta.TransferSyntaxUID


def test_a_real_ultrasound_screen():
    """pydicom's palette example shows a date, a time and the maker's banner."""
    ds = read_test_file("examples_palette.dcm")
    ds.PatientID = ds.get("PatientID") or MRN
    out = clean(ds)
    assert out.changed_pixels and out.notes["rule"] == "region of the device" and out.notes["boxes"] > 5
    (_, before, after), *_ = out.pictures
    assert (before == pixels_module.RED).all(axis=-1).any() and not (after == pixels_module.RED).all(axis=-1).any()


def test_everything_outside_the_ultrasound_regions_goes_once_text_is_found_there():
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    samples, _ = grey()
    region = Dataset()
    region.RegionLocationMinX0, region.RegionLocationMinY0 = 40, 80
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = 359, 279
    ds = image(samples, modality="US", SequenceOfUltrasoundRegions=Sequence([region]))
    after = pixel_array(io.BytesIO(clean(ds).data))
    outside = np.ones(samples.shape, bool)
    outside[80:280, 40:360] = False
    assert (after[outside] == after[outside][0]).all() and np.array_equal(
        after[100:260, 60:340], samples[100:260, 60:340]
    )


def test_a_site_adds_regions_in_deids_language():
    samples = smooth(300, 400).astype(np.uint8)
    ds = image(samples, ManufacturerModelName="ACME 9")
    rule = "FORMAT dicom\n\n%filter graylist\n\nLABEL Acme banner\n  contains ManufacturerModelName ACME 9\n  coordinates 0,0,400,30\n"
    after = pixel_array(io.BytesIO(clean(ds, regions=rule).data))
    assert (after[:30] == after[0, 0]).all() and np.array_equal(after[30:], samples[30:])


def test_what_cannot_be_decoded_is_quarantined():
    ds = as_compressed(image(grey()[0]), RLELossless)
    ds.file_meta.TransferSyntaxUID = JPEG2000Lossless
    with pytest.raises(Quarantine) as refused:
        clean(ds)
    assert refused.value.reason == "pixels-undecodable"


@pytest.mark.parametrize(
    ("syntax", "reason"), [("1.2.3.4.5", "transfer-syntax"), ("1.2.840.10008.1.2.4.102", "transfer-syntax")]
)
def test_an_unknown_transfer_syntax_is_quarantined(syntax, reason):
    data = to_bytes(as_compressed(image(grey()[0]), RLELossless))
    with pytest.raises(Quarantine) as refused:
        clean(
            data.replace(b"1.2.840.10008.1.2.5\0", syntax.encode().ljust(20, b"\0")[:20])
            if len(syntax) < 20
            else _with(syntax)
        )
    assert refused.value.reason == reason


def _with(syntax):
    ds = as_compressed(image(grey()[0]), RLELossless)
    ds.file_meta.TransferSyntaxUID = syntax
    return to_bytes(ds)


def test_text_that_stays_is_quarantined(monkeypatch):
    """Break the blanking: the second look must notice."""
    monkeypatch.setattr(pixels_module, "_blank", lambda ds, frames, boxes: frames.__setitem__((0, 0, 0), 1))
    monkeypatch.setattr(pixels_module, "covered", lambda box, seen: False)
    with pytest.raises(Quarantine) as refused:
        clean(image(grey()[0]))
    assert refused.value.reason == "text-remains"


def test_a_picture_of_text_is_quarantined():
    samples = np.full((300, 400), 30, np.uint8)
    for row in range(8, 280, 30):
        write_text(samples, "QOZIVARUK TEMILOPAD 1950", (row, 6), 250, 26)
    with pytest.raises(Quarantine) as refused:
        clean(image(samples))
    assert refused.value.reason == "mostly-text"


def test_marked_text_is_quarantined_when_cleaning_is_off():
    with pytest.raises(Quarantine) as refused:
        clean(image(grey()[0], BurnedInAnnotation="YES"), clean_pixel_data=False)
    assert refused.value.reason == "pixel-rule"


@pytest.mark.parametrize("degrees", [20, 45, 180])
def test_slanted_text_and_text_on_its_head_is_blanked(degrees):
    canvas = Image.new("L", (420, 420), 0)
    ImageDraw.Draw(canvas).text((70, 195), TEXT, fill=255, font=ImageFont.load_default(24))
    mask = np.asarray(canvas.rotate(degrees, resample=Image.Resampling.BICUBIC)) > 127
    samples = smooth(420, 420).astype(np.uint16)
    samples[mask] = 250
    out = clean(image(samples, modality="CT", SOPClassUID="1.2.840.10008.5.1.4.1.1.2"))
    assert not legible(pixel_array(io.BytesIO(out.data)), mask)


def test_text_in_a_picture_of_one_bit_is_blanked():
    samples = np.zeros((300, 400), np.uint8)
    mask = write_text(samples, TEXT, CORNER, 1)
    ds = image(samples)
    ds.BitsAllocated = ds.BitsStored = 1
    ds.HighBit = 0
    ds.PixelData = pack_bits(samples)
    out = reread(clean(ds))
    assert not legible(pixel_array(out), mask) and not pixel_array(out).any()


def test_text_beside_a_glaring_patch_is_blanked():
    """Stretched over the whole range, the letters would differ from their ground by one grey value."""
    samples = (smooth(400, 400) + 100).astype(np.uint16)
    samples[300:312, 300:312] = 60000
    samples[310:340, 30:60] = 40000
    mask = write_text(samples, TEXT, CORNER, 420)
    assert not legible(pixel_array(io.BytesIO(clean(image(samples)).data)), mask)


@pytest.mark.parametrize(("ink", "ground"), [(100, 20), (10, 240)])
def test_a_page_shown_for_one_frame_is_found(ink, ground):
    """Frame 17 of 40, neither brighter nor darker than the others: no projection shows it."""
    rng = np.random.default_rng(4)
    frames = np.stack([smooth(240, 320, 0, 255).astype(np.int16) for _ in range(40)])
    frames = np.clip(frames + rng.normal(0, 12, frames.shape), 0, 255).astype(np.uint8)
    frames[5, 30:90, 10:310], frames[25, 30:90, 10:310] = 255, 0
    frames[17, 30:90, 10:310] = ground
    mask = write_text(frames[17], TEXT, (50, 30), ink)
    assert not legible(pixel_array(io.BytesIO(clean(image(frames)).data))[17], mask)


def test_text_in_pixels_of_floating_point_is_quarantined():
    samples = smooth(300, 400).astype(np.float32)
    write_text(samples, TEXT, CORNER, 250.5)
    ds = image(samples)
    del ds.PixelData, ds.BitsStored, ds.HighBit, ds.PixelRepresentation
    ds.FloatPixelData = samples.tobytes()
    ds["FloatPixelData"].VR = "OF"
    with pytest.raises(Quarantine) as refused:
        clean(ds)
    assert refused.value.reason == "text-remains"


@pytest.mark.parametrize("group", [0x6000, 0x6004])
def test_an_overlay_inside_the_pixels_is_quarantined(group):
    ds = image(smooth(300, 400).astype(np.uint16), BitsStored=12, HighBit=11)
    ds.add_new((group, 0x0100), "US", 16)
    ds.add_new((group, 0x0102), "US", 12)
    with pytest.raises(Quarantine) as refused:
        clean(ds)
    assert refused.value.reason == "overlay-embedded"


def test_bits_above_those_stored_are_quarantined():
    samples = smooth(300, 400).astype(np.uint16)
    write_text(samples, TEXT, CORNER, 0x8000)
    with pytest.raises(Quarantine) as refused:
        clean(image(samples, BitsStored=12, HighBit=11))
    assert refused.value.reason == "overlay-embedded"


def test_rounding_of_a_lossy_codec_is_no_overlay():
    """Decoded samples pass what BitsStored holds."""
    ds = read_test_file("JPEG2000.dcm")
    ds.PatientID, ds.BitsStored, ds.HighBit = MRN, 8, 7
    assert not clean(ds).changed_pixels


def test_a_checkerboard_is_no_text():
    """The recogniser reads 88 in it."""
    ds = read_test_file("image_dfl.dcm")
    ds.PatientID = MRN
    assert not clean(ds).changed_pixels


def test_two_ideographs_are_a_name():
    """No font with ideographs is at hand: what counts as readable is tested on the recogniser's answer."""
    assert textfinder._letters("田中") >= 3 > 2 > textfinder._letters("口") and textfinder._letters("Ö1") == 2
    assert textfinder._letters(".-|") == 0
