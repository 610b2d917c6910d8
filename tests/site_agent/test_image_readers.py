"""One file -> its images: what each format's numbers mean, which sections are read, and what is left out with which reason."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from nibabel.testing import data_path
from PIL import Image
from pydantic import ValidationError
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.pixels import apply_color_lut, pixel_array
from pydicom.sequence import Sequence

from medsynx.image_spec import ImageSpec
from medsynx.study import load_study
from site_agent.image_readers import LeftOutError, read
from site_agent.images import to_unit
from tests.site_agent.deid.helpers import image, smooth, to_bytes

GREY = ImageSpec(shape=(16, 16, 1), intensity=(-1000, 1000), classes=("a",))
COLOUR = GREY.model_copy(update={"shape": (16, 16, 3)})


def with_(spec=GREY, **fields):
    return ImageSpec.model_validate({**spec.model_dump(), **fields})


def shipped(name, spec=GREY):
    return list(read(get_testdata_file(name, download=False), "dicom", spec))


def written(tmp_path, samples, spec=GREY, **extra):
    (tmp_path / "x.dcm").write_bytes(to_bytes(image(samples, **extra)))
    return list(read(tmp_path / "x.dcm", "dicom", spec))


def reason(do):
    with pytest.raises(LeftOutError) as caught:
        do()
    return caught.value.reason


# -- DICOM


def test_ct_is_in_hounsfield_units():
    (one,) = shipped("CT_small.dcm")
    ds = dcmread(get_testdata_file("CT_small.dcm", download=False))
    stored, padding = ds.pixel_array, ds.pixel_array == ds.PixelPaddingValue
    assert ds.RescaleIntercept == -1024 and one.dtype == np.float32
    assert np.array_equal(one[..., 0][~padding], (stored * float(ds.RescaleSlope) - 1024).astype(np.float32)[~padding])
    unit, clipped = to_unit(one[None], with_(intensity=(-1024, 976), shape=(128, 128, 1)))
    assert clipped == 1 and np.allclose(unit[0, 0][~padding], np.clip(stored / 2000, 0, 1)[~padding], atol=1e-6)


def test_the_window_of_a_file_changes_nothing(tmp_path):
    samples = smooth(32, 32).astype(np.uint16)
    plain, windowed = written(tmp_path, samples), written(tmp_path, samples, WindowCenter=50, WindowWidth=10)
    assert np.array_equal(plain, windowed)


@pytest.mark.parametrize("sign", [False, True])
def test_padding_is_black_and_inversion_spares_it(tmp_path, sign):
    """A padding value stands for no pixel, also when its tag was written without the sign that pixels have."""
    samples = np.arange(32 * 32, dtype=np.int16).reshape(32, 32) - 500
    samples[:8] = -2000
    for photometric in ("MONOCHROME2", "MONOCHROME1"):
        ds = image(samples, photometric, PixelRepresentation=1)
        ds.add_new("PixelPaddingValue", "SS" if sign else "US", -2000 if sign else 2**16 - 2000)
        (tmp_path / "x.dcm").write_bytes(to_bytes(ds))
        (one,) = read(tmp_path / "x.dcm", "dicom", GREY)
        assert np.isnan(one[:8]).all()
        assert np.array_equal(one[8:, :, 0], samples[8:] if photometric == "MONOCHROME2" else -samples[8:])
        unit, _ = to_unit(one[None], with_(shape=(32, 32, 1), percentiles=(1, 99)))
        assert (unit[0, 0, :8] == 0).all() and unit.max() == 1 and 0.4 < unit[0, 0, 8:].mean() < 0.6
    assert (
        reason(lambda: written(tmp_path, np.full((16, 16), 7, np.uint8), PixelPaddingValue=7)) == "nothing but padding"
    )


def test_a_padding_range(tmp_path):
    samples = np.tile(np.arange(16, dtype=np.uint16), (16, 1))
    (one,) = written(tmp_path, samples, PixelPaddingValue=2, PixelPaddingRangeLimit=5)
    assert np.isnan(one[0, :, 0]).nonzero()[0].tolist() == [2, 3, 4, 5]


def test_a_modality_table_is_applied(tmp_path):
    table = Dataset()
    table.LUTDescriptor, table.ModalityLUTType = [4, 0, 16], "US"
    table.add_new("LUTData", "OW", np.array([0, 100, 500, 900], "<u2").tobytes())
    (one,) = written(tmp_path, np.tile(np.arange(4, dtype=np.uint16), (16, 4)), ModalityLUTSequence=Sequence([table]))
    assert np.unique(one).tolist() == [0, 100, 500, 900]


def test_frames_by_a_public_rule_and_each_with_its_own_rescale(tmp_path):
    samples = np.stack([np.full((16, 16), k, np.uint8) for k in range(9)])
    values = [int(frame[0, 0, 0]) for frame in written(tmp_path, samples)]
    assert values == [4], "the middle one"
    assert [int(f[0, 0, 0]) for f in written(tmp_path, samples, with_(slices=3))] == [1, 4, 7]
    assert len(written(tmp_path, samples, with_(slices=50))) == 9
    groups = []
    for k in range(9):
        transformation, group = Dataset(), Dataset()
        transformation.RescaleSlope, transformation.RescaleIntercept = 10, -k
        group.PixelValueTransformationSequence = Sequence([transformation])
        groups.append(group)
    frames = written(tmp_path, samples, with_(slices=3), PerFrameFunctionalGroupsSequence=Sequence(groups))
    assert [int(f[0, 0, 0]) for f in frames] == [10 - 1, 40 - 4, 70 - 7]
    frames = written(tmp_path, samples, SharedFunctionalGroupsSequence=Sequence(groups[:1]))
    assert [int(f[0, 0, 0]) for f in frames] == [40]


@pytest.mark.parametrize(
    "name",
    ["examples_ybr_color.dcm", "SC_rgb_dcmtk_+eb+cy+s2.dcm", "examples_jpeg2k.dcm", "SC_ybr_full_422_uncompressed.dcm"],
)
def test_colours_become_rgb_and_rgb_becomes_luma(name):
    path = get_testdata_file(name, download=False)
    ds = dcmread(path)
    middle = int(ds.get("NumberOfFrames", 1)) // 2
    rgb = pixel_array(ds, index=middle).astype(np.float32)
    (colour,), (grey,) = shipped(name, COLOUR), shipped(name)
    assert np.array_equal(colour, rgb) and colour.std() > 5
    assert np.allclose(grey[..., 0], rgb @ np.float32([0.299, 0.587, 0.114]), atol=1e-3)


def test_a_palette_is_looked_up():
    ds = dcmread(get_testdata_file("examples_palette.dcm", download=False))
    (colour,) = shipped("examples_palette.dcm", COLOUR)
    rgb = apply_color_lut(ds.pixel_array, ds)
    assert rgb.dtype == np.uint16 and np.allclose(colour, rgb / 257, atol=1e-2) and 250 < colour.max() <= 255


def test_deep_colours_are_of_the_same_range():
    assert np.array_equal(np.unique(shipped("SC_rgb_rle_16bit.dcm", COLOUR)[0])[[0, -1]], [0, 255])


def test_grey_where_colour_is_asked():
    (one,) = shipped("MR_small.dcm", COLOUR)
    assert one.shape == (64, 64, 3) and (one[..., 0] == one[..., 2]).all()


@pytest.mark.parametrize(
    "name", ["MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "MR_small_bigendian.dcm"]
)
def test_compression_does_not_matter(name):
    assert np.array_equal(shipped(name), shipped("MR_small.dcm"))


def test_more_compressions_are_read():
    for name in (
        "JPGExtended.dcm",
        "693_J2KI.dcm",
        "J2K_pixelrep_mismatch.dcm",
        "image_dfl.dcm",
        "SC_rgb_jpeg_gdcm.dcm",
    ):
        (one,) = shipped(name)
        assert np.nanstd(one) > 1, name


def test_objects_that_are_no_pictures():
    assert reason(lambda: shipped("rtplan.dcm")) == "no pixels"
    assert reason(lambda: shipped("MR_truncated.dcm")) == "cannot be decoded"
    assert reason(lambda: shipped("SC_rgb_small_odd.dcm")) == "smaller than 8 x 8 pixels"


def test_pixels_of_floating_point(tmp_path):
    samples = smooth(16, 16).astype(np.float32)
    ds = image(np.zeros((16, 16), np.uint8))
    del ds.PixelData, ds.BitsStored, ds.HighBit, ds.PixelRepresentation
    ds.BitsAllocated, ds.FloatPixelData = 32, samples.tobytes()
    (tmp_path / "f.dcm").write_bytes(to_bytes(ds))
    (one,) = read(tmp_path / "f.dcm", "dicom", GREY)
    assert np.array_equal(one[..., 0], samples)
    samples[3, 3] = np.nan
    ds.FloatPixelData = samples.tobytes()
    (tmp_path / "f.dcm").write_bytes(to_bytes(ds))
    assert reason(lambda: list(read(tmp_path / "f.dcm", "dicom", GREY))) == "pixels that are not finite numbers"


# -- NIfTI


def volume(tmp_path, voxels, affine=None, **header):
    one = nib.Nifti1Image(voxels, np.eye(4) if affine is None else affine)
    for name, value in header.items():
        one.header[name] = value
    nib.save(one, tmp_path / "v.nii.gz")
    return tmp_path / "v.nii.gz"


def sections(path, **fields):
    return [s[..., 0] for s in read(path, "nifti", with_(**fields))]


def test_sections_lie_as_dicom_shows_them_whatever_the_order_in_the_file(tmp_path):
    """Axial: anterior up, the patient's right at the left; the same file stored in every orientation gives the same sections."""
    x, y, z = np.meshgrid(np.arange(10), np.arange(12), np.arange(14), indexing="ij")  # right, anterior, superior
    voxels = (x + 20 * y + 400 * z).astype(np.int16)
    path = volume(tmp_path, voxels)
    (axial,), (coronal,), (sagittal,) = (sections(path, plane=p) for p in ("axial", "coronal", "sagittal"))
    assert np.array_equal(axial, voxels[::-1, ::-1, 7].T)
    assert np.array_equal(coronal, voxels[::-1, 6, ::-1].T)
    assert np.array_equal(sagittal, voxels[5, ::-1, ::-1].T)
    whole = nib.load(path)
    three = sections(path, slices=3)
    for codes in ("LPS", "SAR", "PIR", "ASL"):
        turned = whole.as_reoriented(
            nib.orientations.ornt_transform(nib.io_orientation(np.eye(4)), nib.orientations.axcodes2ornt(codes))
        )
        nib.save(turned, tmp_path / "turned.nii.gz")
        assert np.array_equal(sections(tmp_path / "turned.nii.gz", slices=3), three), codes
    assert [int(s.min()) // 400 for s in three] == [2, 7, 11]


def test_stored_numbers_are_scaled_and_of_several_volumes_the_first_is_read(tmp_path):
    path = volume(
        tmp_path, np.arange(9 * 9 * 9 * 3, dtype=np.int16).reshape(9, 9, 9, 3, order="F"), scl_slope=2, scl_inter=-7
    )
    (one,) = sections(path)
    first = np.asarray(nib.load(path).dataobj)[..., 0]
    assert first.max() == 2 * 728 - 7 and np.array_equal(one, first[::-1, ::-1, 4].T)
    shipped = sections(f"{data_path}/example4d.nii.gz", slices=4)
    assert len(shipped) == 4 and shipped[0].shape == (96, 128)


def test_voxels_that_are_no_numbers(tmp_path):
    voxels = np.ones((9, 9, 9), np.float32)
    voxels[4, 4, 4] = np.nan
    path = volume(tmp_path, voxels)
    assert reason(lambda: sections(path)) == "pixels that are not finite numbers"
    voxels[4, 4, 4], voxels[4, 4, 0] = 1, np.inf
    assert len(sections(volume(tmp_path, voxels))) == 1, "what is not read does not matter"
    assert reason(lambda: sections(volume(tmp_path, voxels.astype(np.complex64)))) == "pixels that are no real numbers"


def test_flat_and_colour_files(tmp_path):
    assert sections(volume(tmp_path, np.ones((9, 11), np.int16)))[0].shape == (11, 9)
    rgb = np.zeros((9, 9, 9), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    rgb["G"] = 100
    (one,) = read(volume(tmp_path, rgb), "nifti", GREY)
    assert np.allclose(one, 58.7)


def test_a_damaged_volume_is_left_out(tmp_path):
    path = volume(tmp_path, np.ones((9, 9, 9), np.int16))
    path.write_bytes(path.read_bytes()[:-40])
    assert reason(lambda: sections(path)) == "cannot be decoded"


# -- pictures


@pytest.mark.parametrize(
    ("mode", "suffix", "peak"),
    [
        ("L", "png", 255),
        ("L", "jpg", 255),
        ("I;16", "png", 65535),
        ("1", "png", 255),
        ("LA", "png", 255),
        ("F", "tif", 0.5),
    ],
)
def test_grey_pictures(tmp_path, mode, suffix, peak):
    ramp = np.tile(np.linspace(0, 1, 16), (16, 1))
    if mode == "1":
        picture, ramp = Image.fromarray(ramp > 0.5), ramp > 0.5
    elif mode == "LA":
        picture = Image.fromarray((ramp * 255).astype(np.uint8)).convert("LA")
    else:
        picture = Image.fromarray((ramp * peak).astype({"L": np.uint8, "I;16": np.uint16, "F": np.float32}[mode]))
    picture.save(tmp_path / f"p.{suffix}")
    (one,) = read(tmp_path / f"p.{suffix}", "picture", GREY)
    assert one.shape == (16, 16, 1) and np.abs(one[..., 0] - ramp * peak).max() <= (3 if suffix == "jpg" else 1)


def test_colour_pictures(tmp_path):
    rgba = np.zeros((16, 16, 4), np.uint8)
    rgba[..., 0], rgba[..., 3] = 200, 5
    Image.fromarray(rgba).save(tmp_path / "p.png")
    (colour,) = read(tmp_path / "p.png", "picture", COLOUR)
    assert colour.shape == (16, 16, 3) and (colour[..., 0] == 200).all() and not colour[..., 1:].any()
    (grey,) = read(tmp_path / "p.png", "picture", GREY)
    assert np.allclose(grey, 59.8)
    (tmp_path / "p.png").write_bytes(b"\x89PNG\r\n\x1a\n no")
    assert reason(lambda: list(read(tmp_path / "p.png", "picture", GREY))) == "cannot be decoded"


# -- what a study says


def test_percentiles_are_of_one_image():
    rng = np.random.default_rng(1)
    images = np.stack([rng.gamma(2, k, (16, 16, 1)) for k in (1, 50, 2000)]).astype(np.float32)
    spec = with_(percentiles=(2, 98))
    together, _ = to_unit(images, spec)
    for k in range(3):
        assert np.array_equal(to_unit(images[k : k + 1], spec)[0][0], together[k])
        assert 0.2 < together[k].mean() < 0.5 and together[k].min() == 0 and together[k].max() == 1
    assert np.allclose(to_unit(images * 1000, spec)[0], together, atol=1e-5), "the unit does not matter"
    flat, _ = to_unit(np.full((1, 16, 16, 1), 7, np.float32), spec)
    assert not flat.any()


def test_what_a_study_does_not_say_is_not_in_its_digest():
    assert (
        load_study("configs/studies/pneumonia.yaml").digest
        == "5324e1931e77074a43f72673cb9e5ffd1de83f65a83bed4441e49ff4c3fdbfe6"
    )
    assert GREY.model_dump(mode="json") == {"shape": [16, 16, 1], "intensity": [-1000, 1000], "classes": ["a"]}
    assert with_(plane="axial").model_dump() == GREY.model_dump()
    said = with_(slices=4, percentiles=(1, 99), modalities=("CT",), plane="coronal")
    assert ImageSpec.model_validate(said.model_dump(mode="json")) == said and len(said.model_dump()) == 7


@pytest.mark.parametrize(
    "fields",
    [
        {"percentiles": (99, 1)},
        {"percentiles": (0, 101)},
        {"slices": 0},
        {"modalities": ("ct scan",)},
        {"plane": "oblique"},
    ],
)
def test_what_a_study_may_not_say(fields):
    with pytest.raises(ValidationError):
        with_(**fields)
