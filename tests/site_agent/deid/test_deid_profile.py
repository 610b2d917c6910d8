"""The table, the vocabulary, the recipe and the key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medsynx.errors import MedsynxError
from site_agent.deid.keys import SiteKey
from site_agent.deid.profile import TABLE, Profile, attribute_type, known_sop_class, resolve
from site_agent.deid.recipe import Recipe, load_recipe
from site_agent.deid.vocabulary import Vocabulary, built_in

CT = "1.2.840.10008.5.1.4.1.1.2"


def test_the_table_is_whole_and_says_where_it_comes_from():
    body = json.loads(TABLE.read_text())
    assert len(body["attributes"]) == 657 and len(body["content_items"]) == 214
    source = body["source"]
    assert source["edition"] == "2026d" and len(source["sha256_of_standard_xml"]) == 64
    assert source["second"]["shared_tags"] >= 650 and source["second"]["different_actions"] == 0
    options = {o for rule in body["attributes"].values() for o in rule[1]}
    assert options - {"retain_longitudinal_full_dates"} <= set(Recipe.model_fields)


def test_actions_follow_the_options():
    study_date, serial, description = 0x00080020, 0x00181000, 0x00081030
    bare = Profile(Recipe(retain_longitudinal_modified_dates=False, clean_descriptors=False))
    assert (bare.action(study_date), bare.action(serial), bare.action(description)) == ("Z", "X/Z/D", "X")
    full = Profile(Recipe(retain_device_identity=True))
    assert (full.action(study_date), full.action(serial), full.action(description)) == ("C", "K", "C")
    assert full.action(0x00280010) is None


@pytest.mark.parametrize(
    ("action", "type_", "outcome"),
    [("X/Z/D", "1", "D"), ("X/Z/D", "2", "Z"), ("X/Z/D", "3", "X"), ("X/D", "2", "X"), ("X/D", "1", "D"), ("Z/D", "3", "Z"), ("Z/D", "1", "D"),
     ("X/Z", "1", "Z"), ("X/Z/U*", "3", "U"), ("X", "1", "X")],
)  # fmt: skip
def test_compound_actions_follow_the_type(action, type_, outcome):
    assert resolve(action, type_) == outcome


def test_types_come_from_the_iod():
    assert attribute_type(CT, (), "StudyInstanceUID") == "1" and attribute_type(CT, (), "PatientName") == "2"
    assert attribute_type(CT, (), "PatientComments") == "3" and known_sop_class(CT) and not known_sop_class("1.2.3")


def test_the_vocabulary_holds_words_of_radiology_and_no_names():
    words = built_in()
    assert {"abdomen", "flair", "siemens", "mprage", "contrast", "schaedel"} <= words
    assert (
        not {"smith", "mueller", "garcia", "johnson", "dupont", "rossi", "jansen", "kowalski", "maria", "thomas"}
        & words
    )


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("CT Head w/o contrast", "CT Head w/o contrast"),
        ("t2_tse_ax 3.0", "t2_tse_ax 3.0"),
        ("B30f", "B30f"),
        ("H31s", "H31s"),
        ("head 1987", "head"),
        ("head 12.03.54", "head"),
        ("call 555-123-4567", "call"),
        ("a b c d e f g", ""),
        ("knee Ünsal left", "knee left"),
    ],
)
def test_words_are_judged_one_by_one(text, kept):
    words = Vocabulary(extra=["call"])
    assert words.clean(text) == kept and words.knows(text) == (text == kept)


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=60))
def test_what_is_kept_is_known(text):
    words = Vocabulary()
    assert words.knows(words.clean(text)) or words.clean(words.clean(text)) == words.clean(
        words.clean(words.clean(text))
    )


@given(st.text(min_size=1, max_size=64), st.text(max_size=20))
def test_pseudonyms_agree_with_the_key_and_with_nothing_else(identifier, issuer):
    a, b = SiteKey(b"a" * 32), SiteKey(b"b" * 32)
    assert a.pseudonym(issuer, identifier) == a.pseudonym(issuer, identifier) != b.pseudonym(issuer, identifier)
    assert a.pseudonym(issuer + "x", identifier) != a.pseudonym(issuer, "x" + identifier)
    assert 30 <= a.days(a.pseudonym(issuer, identifier)) < 3030
    assert len(a.uid(identifier)) <= 64 and a.uid(identifier).startswith("2.25.")


def test_recipes_are_checked(tmp_path):
    def load(text: str) -> Recipe:
        file = tmp_path / "recipe"
        file.write_text(text)
        return load_recipe(file)

    assert load("retain_uids: true").retain_uids and load("") == Recipe()
    for bad in (
        "retain_everything: true",
        "retain_uids: maybe",
        "[1",
        "retain_safe_private: true",
        "safe_private: [x]\nretain_safe_private: true",
    ):
        with pytest.raises(MedsynxError) as refused:
            load(bad)
        assert refused.value.code == "recipe-invalid"
    assert load("retain_uids: true").digest != Recipe().digest


def test_deids_language_may_only_take_away(tmp_path):
    file = tmp_path / "deid.site"
    file.write_text(
        "FORMAT dicom\n%header\nREMOVE KVP\nBLANK SliceThickness\n%filter graylist\nLABEL x\n  contains Modality CT\n  coordinates 0,0,9,9\n"
    )
    recipe = load_recipe(file)
    assert recipe.remove == ("KVP", "SliceThickness") and "coordinates" in recipe.regions
    for line in (
        "KEEP PatientName",
        "ADD PatientID func:gone",
        "REPLACE PatientID var:id",
        "REMOVE endswith:Time",
        "JITTER StudyDate 5",
    ):
        file.write_text(f"FORMAT dicom\n%header\n{line}\n")
        with pytest.raises(MedsynxError) as refused:
            load_recipe(file)
        assert refused.value.code == "recipe-invalid" and "line 3" in str(refused.value)


def test_package_data_travels():
    folder = Path(TABLE).parent
    assert (folder / "vocabulary.txt").stat().st_size > 50_000
