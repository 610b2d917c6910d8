"""NPZ files of images: what is read, what is left out, what is refused; and that no image changes what becomes of another."""

import io
import zipfile

import numpy as np
import pytest

from medsynx.errors import MedsynxError
from medsynx.study import parse_study
from site_agent import images
from site_agent.images import label_codes, prepare_images, read_images
from tests.conftest import RAW_IMAGE_STUDY, stripes

KEY = b"k" * 32


def study_of(image=None, **privacy):
    raw = {**RAW_IMAGE_STUDY, "image": {**RAW_IMAGE_STUDY["image"], **(image or {})}}
    return parse_study({**raw, "privacy": {**RAW_IMAGE_STUDY["privacy"], **privacy}})


def raw_of(count=60, **arrays):
    pixels, label = stripes(count, 1)
    return {"images": pixels, "labels": label, **arrays}


def refusal(do, code):
    with pytest.raises(MedsynxError) as caught:
        do()
    assert caught.value.code == code
    return caught.value.message


def written(folder, **arrays):
    np.savez(folder / "site.npz", **arrays)
    return folder / "site.npz"


def by_content(patients):
    return sorted((c[0], i.tobytes()) for c, i in zip(patients.codes.tolist(), patients.images, strict=True))


@pytest.mark.parametrize("grouped", [False, True])
def test_removing_a_patient_changes_nobody_else(grouped):
    """Neither their part nor a bit of their images, however extreme the one who left."""
    study = study_of(max_records_per_patient=3, records="averaged") if grouped else study_of()
    raw = raw_of(90)
    raw["images"][:2] = [np.zeros((12, 12)), np.full((12, 12), 255)]
    raw |= {"patients": np.array([f"P{i // 2}" for i in range(90)])} if grouped else {}
    rest = {n: a[2:] if grouped else np.delete(a, 1, axis=0) for n, a in raw.items()}
    whole, less = prepare_images(raw, study, KEY), prepare_images(rest, study, KEY)
    for part in ("train", "holdout", "all"):
        a, b = by_content(whole.parts[part]), by_content(less.parts[part])
        assert set(b) <= set(a) and len(a) - len(b) <= 2
    assert whole.parts["all"].count - less.parts["all"].count == 1


def test_the_order_of_a_studys_classes_moves_nobody():
    """Whoever writes the manifest chooses it, and a patient's part is for good: costs on the two parts never meet."""
    pixels, label = stripes(90, 1)
    raw = {"images": pixels, "labels": np.array(["flat", "upright"])[label]}
    one, other = (
        prepare_images(raw, study_of({"classes": c}), KEY) for c in (["flat", "upright"], ["upright", "flat"])
    )
    held = [{i.tobytes() for i in table.parts["holdout"].images} for table in (one, other)]
    assert held[0] == held[1] and 5 < len(held[0]) < 40 and one.marks == other.marks


def test_a_study_of_several_images_a_patient_asks_whose_they_are():
    several = study_of(max_records_per_patient=3, records="averaged")
    assert "whose" in refusal(lambda: prepare_images(raw_of(60), several, KEY), "column-missing")
    assert prepare_images(raw_of(60, patients=np.arange(60)), several, KEY).parts["all"].count == 60


def test_patients_with_the_same_images_choose_for_themselves():
    pixels, label = stripes(5, 1)
    raw = {"images": np.tile(pixels, (8, 1, 1)), "labels": np.tile(label, 8), "patients": np.repeat(np.arange(8), 5)}
    whole = prepare_images(raw, study_of(), KEY).parts["all"]
    less = prepare_images({n: a[5:] for n, a in raw.items()}, study_of(), KEY).parts["all"]
    assert whole.count == 8
    assert [i.tobytes() for i in whole.images[1:]] == [i.tobytes() for i in less.images]
    assert len({i.tobytes() for i in whole.images}) > 1, "not all the same one"


def test_intensities_are_scaled_by_the_study_alone():
    raw = raw_of(4)
    raw["images"] = np.array([0, 1000, 3000, 65535], np.uint16)[:, None, None] * np.ones((1, 12, 12), np.uint16)
    table = prepare_images(raw, study_of({"intensity": [1000, 5000]}), KEY)
    found = sorted(table.parts["all"].images[:, 0, 0, 0].tolist())
    assert found == [0.0, 0.0, 0.5, 1.0] and table.report.clipped == {"images": 2}


def test_other_sizes_are_resampled_and_other_shapes_centred():
    pixels, label = stripes(40, 3, size=48)
    found = prepare_images({"images": pixels, "labels": label}, study_of(), KEY).parts["all"].images
    assert found.shape == (40, 1, 12, 12)
    blocks = pixels.reshape(40, 12, 4, 12, 4).mean(axis=(2, 4)) / 255
    assert sorted(np.abs(found.mean(axis=(1, 2, 3)) - m).min() < 0.01 for m in blocks.mean(axis=(1, 2))) == [True] * 40
    wide = {"images": np.full((30, 12, 24), 255, np.uint8), "labels": np.zeros(30, int)}
    one = prepare_images(wide, study_of(), KEY).parts["all"].images[0, 0]
    assert (one[:2] == 0).all() and (one[-2:] == 0).all() and (one[4:8] == 1).all(), "margins, no stretching"


def test_rgb_for_an_rgb_study():
    colour = np.repeat(stripes(30, 4)[0][..., None], 3, axis=3)
    raw = {"images": colour, "labels": np.zeros((30, 1), int)}
    assert prepare_images(raw, study_of({"shape": [12, 12, 3]}), KEY).parts["all"].images.shape == (30, 3, 12, 12)
    assert "grey images" in refusal(lambda: prepare_images(raw, study_of(), KEY), "images-unreadable")
    refusal(lambda: prepare_images(raw_of(), study_of({"shape": [12, 12, 3]}), KEY), "images-unreadable")


@pytest.mark.parametrize(
    ("labels", "codes"),
    [
        (np.array([0, 1, 2, -1]), [0, 1, -1, -1]),
        (np.array(["upright", "flat", "1", "", "tilted"]), [1, 0, 1, -2, -1]),
        (np.array([b"flat", b"upright "]), [0, 1]),
        (np.array([0.0, 1.0, np.nan, 0.5]), [0, 1, -2, -1]),
        (np.array([True, False]), [-1, -1]),
    ],
)
def test_labels(labels, codes):
    study = study_of()
    assert label_codes(labels, study.image, study.missing_values).tolist() == codes


def test_a_class_named_by_a_number_is_matched_by_name_only():
    spec = study_of({"classes": ["1", "2"]}).image
    assert label_codes(np.array([0, 1, 2]), spec, ()).tolist() == [-1, 0, 1]


def test_strange_labels_are_left_out_and_counted_or_refused():
    raw = raw_of(60)
    raw["labels"] = np.where(np.arange(60) < 5, 7, raw["labels"])
    table = prepare_images(raw, study_of(), KEY)
    assert table.parts["all"].count == 55 and table.report.left_out == {"no label": 0, "label outside the study": 5}
    assert "5 images" in refusal(lambda: prepare_images(raw, study_of(), KEY, strict=True), "level-unknown")
    raw["labels"] = np.full(60, 9)
    refusal(lambda: prepare_images(raw, study_of(), KEY), "table-empty")


def test_an_image_with_a_pixel_that_is_no_number_is_one_image_less():
    """Not the hospital's end: the patient gives another image, or nothing, and everybody else gives what they gave."""
    study = study_of(max_records_per_patient=1)
    for value in (np.nan, np.inf, -np.inf, 1e300):
        raw = raw_of(60, patients=np.arange(60) // 2)
        pixels = raw["images"].astype(np.float64)
        pixels[[7, 10, 11], 3, 4] = value  # one of two images of patient 3, both of patient 5
        less = {n: np.delete(a, [7, 10, 11], axis=0) for n, a in {**raw, "images": pixels}.items()}
        found, expected = prepare_images({**raw, "images": pixels}, study, KEY), prepare_images(less, study, KEY)
        assert found.report.left_out["pixels that are not finite numbers"] == 3 and found.parts["all"].count == 29
        assert by_content(found.parts["train"]) == by_content(expected.parts["train"])
        assert by_content(found.parts["holdout"]) == by_content(expected.parts["holdout"])
        one = raw_of(60)
        one["images"] = np.where(np.arange(60)[:, None, None] == 9, value, one["images"].astype(np.float64))
        assert prepare_images(one, study, KEY).parts["all"].count == 59
        assert "1 of 60" in refusal(lambda raw=one: prepare_images(raw, study, KEY, strict=True), "value-not-finite")


def test_one_image_a_class_and_a_class_that_is_not_there():
    """Neither is an error, and neither changes the codes of the others."""
    study = study_of({"classes": ["flat", "upright", "steep"]})
    raw = {"images": stripes(2, 1)[0], "labels": np.array(["upright", "flat"])}
    assert sorted(prepare_images(raw, study, KEY).parts["all"].codes.ravel()) == [0, 1]
    raw = {"images": stripes(9, 1)[0], "labels": np.full(9, "steep")}
    assert prepare_images(raw, study, KEY).parts["all"].codes.ravel().tolist() == [2] * 9


def test_volumes_become_sections_of_one_patient_where_a_study_says_how_many():
    volumes = np.arange(30 * 9, dtype=np.uint8).reshape(30, 9, 1, 1) % 251 * np.ones((1, 1, 12, 12), np.uint8)
    raw = {"images": volumes, "labels": np.arange(30) % 2, "patients": np.arange(30)}
    study = study_of({"slices": 3}, max_records_per_patient=5, records="averaged")
    found = prepare_images(raw, study, KEY).parts["all"]
    assert found.count == 30 and len(found.images) == 90
    seen = sorted(np.round(found.images[:, 0, 0, 0] * 255).astype(int).tolist())
    assert seen == sorted(volumes[:, [1, 4, 7], 0, 0].ravel().tolist())
    assert prepare_images(raw, study_of({"slices": 1}), KEY).parts["all"].count == 30
    refusal(lambda: prepare_images(raw, study_of(), KEY), "images-unreadable")
    refusal(lambda: prepare_images({n: raw[n] for n in ("images", "labels")}, study, KEY), "column-missing")
    with pytest.raises(MedsynxError) as caught:
        study_of({"slices": 3})
    assert "image.slices" in caught.value.details[0]


def test_percentiles_scale_each_image_by_itself():
    raw = raw_of(40)
    study = study_of({"percentiles": [1, 99]})
    whole = prepare_images(raw, study, KEY)
    raw["images"] = raw["images"].astype(np.float32) * np.linspace(1, 900, 40, dtype=np.float32)[:, None, None]
    assert whole.report.clipped == {}
    turned = prepare_images(raw, study, KEY).parts["all"]
    for a in whole.parts["all"].images:
        assert np.abs(turned.images - a).max(axis=(1, 2, 3)).min() < 1e-5


def test_patients_are_capped_the_same_way_every_time():
    raw = raw_of(60, patients=np.arange(60) // 6)
    one, two = (prepare_images(raw, study_of(), KEY) for _ in range(2))
    assert one.parts["all"].count == len(one.parts["all"].images) == 10 and one.capped == 50
    assert by_content(one.parts["all"]) == by_content(two.parts["all"])
    refusal(lambda: prepare_images(raw, study_of(), KEY, strict=True), "patient-duplicate")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"images": np.full((60, 12, 12), np.nan)}, "value-not-finite"),
        ({"images": np.full((60, 12, 12), np.inf, np.float16)}, "value-not-finite"),
        ({"images": np.zeros((60, 12, 12), complex)}, "images-unreadable"),
        ({"images": np.zeros((60, 9, 12, 12), np.uint8)}, "images-unreadable"),
        ({"images": np.zeros((60, 144), np.uint8)}, "images-unreadable"),
        ({"images": np.zeros((0, 12, 12), np.uint8), "labels": np.zeros(0)}, "table-empty"),
        ({"images": np.zeros((60, 0, 12), np.uint8)}, "images-unreadable"),
        ({"labels": np.zeros(59, int)}, "images-unreadable"),
        ({"labels": np.zeros((60, 2), int)}, "images-unreadable"),
        ({"patients": np.array(["A"] * 59 + [""])}, "column-missing"),
        ({"patients": np.arange(59)}, "images-unreadable"),
    ],
)
def test_what_is_refused(change, code):
    refusal(lambda: prepare_images(raw_of(60, **change), study_of(), KEY), code)


def test_files_that_are_not_what_they_should_be(tmp_path):
    assert "objects" in refusal(
        lambda: read_images(written(tmp_path, images=np.array([np.zeros((2, 2)), None], object), labels=[0, 1])),
        "images-unreadable",
    )
    assert "labels" in refusal(lambda: read_images(written(tmp_path, images=np.zeros((3, 8, 8)))), "column-missing")
    (tmp_path / "text.npz").write_text("images")
    refusal(lambda: read_images(tmp_path / "text.npz"), "images-unreadable")
    refusal(lambda: read_images(tmp_path / "none.npz"), "images-unreadable")
    whole = written(tmp_path, **raw_of()).read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    refusal(lambda: read_images(tmp_path / "cut.npz"), "images-unreadable")
    parts = {f"{part}_{n}": a[k:] for k, part in enumerate(("train", "val", "test")) for n, a in raw_of().items()}
    mnist = written(tmp_path, **parts)
    assert (read_images(mnist)["images"] == raw_of()["images"]).all()
    assert (read_images(mnist, "test")["labels"] == raw_of()["labels"][2:]).all()
    back = read_images(written(tmp_path, **raw_of(), extra=np.zeros(3)))
    assert set(back) == {"images", "labels"}, "nothing else of the file is read"


def test_a_bomb_is_refused_by_its_header(tmp_path, monkeypatch):
    """Terabytes that pack into a few bytes are never unpacked."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**6, 1000, 1000)})
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", header.getvalue() + bytes(1000))
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("unpacked"))
    assert "larger" in refusal(lambda: read_images(tmp_path / "bomb.npz"), "images-unreadable")
    monkeypatch.setattr(images, "MAX_BYTES", 1000)
    assert "larger" in refusal(lambda: read_images(written(tmp_path, **raw_of())), "images-unreadable")
