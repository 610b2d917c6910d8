"""Other de-identifiers on a folder, each as its manual starts it; run by `planted.py` in an environment of its own.

    uv run --no-project --with dicognito --with pydicom python benchmarks/deid/peers.py dicognito SRC DST

Writes DST and DST.map.json (source -> output or null), and prints seconds of the loop.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

Tool = Callable[[Path, Path], str]  # source file, output folder -> output name
PACKAGES = {
    "deid": ["deid==0.4.13", "pydicom>=3", "setuptools<81"],
    "dicognito": ["dicognito==0.19.0", "pydicom>=3"],
    "dicom-anonymizer": ["dicom-anonymizer==2.1.0", "pydicom>=3"],
    "dcmanon": ["dcmanon==0.3.1"],
}


def dicognito() -> Tool:
    """Its library, one anonymizer for all files."""
    import pydicom
    from dicognito.anonymizer import Anonymizer  # type: ignore[import-not-found]

    anonymizer = Anonymizer(seed="benchmark")

    def run(source: Path, folder: Path) -> str:
        ds = pydicom.dcmread(source)
        anonymizer.anonymize(ds)
        ds.save_as(folder / source.name, enforce_file_format=True)
        return source.name

    return run


def dicom_anonymizer() -> Tool:
    """Its one function, default rules."""
    from dicomanonymizer.simpledicomanonymizer import anonymize_dicom_file  # type: ignore[import-not-found]

    def run(source: Path, folder: Path) -> str:
        anonymize_dicom_file(str(source), str(folder / source.name))
        return source.name

    return run


def deid() -> Tool:
    """Its default recipe, private attributes removed."""
    from deid.dicom import replace_identifiers
    from deid.logger import bot

    bot.level = -10

    def run(source: Path, folder: Path) -> str:
        replace_identifiers(str(source), save=True, output_folder=str(folder), overwrite=True, remove_private=True)
        return source.name

    return run


def dcmanon() -> Tool:
    """Its Python binding."""
    from dcmanon import Anonymizer  # type: ignore[import-not-found]

    anonymizer = Anonymizer(uid_root="1.2.3.4")

    def run(source: Path, folder: Path) -> str:
        (folder / source.name).write_bytes(anonymizer.anonymize(str(source)))
        return source.name

    return run


def main(tool: str, src: str, dst: str) -> None:
    """Run one tool over every file of a folder; what raises counts as not written."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    run = {"deid": deid, "dicognito": dicognito, "dicom-anonymizer": dicom_anonymizer, "dcmanon": dcmanon}[tool]()
    folder = Path(dst)
    folder.mkdir(parents=True)
    outputs: dict[str, str | None] = {}
    files = sorted(Path(src).glob("*.dcm"))
    started, cpu = time.perf_counter(), time.process_time()
    for file in files:
        try:
            outputs[file.name] = run(file, folder)
        except Exception:  # a tool's refusal, whatever its kind
            outputs[file.name] = None
    print(json.dumps({"seconds": time.perf_counter() - started, "cpu": time.process_time() - cpu, "files": len(files)}))
    Path(f"{dst}.map.json").write_text(json.dumps(outputs))


if __name__ == "__main__":
    main(*sys.argv[1:4])
