"""NIfTI: a header of its own, no text, no extension, and no more memory than the header asks for."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from site_agent.deid.nifti import clean_nifti
from site_agent.deid.nifti_header import KEPT
from site_agent.deid.quarantine import Quarantine
from site_agent.deid.recipe import Recipe
from tests.site_agent.deid.helpers import FAMILY, KEY, OTHER

SHIPPED = Path(nib.__file__).parent / "tests" / "data"
NO_FACES = Recipe(clean_recognizable_visual_features=False)


def cleaned(image, name="scan.nii.gz", recipe=NO_FACES):
    raw = image.to_bytes()
    out = clean_nifti(gzip.compress(raw) if name.endswith("gz") else raw, name, recipe, KEY)
    data = gzip.decompress(out.data) if name.endswith("gz") else out.data
    return out, type(image).from_bytes(data), data


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("dtype", [np.uint8, ">i2", np.float32, np.complex64])
def test_text_goes_and_numbers_stay(kind, dtype):
    voxels = (np.arange(4 * 5 * 6 * 2) % 250).reshape(4, 5, 6, 2).astype(dtype)
    affine = np.array([[2, 0.1, 0, -9], [0, 3, 0, 4], [0, 0, 4, 7], [0, 0, 0, 1.0]])
    image = kind(voxels, affine)
    image.header.set_data_dtype(dtype)
    image.header["descrip"], image.header["aux_file"] = f"{FAMILY} 1950".encode(), OTHER.encode()
    image.header["intent_name"] = b"Kyvorelat"
    image.header.set_xyzt_units("mm", "sec")
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", f"seen with {OTHER}".encode()))
    for name in ("a.nii", "a.nii.gz"):
        out, back, data = cleaned(image, name)
        for word in (FAMILY, OTHER, "Kyvorelat"):
            assert word.encode() not in data
        assert not back.header.extensions and np.array_equal(np.asarray(back.dataobj), voxels)
        assert np.allclose(back.affine, affine) and back.header.get_zooms() == image.header.get_zooms()
        assert back.header.get_xyzt_units() == ("mm", "sec")
        assert out.actions["extensions removed"] == 1


def test_scaled_integers_keep_their_scale():
    image = nib.Nifti1Image(np.arange(64, dtype=np.int16).reshape(4, 4, 4), np.eye(4))
    raw = bytearray(image.to_bytes())
    raw[112:120] = np.array([0.5, -3], "<f4").tobytes()
    out = clean_nifti(bytes(raw), "a.nii", NO_FACES, KEY)
    before, after = (nib.Nifti1Image.from_bytes(bytes(b)).get_fdata() for b in (raw, out.data))
    assert np.array_equal(before, after) and before.max() == 63 * 0.5 - 3


def test_gzip_names_nothing():
    import io

    buffer = io.BytesIO()
    with gzip.GzipFile(f"{FAMILY}.nii", "wb", fileobj=buffer, mtime=1e9) as f:
        f.write(nib.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4)).to_bytes())
    assert FAMILY.encode() in buffer.getvalue()
    out = clean_nifti(buffer.getvalue(), f"{FAMILY}.nii.gz", NO_FACES, KEY)
    assert FAMILY.encode() not in out.data and out.data[4:8] == b"\0\0\0\0" and FAMILY not in out.name


@pytest.mark.parametrize(("name", "reason"), [("row_major.dconn.nii", "nifti-unusual")])
def test_cifti_is_quarantined(name, reason):
    with pytest.raises(Quarantine) as refused:
        clean_nifti((SHIPPED / name).read_bytes(), name, Recipe(), KEY)
    assert refused.value.reason == reason


@pytest.mark.parametrize("cut", [400, 300])
def test_a_truncated_volume_is_quarantined(cut):
    raw = nib.Nifti1Image(np.zeros((8, 8, 8), np.int16), np.eye(4)).to_bytes()[:cut]
    for data in (raw, gzip.compress(raw), gzip.compress(raw)[:-20]):
        with pytest.raises(Quarantine):
            clean_nifti(data, "a.nii", NO_FACES, KEY)


#: header fields by (offset, length) that nothing needs and that can carry four to eight letters each
NIFTI1_UNUSED = [
    (4, 10),
    (14, 18),
    (32, 4),
    (36, 2),
    (38, 2),
    (48, 8),
    (56, 12),
    (74, 2),
    (92, 16),
    (120, 3),
    (124, 24),
    (140, 8),
]
NIFTI2_UNUSED = [(48, 32), (80, 24), (136, 32), (192, 32), (224, 8), (232, 8), (496, 4), (524, 15)]


@pytest.mark.parametrize(
    ("kind", "unused"), [(nib.Nifti1Image, NIFTI1_UNUSED), (nib.Nifti2Image, NIFTI2_UNUSED)], ids=["nifti1", "nifti2"]
)
def test_numbers_of_the_header_that_nothing_reads_carry_nothing(kind, unused):
    image = kind(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.diag([2, 3, 4, 1.0]))
    raw = bytearray(image.to_bytes())
    for at, length in unused:
        raw[at : at + length] = (FAMILY.encode() * 8)[:length]
    out = clean_nifti(bytes(raw), "a.nii", NO_FACES, KEY)
    fresh = kind(np.asarray(image.dataobj), image.affine).to_bytes()
    for at, length in unused:
        assert out.data[at : at + length] == fresh[at : at + length], at
    back = kind.from_bytes(out.data)
    assert np.array_equal(np.asarray(back.dataobj), np.asarray(image.dataobj)) and np.allclose(
        back.affine, image.affine
    )
    assert set(out.kept) == set(KEPT)


def test_the_place_of_a_form_without_its_code_goes():
    image = nib.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4))
    image.header["qform_code"], image.header["qoffset_x"] = 0, 4711.25
    out = clean_nifti(image.to_bytes(), "a.nii", NO_FACES, KEY)
    assert nib.Nifti1Image.from_bytes(out.data).header["qoffset_x"] == 0


def test_an_archive_that_unpacks_past_its_header_is_stopped_early():
    image = nib.Nifti1Image(np.zeros((8, 8, 8), np.int16), np.eye(4))
    deflater = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = (
        deflater.compress(image.to_bytes())
        + b"".join(deflater.compress(bytes(1 << 20)) for _ in range(300))
        + deflater.flush()
    )
    peak, refused = peak_of(bomb)
    assert refused == "too-large" and peak < 8 << 20


@pytest.mark.parametrize(("side", "reason"), [(1000, "damaged"), (2000, "too-large"), (32767, "too-large")])
def test_a_header_that_claims_more_than_the_file_can_hold_costs_no_memory(side, reason):
    header = nib.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape((side, side, side))
    header.set_sform(np.eye(4), 1)
    header["vox_offset"] = 352
    for data in (header.binaryblock + bytes(400), gzip.compress(header.binaryblock + bytes(400))):
        peak, refused = peak_of(data)
        assert refused == reason and peak < 4 << 20


def test_one_copy_of_a_volume_is_held():
    voxels = np.random.default_rng(0).integers(0, 9, (64, 64, 64, 40), np.int16)  # 20 MB
    image = nib.Nifti1Image(voxels, np.diag([2, 2, 2, 1.0])).to_bytes()
    packed = gzip.compress(image, 1)
    peak, _ = peak_of(packed)
    assert peak < 2.2 * voxels.nbytes


def peak_of(data):
    tracemalloc.start()
    try:
        clean_nifti(data, "a.nii.gz", NO_FACES, KEY)
        refused = ""
    except Quarantine as q:
        refused = q.reason
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak, refused
