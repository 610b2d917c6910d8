"""The family ``synthcity``. What needs the library imports it once, in this process."""

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medsynx import codec
from medsynx.errors import MedsynxError
from medsynx.generators import get_family
from medsynx.generators.base import Artefact, Patients, State
from medsynx.generators.synthcity import catalogue, networks, student
from medsynx.plan import PricedStep, Sampling
from medsynx.privacy import calibrate, dpsgd_event
from medsynx.samplers import open_sampler
from medsynx.study import parse_study
from tests.conftest import RAW_STUDY, small_table

pytestmark = pytest.mark.filterwarnings("ignore")
FAMILY = get_family("synthcity")
TINY = {"rounds": 2, "steps": 5, "hidden": 16, "latent": 4, "timesteps": 8}


def study_of(plugin, mode="shard", **more):
    parameters = {"plugin": plugin, "mode": mode, **(TINY if mode == "shard" else {}), **more}
    return parse_study({**RAW_STUDY, "family": {"name": "synthcity", "parameters": parameters}})


# --- what a study may say, without the library -------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["shard", "student"])
@pytest.mark.parametrize("plugin", ["dpgan", "pategan", "privbayes", "aim"])
def test_unsound_plugins_are_refused_by_name(plugin, mode):
    with pytest.raises(MedsynxError) as refused:
        study_of(plugin, mode)
    assert refused.value.code == "plugin-unsound" and plugin in refused.value.message
    assert catalogue.UNSOUND[plugin] in refused.value.message and "docs/synthcity.md" in refused.value.hint


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"plugin": "nflow", "mode": "shard"}, "plugin"),
        ({"plugin": "great", "mode": "student"}, "downloads"),
        ({"plugin": "great", "mode": "shard"}, "downloads"),
        ({"plugin": "image_cgan", "mode": "shard"}, "without noise"),
        ({"plugin": "image_adsgan", "mode": "student"}, "identifiability"),
        ({"plugin": "nonsense", "mode": "student"}, "is not one of"),
        ({"plugin": "tvae"}, "mode"),
        ({"plugin": "survae", "mode": "student"}, "survival_time"),
        ({"plugin": "tvae", "mode": "student", "teacher": {"name": "nobody"}}, "nobody"),
        (
            {"plugin": "tvae", "mode": "student", "teacher": {"name": "dp-gan", "parameters": {"centre": "median"}}},
            "centre",
        ),
        (
            {"plugin": "arf", "mode": "student", "teacher": {"name": "marginals", "parameters": {"patients": 10**6}}},
            "delta",
        ),
        (
            {
                "plugin": "arf",
                "mode": "student",
                "teacher": {"name": "synthcity", "parameters": {"plugin": "arf", "mode": "student"}},
            },
            "learns from patients",
        ),
        ({"plugin": "arf", "mode": "student", "teacher": {"name": "moments"}}, "learns from patients"),
        ({"plugin": "arf", "mode": "student", "teacher": "marginals"}, "teacher"),
        ({"plugin": "arf", "mode": "student", "teacher": {"name": "marginals", "parameters": [1]}}, "parameters"),
        ({"plugin": ["dpgan"], "mode": "student"}, "plugin"),
    ],
)
def test_what_does_not_fit_is_refused_when_the_study_is_read(parameters, said):
    with pytest.raises(MedsynxError) as refused:
        parse_study({**RAW_STUDY, "family": {"name": "synthcity", "parameters": parameters}})
    assert refused.value.code == "study-invalid" and any(said in line for line in refused.value.details)


def test_an_unsound_teacher_is_refused_too():
    with pytest.raises(MedsynxError) as refused:
        study_of("tvae", "student", teacher={"name": "synthcity", "parameters": {"plugin": "dpgan", "mode": "shard"}})
    assert refused.value.code == "plugin-unsound"


def test_studies_are_read_and_planned_without_the_library():
    family = {"name": "synthcity", "parameters": {"plugin": "tvae", "mode": "shard"}}
    raw = json.dumps({**RAW_STUDY, "family": family})
    code = (
        "import sys, json; from medsynx.study import parse_study; from medsynx.generators import get_family\n"
        f"get_family('synthcity').plan(parse_study(json.loads({raw!r})))\n"
        "sys.exit(any(m in sys.modules for m in ('torch', 'synthcity.plugins', 'cloudpickle')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_student_spends_what_its_teacher_spends_and_sends_what_it_sends():
    study, teacher = study_of("arf", "student"), parse_study(RAW_STUDY)
    marginals = get_family("marginals")
    assert FAMILY.plan(study) == marginals.plan(teacher)
    priced = calibrate(study.privacy, FAMILY.plan(study)).steps[0]
    codes = codec.encode(small_table(200, 0), study)[0]
    patients = Patients(codes, np.arange(200))
    ours = FAMILY.contribute(study, priced, State(), patients, {})
    assert np.array_equal(
        ours.arrays["sum"], marginals.contribute(teacher, priced, State(), patients, {}).arrays["sum"]
    )


# --- samplers ----------------------------------------------------------------------------------------------------


def pool_of(codes):
    out = io.BytesIO()
    pq.write_table(pa.table({str(j): codes[:, j].astype(np.int32) for j in range(codes.shape[1])}), out)
    return out.getvalue()


def test_a_pool_gives_its_rows_each_once_a_turn_and_filters_by_conditions(study):
    codes = codec.encode(small_table(300, 1), study)[0]
    sampler = open_sampler({"kind": "parquet-pool", "file": "p"}, {"p": pool_of(codes)}, study)
    drawn = sampler.sample(600, np.random.default_rng(0))
    assert sorted(map(tuple, drawn)) == sorted([*map(tuple, codes)] * 2)
    assert np.array_equal(drawn, sampler.sample(600, np.random.default_rng(0)))
    women = sampler.given(codec.allowed({"sex": "F"}, study)).sample(50, np.random.default_rng(0))
    assert set(women[:, 1]) == {0}
    with pytest.raises(MedsynxError):
        sampler.given({0: np.zeros(codec.sizes(study)[0], bool)})


def test_a_pool_outside_the_dictionary_is_refused(study):
    codes = codec.encode(small_table(20, 1), study)[0]
    codes[3, 1] = 99
    with pytest.raises(MedsynxError):
        open_sampler({"kind": "parquet-pool", "file": "p"}, {"p": pool_of(codes)}, study)


def test_a_damaged_pool_is_refused_and_nothing_else_happens(study):
    codes, rng = codec.encode(small_table(3000, 1), study)[0], np.random.default_rng(0)
    whole = pool_of(codes)
    for _ in range(200):
        damaged = bytearray(whole)
        for at in rng.integers(0, len(whole), 3):
            damaged[at] ^= 1 << int(rng.integers(8))
        try:
            sampler = open_sampler({"kind": "parquet-pool", "file": "p"}, {"p": bytes(damaged)}, study)
        except MedsynxError as refused:
            assert refused.code == "bundle-unreadable"
        else:
            assert (sampler.codes < codec.sizes(study)).all() and sampler.codes.min() >= 0


def test_a_damaged_model_is_refused(study):
    manifest = {"kind": "onnx-softmax", "file": "m", "latent": 4}
    with pytest.raises(MedsynxError) as refused:
        open_sampler(manifest, {"m": b"no model"}, study)
    assert refused.value.code == "bundle-unreadable"


def test_a_pool_that_would_unpack_to_more_rows_than_any_has_is_refused(study, monkeypatch):
    monkeypatch.setattr("medsynx.samplers.MAX_ROWS", 19)
    codes = codec.encode(small_table(20, 1), study)[0]
    with pytest.raises(MedsynxError):
        open_sampler({"kind": "parquet-pool", "file": "p"}, {"p": pool_of(codes)}, study)


def test_diffusion_restores_what_its_network_knows(study):
    """A network that is sure of one row restores that row; one that knows nothing leaves chance."""
    sizes = codec.sizes(study)
    shapes = networks.shapes("ddpm", sum(sizes), 8, 0, 1)
    weights = {n: np.zeros(s, np.float32) for n, s in shapes.items()}
    weights["model.model.1.bias"] = 30 * codec.to_onehot(np.array([[2, 1, 0, 3, 1]]), study)[0]

    def draw(w):
        files = {"d": networks.denoiser_onnx(w, 16)}
        sampler = open_sampler({"kind": "onnx-diffusion", "file": "d", "timesteps": 16}, files, study)
        return sampler.sample(2000, np.random.default_rng(0))

    assert (draw(weights) == [2, 1, 0, 3, 1]).all()
    share = np.bincount(draw({n: np.zeros_like(a) for n, a in weights.items()})[:, 1], minlength=sizes[1]) / 2000
    assert np.abs(share - 1 / sizes[1]).max() < 0.05


# --- the child, without the library ------------------------------------------------------------------------------


def test_a_child_that_fails_is_a_refusal_with_its_last_words(monkeypatch, tmp_path):
    monkeypatch.setattr(student, "CHILD", "medsynx.no_such_module")
    with pytest.raises(MedsynxError) as failed:
        student.run_child(tmp_path, np.zeros((5, 2), np.int64), {"plugin": "arf"}, 60)
    assert failed.value.code == "student-failed" and "no_such_module" in str(failed.value)


def test_a_child_has_a_deadline_and_no_secrets(monkeypatch, tmp_path):
    monkeypatch.setenv("MEDSYNX_KEY", "secret")
    seen = {}

    def run(command, **settings):
        seen.update(settings)
        raise subprocess.TimeoutExpired(command, settings["timeout"])

    monkeypatch.setattr(student.subprocess, "run", run)
    with pytest.raises(MedsynxError, match="within 7 seconds"):
        student.run_child(tmp_path, np.zeros((5, 2), np.int64), {"plugin": "arf"}, 7)
    assert "MEDSYNX_KEY" not in seen["env"] and seen["env"]["HF_HUB_OFFLINE"] == "1" and seen["cwd"] == tmp_path


def test_a_student_learns_from_the_teacher_alone(monkeypatch):
    """What the child is given is drawn from the artefact; nothing else of the study's run reaches it."""
    study = study_of("arf", "student", rows=500)
    codes = np.tile(np.array([[0, 1, 2, 3, 1]]), (100, 1))
    given = {}

    def run_child(folder, rows, job, seconds):
        given.update(rows=rows, job=job)
        return pool_of(rows), 0

    monkeypatch.setattr(student, "run_child", run_child)
    teacher = Artefact({"p": pool_of(codes)}, {"kind": "parquet-pool", "file": "p"})
    made = student.train(study, FAMILY.parameters(study.family.parameters), teacher)
    assert (given["rows"] == codes[0]).all() and len(given["rows"]) == 500
    assert made.sampler == {"kind": "parquet-pool", "file": "pool.parquet"} and "no patient" in made.notes[0]
    monkeypatch.setattr(student, "run_child", lambda *a: (pool_of(codes + 50), 0))
    with pytest.raises(MedsynxError, match="does not fit the dictionary"):
        student.train(study, FAMILY.parameters(study.family.parameters), teacher)


# --- shards, with the library ------------------------------------------------------------------------------------


def priced(study, noise, rate, steps):
    step = replace(FAMILY.plan(study)[0], sampling=Sampling(rate, steps))
    return PricedStep(step, noise, dpsgd_event(noise, rate, steps))


@pytest.mark.parametrize("plugin", catalogue.SHARDS)
def test_a_round_spends_what_was_priced_and_sends_what_was_planned(plugin, monkeypatch):
    """Noise, clip, rate and steps are those the ledger was charged for; what leaves has the planned names and shapes."""
    from medsynx.generators import dpsgd
    from medsynx.generators.synthcity import shard

    study = study_of(plugin, clip_norm=0.7, batch=16)
    codes = codec.encode(small_table(300, 0), study)[0]
    seen, stepped = [], dpsgd.PrivateTrainer.step

    def noting(self, real, loss, public=None):
        o = self.optimizer
        seen.append((len(real), o.noise_multiplier, o.max_grad_norm, o.expected_batch_size))
        assert isinstance(o.secret, dpsgd.SecretNoise)
        stepped(self, real, loss, public)

    monkeypatch.setattr(dpsgd.PrivateTrainer, "step", noting)
    step = priced(study, 2.5, 0.3, 10)
    out = FAMILY.contribute(study, step, State(), Patients(codes, np.arange(300)), {})
    assert len(seen) == 10 and {s[1:] for s in seen} == {(2.5, 0.7, 16)}
    assert abs(np.mean([s[0] for s in seen]) - 90) < 18 and len({s[0] for s in seen}) > 1
    p = FAMILY.parameters(study.family.parameters)
    named = networks.shapes(plugin, sum(codec.sizes(study)), p.hidden, p.latent, p.layers)
    assert {n: a.shape for n, a in out.arrays.items()} == named and all(
        np.isfinite(a).all() for a in out.arrays.values()
    )
    assert sum(a.size for a in out.arrays.values()) == step.step.size
    assert bool(out.keep) == (plugin in ("ctgan", "adsgan")), "the critic stays, and only there is one"
    assert not list(shard.network(p, sum(codec.sizes(study))).buffers())


@pytest.mark.parametrize("plugin", ["tvae", "ddpm"])
def test_all_that_leaves_has_been_noised(plugin):
    """With noise, two rounds from the same start differ in every array: no weight was trained beside the noise."""
    study = study_of(plugin)
    nobody = Patients(np.zeros((0, len(codec.sizes(study))), np.int64), np.zeros(0, np.int64))
    a, b = (FAMILY.contribute(study, priced(study, 2.0, 0.3, 3), State(), nobody, {}).arrays for _ in range(2))
    assert all(not np.allclose(a[n], b[n], atol=1e-6) for n in a)


def test_weights_that_overflow_on_one_level_do_not_tell_whether_a_patient_has_it():
    """A coordinator's network that is no number for one level of one column: the site answers with or without such a patient."""
    study = study_of("tvae")
    weights = networks.initial_weights(networks.shapes("tvae", sum(codec.sizes(study)), 16, 4, 2), 0)
    weights = {n: 30 * a for n, a in weights.items()}
    weights["encoder.shared.model.0.model.0.weight"][:, codec.sizes(study)[0] + 1] = 3e38
    for canary in (0, 1):
        rows = _patients(study, 0)
        rows.codes[:, 1] = 0
        rows.codes[-1, 1] = canary
        out = FAMILY.contribute(study, priced(study, 1.0, 1.0, 2), State(weights, {"rounds": 0}), rows, {})
        assert all(np.isfinite(a).all() for a in out.arrays.values())


@pytest.mark.parametrize("plugin", ["ctgan", "adsgan"])
def test_the_generator_learns_from_the_critic_alone(plugin, monkeypatch):
    """The rows of a batch reach the private loss and nothing else: without the critic's step the generator does not know them."""
    import torch

    from medsynx.generators import dpsgd

    monkeypatch.setattr(dpsgd.PrivateTrainer, "step", lambda self, real, loss, public=None: None)
    monkeypatch.setattr(torch, "manual_seed", lambda seed, m=torch.manual_seed: m(7))  # the same fakes in both runs
    study = study_of(plugin)
    critic = FAMILY.contribute(study, priced(study, 0.0, 0.5, 1), State(), _patients(study, 0), {}).keep
    a, b = (
        FAMILY.contribute(study, priced(study, 0.0, 0.5, 6), State(), _patients(study, k), critic).arrays
        for k in (0, 1)
    )
    assert all(np.array_equal(a[n], b[n]) for n in a)


def _patients(study, seed):
    codes = codec.encode(small_table(100, seed), study)[0]
    return Patients(codes, np.arange(100))


@pytest.mark.parametrize("plugin", catalogue.SHARDS)
def test_onnx_is_the_trained_network(plugin):
    import onnxruntime as ort
    import torch

    from medsynx.generators.dpsgd import load
    from medsynx.generators.synthcity import shard

    study = study_of(plugin)
    p, width, rng = FAMILY.parameters(study.family.parameters), sum(codec.sizes(study)), np.random.default_rng(0)
    named = networks.shapes(plugin, width, p.hidden, p.latent, p.layers)
    weights = {n: rng.normal(0, 0.3, s).astype(np.float32) for n, s in named.items()}
    net = load(shard.network(p, width), weights).eval()
    artefact = FAMILY.export(study, State(weights))
    run = ort.InferenceSession(artefact.files[artefact.sampler["file"]]).run
    if plugin == "ddpm":
        x, t = rng.random((9, width)).astype(np.float32), np.arange(9) % p.timesteps
        (ours,), theirs = run(None, {"x": x, "t": t}), net(torch.from_numpy(x), torch.from_numpy(t))
    else:
        z = rng.normal(size=(9, p.latent)).astype(np.float32)
        (ours,), theirs = run(None, {"z": z}), (net.decoder if plugin == "tvae" else net)(torch.from_numpy(z))
    assert np.allclose(ours, theirs.detach().numpy(), atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("plugin", ["tvae", "arf"])
def test_a_student_through_simulate(plugin, tmp_path):
    from medsynx.bundle import read_bundle
    from medsynx.samplers import draw
    from onehost.simulate import simulate

    study = study_of(plugin, "student", rows=500, iterations=20)
    files = [tmp_path / f"{k}.csv" for k in range(2)]
    for k, file in enumerate(files):
        small_table(400, k).to_csv(file, index=False)
    found = simulate(study, files, tmp_path / "run")
    rows = [next(iter(draw(read_bundle(Path(found["bundle"])), 50, 3))) for _ in range(2)]
    assert len(rows[0]) == 50 and rows[0].equals(rows[1]) and any("no patient" in n for n in found["notes"])


def test_loading_the_library_leaves_the_standard_output_to_json():
    code = "import medsynx.generators.synthcity.shard"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0 and done.stdout == b""
