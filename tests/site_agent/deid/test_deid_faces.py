"""Faces: a head is defaced or quarantined, whatever was done to it; what passes as no head is shown to be none."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from site_agent.deid.faces import find_face
from site_agent.deid.nifti import clean_nifti
from site_agent.deid.quarantine import Quarantine
from site_agent.deid.recipe import Recipe
from tests.site_agent.deid.helpers import KEY

DATA = Path(str(importlib.util.find_spec("pydeface").submodule_search_locations[0])) / "data"  # type: ignore[union-attr,index]
SHIPPED = Path(nib.__file__).parent / "tests" / "data"


def placed(affine, degrees=(5, 0, 5), millimetres=(12, -9, 15), scale=1.0):
    """The affine after a rigid motion and a scale of the head."""
    motion = np.eye(4)
    motion[:3, :3] = scale * Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    motion[:3, 3] = millimetres
    return motion @ affine


@pytest.fixture(scope="module")
def mean_head():
    """A real face: the mean of many heads that pydeface's wheel ships, at 2 mm; with where its face is."""
    image = nib.load(DATA / "mean_reg2mean.nii.gz")
    volume = np.asarray(image.dataobj)[::2, ::2, ::2].astype(np.float32)
    face = np.asarray(nib.load(DATA / "facemask.nii.gz").dataobj)[::2, ::2, ::2] < 0.5
    return volume, face & (volume > 60), image.affine @ np.diag([2, 2, 2, 1])


@pytest.fixture(scope="module")
def head(mean_head):
    """The same as a file, turned and moved."""
    volume, _, affine = mean_head
    return nib.Nifti1Image(volume.astype(np.int16), placed(affine, (8, -6, 10)))


def cleaned(image, recipe=None):
    out = clean_nifti(gzip.compress(image.to_bytes(), 1), "scan.nii.gz", recipe or Recipe(), KEY)
    return out, type(image).from_bytes(gzip.decompress(out.data)), out.data


def refusal(image):
    with pytest.raises(Quarantine) as refused:
        cleaned(image)
    return refused.value.reason


def noisy(volume, share, seed=0):
    """Rician noise: the background of a magnitude image is not zero."""
    rng, level = np.random.default_rng(seed), share * np.percentile(volume, 99)
    real, imaginary = (rng.normal(0, level, volume.shape).astype(np.float32) for _ in range(2))
    return np.hypot(volume + real, imaginary)


def shouldered(volume, face, affine):
    """The head in a large field of view, on a neck and shoulders."""
    side, below, above = 30, 75, 20
    pad = [(side, side), (side, side), (below, above)]
    large, where = np.pad(volume, pad), np.pad(face, pad)
    affine = affine @ np.array([[1, 0, 0, -side], [0, 1, 0, -side], [0, 0, 1, -below], [0, 0, 0, 1.0]])
    x, y, z = np.ogrid[tuple(slice(0, n) for n in large.shape)]
    x, y = (x - large.shape[0] / 2) * 2, (y - side - volume.shape[1] * 0.45) * 2
    neck = ((x / 60) ** 2 + (y / 65) ** 2 < 1) & (z < below) & (z >= below - 30)
    shoulders = ((x / 190) ** 2 + (y / 90) ** 2 < 1) & (z < below - 25)
    large[np.broadcast_to(neck | shoulders, large.shape)] = np.percentile(volume, 85)
    return large, where, affine


def cut(axis, low, high):
    """A slab of the head: from one share of an axis to another."""

    def of(volume, face, affine):
        first, last = int(volume.shape[axis] * low), int(volume.shape[axis] * high)
        at = (slice(None),) * axis + (slice(first, last),)
        moved = np.eye(4)
        moved[axis, 3] = first
        return volume[at], face[at], affine @ moved

    return of


SPOILT = {
    "noisy background": lambda v, f, a: (noisy(v, 0.15), f, placed(a)),
    "ghosts": lambda v, f, a: (noisy(v + 0.25 * np.roll(v, 64, axis=1), 0.03), f, placed(a)),
    "neck and shoulders": lambda v, f, a: shouldered(v, f, placed(a)),
    "anterior slab": lambda v, f, a: cut(1, 0.6, 1)(v, f, placed(a)),
    "sagittal slab": lambda v, f, a: cut(0, 0.35, 0.65)(v, f, placed(a)),
    "infant": lambda v, f, a: (noisy(v, 0.03), f, placed(a, (5, 10, -15), scale=0.6)),
    "inverted": lambda v, f, a: (np.where(v > 50, v.max() - v, 0), f, placed(a)),
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_spoilt_head_loses_its_face(mean_head, how):
    volume, face, affine = SPOILT[how](*mean_head)
    verdict = find_face(volume, affine)
    assert verdict.kind == "face removed" and verdict.seconds < 60
    assert (~verdict.keep)[face].mean() > 0.93


TURNED = {
    "back to front": lambda a: a @ np.diag([1, -1, 1, 1.0]),
    "upside down": lambda a: a @ np.diag([1, 1, -1, 1.0]),
    "on its back": lambda a: placed(a, (90, 0, 0)),
}


@pytest.mark.parametrize("how", TURNED)
def test_a_head_whose_header_turns_it_over_is_quarantined(mean_head, how):
    volume, _, affine = mean_head
    with pytest.raises(Quarantine) as refused:
        find_face(volume, TURNED[how](affine))
    assert refused.value.reason == "head-uncertain"


def test_a_head_without_a_place_in_space_is_quarantined(head):
    raw = bytearray(head.to_bytes())
    raw[252:256] = bytes(4)  # qform_code and sform_code; nibabel would set them again
    with pytest.raises(Quarantine) as refused:
        clean_nifti(bytes(raw), "scan.nii", Recipe(), KEY)
    assert refused.value.reason == "head-uncertain"


@pytest.mark.parametrize("stretch", [0.1, 10.0])
def test_a_voxel_size_that_contradicts_the_affine_is_no_evidence(head, stretch):
    image = nib.Nifti1Image(np.asarray(head.dataobj), np.diag([stretch, stretch, stretch, 1]) @ head.affine)
    image.header["pixdim"][1:4] = 2
    image.header["qform_code"] = 0
    assert refusal(image) == "head-uncertain"


@pytest.mark.parametrize(("unit", "per_mm"), [("meter", 0.001), ("micron", 1000.0)])
def test_a_head_in_metres_or_microns_loses_its_face(mean_head, unit, per_mm):
    volume, face, affine = mean_head
    affine = np.diag([per_mm] * 3 + [1]) @ placed(affine)
    image = nib.Nifti1Image(volume.astype(np.int16), affine)
    image.header.set_xyzt_units(unit)
    out, back, _ = cleaned(image)
    assert out.notes["face"] == "face removed" and (np.asarray(back.dataobj)[face] == 0).mean() > 0.97
    assert back.header.get_xyzt_units()[0] == unit and np.allclose(back.affine, affine, rtol=1e-5)


def test_a_metre_that_was_meant_as_a_millimetre_is_quarantined(head):
    image = nib.Nifti1Image(np.asarray(head.dataobj), head.affine)
    image.header.set_xyzt_units("meter")
    assert refusal(image) == "head-uncertain"


def test_one_section_of_a_head_is_quarantined(mean_head):
    volume, _, affine = mean_head
    for section in (volume[43:44], volume[43:45]):
        assert refusal(nib.Nifti1Image(section.astype(np.int16), affine)) == "head-uncertain"


@pytest.mark.parametrize("shape", [(-1, 1, 1), (88, 1, 1, -1), (88, 128, 1, -1), (1, 1, 1, -1)])
def test_a_head_in_other_dimensions_is_quarantined(mean_head, shape):
    volume, _, affine = mean_head
    small = volume[::2, ::2, ::2] if shape[0] == -1 else volume  # NIfTI-2 counts further, and nobody would look
    folded = small.astype(np.int16).reshape(shape, order="F")
    raw = nib.Nifti2Image(folded, affine).to_bytes()
    with pytest.raises(Quarantine) as refused:
        clean_nifti(raw, "scan.nii", Recipe(), KEY)
    assert refused.value.reason == "head-uncertain"


def test_what_reaches_past_the_template_goes_too(mean_head):
    """A chin and a nose beyond the template's own field of view."""
    large, _, affine = shouldered(*mean_head)
    gone = ~find_face(large, affine).keep
    assert gone[74, 30 + 100, 75 - 20] and gone[74, 30 + 128 + 10, 75 + 20]


def test_a_face_is_removed_and_the_rest_stays(head):
    out, back, _ = cleaned(head)
    before, after = np.asarray(head.dataobj), np.asarray(back.dataobj)
    assert out.notes["face"] == "face removed" and out.notes["fit"] < -0.6 and out.changed_pixels
    changed = before != after
    assert (after[changed] == 0).all() and np.allclose(back.affine, head.affine, atol=1e-4)
    # in the head's own frame: voxels of the template's face are gone, the upper half and the back are untouched
    mask = np.asarray(nib.load(DATA / "facemask.nii.gz").dataobj)[::2, ::2, ::2][
        : before.shape[0], : before.shape[1], : before.shape[2]
    ]
    face = (mask == 0) & (before > 60)
    assert changed[face].mean() > 0.95
    assert not changed[:, :, int(before.shape[2] * 0.62) :].any() and not changed[:, : before.shape[1] // 2].any()
    (_, seen_before, seen_after), *_ = out.pictures
    assert seen_before.shape[2] == seen_after.shape[2] == 3


def test_a_head_whose_face_is_not_found_is_quarantined(head, monkeypatch):
    monkeypatch.setattr("site_agent.deid.faces.FIT", -9.0)
    assert refusal(head) == "head-uncertain"


@pytest.mark.parametrize("table", [False, True])
@pytest.mark.parametrize("offset", [0, 1024])
@pytest.mark.parametrize("size", [1.0, 0.6])
def test_a_ct_of_a_head_is_quarantined(head, table, offset, size):
    rng = np.random.default_rng(0)
    volume = np.where(np.asarray(head.dataobj) > 40, rng.normal(50, 15, head.shape), -1000)
    volume[np.asarray(head.dataobj) > 420] = 900
    if table:
        volume[:, 8:11] = -200
        volume[:, 10:11] = 300
    image = nib.Nifti1Image((volume + offset).astype(np.int16), placed(head.affine, (0, 0, 0), scale=size))
    assert refusal(image) == "head-ct"


def test_noise_of_a_heads_size_is_quarantined():
    noise = np.random.default_rng(0).normal(100, 20, (90, 100, 90)).astype(np.float32)
    for side in (2.0, 4.0):  # at 4 mm every section is a trunk's size
        with pytest.raises(Quarantine):
            find_face(noise, np.diag([side, side, side, 1.0]))


def test_a_mask_of_a_head_is_not_taken_for_a_phantom(mean_head):
    volume, _, affine = mean_head
    assert find_face((volume > 60).astype(np.float32), affine).kind == "face removed"


@pytest.mark.parametrize("name", ["anatomical.nii", "functional.nii", "reoriented_anat_moved.nii", "standard.nii.gz"])
def test_what_is_no_head_passes_untouched(name):
    image = nib.load(SHIPPED / name)
    out = clean_nifti((SHIPPED / name).read_bytes(), name, Recipe(), KEY)
    back = nib.Nifti1Image.from_bytes(gzip.decompress(out.data) if name.endswith("gz") else out.data)
    assert out.notes["face"] == "not a head" and np.array_equal(np.asarray(back.dataobj), np.asarray(image.dataobj))


def test_a_wide_body_is_no_head():
    x, y, _ = np.mgrid[-100:100, -70:70, 0:30]
    body = np.where((x / 90) ** 2 + (y / 60) ** 2 < 1, 100, 0).astype(np.int16)
    assert find_face(body, np.diag([2, 2, 5, 1.0])).kind == "not a head"
    hounsfield = np.where(body > 0, 40, -1000)
    assert find_face(hounsfield, np.diag([2, 2, 5, 1.0])).kind == "not a head"
    with pytest.raises(Quarantine):  # of a head's width at its upper end
        find_face(np.where((z_of(body) < 20) | (abs(x) < 40), body, 0), np.diag([2, 2, 5, 1.0]))


def z_of(volume):
    return np.arange(volume.shape[2])[None, None]


def test_a_phantom_is_no_head():
    x, y, z = np.mgrid[-50:50, -50:50, -50:50] * 2.5
    rng = np.random.default_rng(0)
    for inside in (x**2 + y**2 + z**2 < 85**2, (x**2 + y**2 < 85**2) & (abs(z) < 90)):
        phantom = np.where(inside, 100, 0) + rng.normal(0, 2, x.shape)
        assert find_face(phantom, np.diag([2.5, 2.5, 2.5, 1.0])).kind == "not a head"
