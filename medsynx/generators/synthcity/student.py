"""Training a plugin at the coordinator on rows drawn from a private generator: files in, files out, in a process of its own.

The child gets a folder with ``rows.parquet`` and ``job.json``, an environment without the coordinator's secrets, no way to model hubs, and a
deadline. It leaves ``generator.onnx`` or ``pool.parquet``; nothing else of it is read, and Synthcity's own files go with the folder.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from medsynx import codec
from medsynx.codec import Codes
from medsynx.errors import MedsynxError
from medsynx.generators.base import Artefact
from medsynx.generators.synthcity.catalogue import NETWORKS
from medsynx.generators.synthcity.parameters import Student
from medsynx.study import Study

CHILD = "medsynx.generators.synthcity.student_process"


def train(study: Study, p: Student, taught: Artefact) -> Artefact:
    """A finished student.

    Args:
        taught: the teacher's artefact, private already.

    Raises:
        MedsynxError: ``student-failed`` when the plugin fails, takes too long or leaves rows outside the dictionary.
    """
    from medsynx.samplers import open_sampler

    seed = int(study.digest[:8], 16)  # rows and training repeat when a run is resumed; no privacy rests on it
    rows = open_sampler(taught.sampler, taught.files, study).sample(p.rows, np.random.default_rng(seed))
    job = {
        "plugin": p.plugin,
        "iterations": p.iterations,
        "rows": p.rows,
        "sizes": codec.sizes(study),
        "seed": seed % 2**31,
        "survival": _survival(study, rows),
    }
    with tempfile.TemporaryDirectory() as folder:
        made, latent = run_child(Path(folder), rows, job, p.seconds)
    notes = (
        f"The {p.plugin} of Synthcity learnt from {p.rows:,} rows drawn from a generator of the family {p.teacher.name}, "
        "which spent the whole budget. It saw no patient: what it adds is post-processing and costs no privacy.",
        *taught.notes,
    )
    name = "generator.onnx" if latent else "pool.parquet"
    sampler: dict[str, Any] = {"kind": "onnx-softmax" if latent else "parquet-pool", "file": name}
    artefact = Artefact({name: made}, {**sampler, "latent": latent} if latent else sampler, notes)
    try:
        open_sampler(artefact.sampler, artefact.files, study)
    except MedsynxError:
        raise MedsynxError("student-failed", f"what {p.plugin} made does not fit the dictionary") from None
    return artefact


def run_child(folder: Path, rows: Codes, job: dict[str, Any], seconds: int) -> tuple[bytes, int]:
    """The file a plugin made, and the width of its noise (0 for a pool). Raises ``student-failed``."""
    write_codes(folder / "rows.parquet", rows)
    (folder / "job.json").write_text(json.dumps(job))
    environment = {
        "PATH": os.environ.get("PATH", ""),
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        "HF_HUB_OFFLINE": "1",
        **dict.fromkeys(("HOME", "TMPDIR", "MPLCONFIGDIR", "XDG_CACHE_HOME"), str(folder)),
    }
    command = [sys.executable, "-m", CHILD, str(folder)]
    with (folder / "log").open("wb") as log:
        try:
            ended = subprocess.run(
                command,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise MedsynxError("student-failed", f"{job['plugin']} was not trained within {seconds} seconds") from None
    for name in ("generator.onnx", "pool.parquet"):
        if ended.returncode == 0 and (folder / name).is_file():
            latent = int(json.loads((folder / "result.json").read_text())["latent"])
            if (latent > 0) == (name == "generator.onnx") and (latent > 0) == (job["plugin"] in NETWORKS):
                return (folder / name).read_bytes(), latent
    # The child only ever saw synthetic rows, so its last words may be shown.
    last = (folder / "log").read_text("utf-8", "replace").strip().splitlines()[-3:]
    raise MedsynxError("student-failed", f"{job['plugin']} could not be trained", details=[line[:300] for line in last])


def write_codes(file: Path, codes: Codes) -> None:
    """Codes as Parquet, one int32 column a dictionary column, named by position."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({str(j): codes[:, j].astype(np.int32) for j in range(codes.shape[1])}), file)


def _survival(study: Study, rows: Codes) -> dict[str, Any] | None:
    """Positions of time and event, and which of the event's codes mean yes and no (the commonest of each, for the way back)."""
    if not study.survival:
        return None
    names = list(study.data_columns)
    time, event = names.index(study.survival[0]), names.index(study.survival[1])
    column = study.data_columns[names[event]]
    known = codec.values(column)
    levels = list(getattr(column, "levels", range(known)))
    positive = getattr(column, "positive", None)
    yes = [levels.index(v) for v in positive] if positive else list(range(1, known))
    no = [k for k in range(known) if k not in yes]
    often = np.bincount(rows[:, event], minlength=codec.size(column))
    return {
        "time": time,
        "times": codec.values(study.data_columns[names[time]]),
        "event": event,
        "yes": sorted(yes, key=lambda k: -often[k]),
        "no": sorted(no, key=lambda k: -often[k]),
    }
