import json
import subprocess
import sys
import time

import pytest
import yaml

from medsynx.errors import MedsynxError
from medsynx.study import Study, load_study, parse_study


def problems(raw: object) -> tuple[str, ...]:
    with pytest.raises(MedsynxError) as caught:
        parse_study(raw)
    assert caught.value.code == "study-invalid"
    return caught.value.details


def test_every_error_comes_at_once_with_its_path(raw_study):
    raw_study["columns"]["age"]["bounds"] = [90, 18]
    raw_study["columns"]["sex"]["levels"] = ["F", "F"]
    raw_study["columns"]["grade"]["colour"] = "red"
    raw_study["columns"]["marker"]["edges"] = [5, 2]
    raw_study["columns"]["age"]["role"] = "target"
    raw_study["privacy"] |= {"epsilon": -1, "tolerated_dropouts": 2}
    raw_study["family"] = {"name": "marginals", "parameters": {"speed": 9}}
    found = problems(raw_study)
    assert "columns.age.bounds: lower 90 > upper 18" in found
    assert "columns.sex.levels: levels named twice: F" in found
    assert any(p.startswith("columns.grade.colour: ") for p in found)
    assert any(p.startswith("columns.marker: edges must rise") for p in found)
    assert "columns: role target given to age, ill; only one column may have it" in found
    assert any(p.startswith("privacy.epsilon: ") for p in found)
    assert any(p.startswith("privacy.tolerated_dropouts: ") for p in found)
    assert any(p.startswith("family.parameters.speed: ") for p in found)
    assert len(found) == 8


@pytest.mark.parametrize(
    ("path", "value", "fragment"),
    [
        (("family", "name"), "magic", "family.name: 'magic' is not one of"),
        (("privacy", "delta"), 0.5, "privacy.delta: "),
        (("columns", "age", "bounds"), [18, float("inf")], "columns.age.bounds: bounds must be finite"),
        (("columns", "age", "bounds"), [18, 18], "columns.age.bounds: lower and upper are both 18"),
        (("columns", "age", "edges"), [30], "columns.age: give either `bins`"),
        (("columns", "grade", "positive"), ["9"], "columns.grade: positive names some"),
        (("columns", "marker", "role"), "survival_time", "columns: a survival_time needs a column with role event"),
        (("image",), {"shape": [4, 4, 1], "classes": ["a"]}, "image.shape: "),
    ],
)
def test_one_wrong_field(raw_study, path, value, fragment):
    inner = raw_study
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    assert any(p.startswith(fragment) for p in problems(raw_study)), problems(raw_study)


def test_a_study_without_columns_or_a_mapping_is_refused(raw_study):
    raw_study["columns"] = {}
    assert problems(raw_study) == ("columns: a study describes at least one column or an image",)
    with pytest.raises(MedsynxError):
        parse_study(["not", "a", "mapping"])


def test_digest_ignores_spelling_and_sees_every_change(raw_study, study, tmp_path):
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(raw_study, sort_keys=False))
    (tmp_path / "s.json").write_text(json.dumps(raw_study))
    assert load_study(tmp_path / "s.yaml").digest == load_study(tmp_path / "s.json").digest == study.digest
    assert parse_study(json.loads(study.model_dump_json())).digest == study.digest
    assert study.digest != parse_study({**raw_study, "title": "Another"}).digest
    reordered = {**raw_study, "columns": dict(reversed(raw_study["columns"].items()))}
    assert study.digest != parse_study(reordered).digest, "column order is part of the study: it orders the vectors"


def test_a_study_cannot_be_edited(study: Study):
    with pytest.raises(ValueError, match="frozen"):
        study.privacy.epsilon = 9  # type: ignore[misc]


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"a: [1", None])
def test_unreadable_manifest(tmp_path, content):
    file = tmp_path / "s.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(MedsynxError) as caught:
        load_study(file)
    assert caught.value.code == "study-unreadable"


def test_draft_is_marked_and_check_refuses_it_until_edited(tmp_path):
    from tests.conftest import small_table

    small_table(60, 1).to_csv(tmp_path / "my table.csv", index=False)

    def run(*args: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "medsynx", "study", *args], capture_output=True, text=True, cwd=tmp_path
        )

    made = run("draft", "my table.csv", "--out", "draft.yaml")
    assert made.returncode == 0 and "NOT PRIVATE" in made.stderr
    text = (tmp_path / "draft.yaml").read_text()
    assert "NOT PRIVATE" in text and text.count("# FROM ROWS") >= 5
    refused = run("check", "draft.yaml")
    assert refused.returncode == 10 and "FROM ROWS" in refused.stderr
    (tmp_path / "edited.yaml").write_text(text.replace("FROM ROWS", ""))
    checked = run("check", "edited.yaml", "--json")
    assert checked.returncode == 0, checked.stderr
    assert json.loads(checked.stdout)["name"] == "my-table"
    assert run("draft", "my table.csv", "--out", "draft.yaml").returncode == 71, "a draft never overwrites a file"


def test_help_is_quick_and_loads_no_heavy_package():
    code = (
        "import sys; sys.argv=['medsynx','--help']\nfrom medsynx.cli import app\n"
        "try: app()\nexcept SystemExit: pass\n"
        "print(sorted({'torch','flwr','fastapi','pandas','numpy','sklearn','textual'} & set(sys.modules)))"
    )
    began = time.monotonic()
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.stdout.strip().endswith("[]"), out.stdout + out.stderr
    assert "simulate" in out.stdout and "study" in out.stdout
    assert time.monotonic() - began < 5
