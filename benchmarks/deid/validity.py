"""New kinds of dciodvfy errors in cleaned files against their sources: 0 is the aim.

python benchmarks/deid/validity.py SRC          # a folder of DICOM files, for example $MEDSYNX_DATA/dicom
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from pydicom import dcmread


def kinds(file: Path) -> Counter[str]:
    """Errors of one file, without the values and positions that differ between two files."""
    done = subprocess.run([Path(sys.executable).parent / "dciodvfy", "-new", str(file)], capture_output=True)
    lines = (done.stdout + done.stderr).decode("latin-1").splitlines()
    errors = (line for line in lines if line.startswith("Error"))
    return Counter(re.sub(r"<[^>]*>|\[\d+\]|0x[0-9a-f]+|\d+", "#", line) for line in errors)


def main(src: str) -> None:
    """Clean the folder, validate both sides, print what is new."""
    with tempfile.TemporaryDirectory() as folder:
        out, mapping, recipe = Path(folder) / "out", Path(folder) / "map.json", Path(folder) / "recipe.yaml"
        recipe.write_text("clean_pixel_data: false\n")
        command = [
            sys.executable,
            "-m",
            "medsynx",
            "deid",
            src,
            out,
            "--key-file",
            Path(folder) / "key",
            "--map",
            mapping,
        ]
        subprocess.run([*map(str, command), "--recipe", str(recipe), "--jobs", "2"], capture_output=True, check=False)
        names = {s: o for s, o in json.loads(mapping.read_text()).items() if o and o.endswith(".dcm")}
        new: Counter[str] = Counter()
        touched, before, after = 0, 0, 0
        for source, output in names.items():
            if dcmread(out / output, stop_before_pixels=True).file_meta.TransferSyntaxUID.is_deflated:
                continue  # dciodvfy reads a deflated file as if it were none
            a, b = kinds(Path(src) / source), kinds(out / output)
            before, after = before + sum(a.values()), after + sum(b.values())
            fresh = {k: n for k, n in b.items() if k not in a}
            new.update(fresh)
            touched += bool(fresh)
            if fresh and "-v" in sys.argv:
                print(source, fresh)
    print(f"{len(names)} files: {before} errors before, {after} after; {touched} files with a new kind of error")
    for kind, n in new.most_common():
        print(f"{n:5d}  {kind}")


if __name__ == "__main__":
    main(sys.argv[1])
