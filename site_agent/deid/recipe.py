"""The recipe: which options of PS3.15 Annex E apply, and what a site adds. Frozen, digested, and recorded in every file's method.

A recipe is YAML or JSON. A file in the language of the package `deid` is accepted where it only takes more away: a line that would keep or
replace a value is refused, because that language leaves the original value in place when a function is missing.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medsynx.errors import MedsynxError

#: option -> code of CID 7050 (PS3.16) that says it was applied
OPTION_CODES = {
    "clean_pixel_data": ("113101", "Clean Pixel Data Option"),
    "clean_recognizable_visual_features": ("113102", "Clean Recognizable Visual Features Option"),
    "clean_graphics": ("113103", "Clean Graphics Option"),
    "clean_structured_content": ("113104", "Clean Structured Content Option"),
    "clean_descriptors": ("113105", "Clean Descriptors Option"),
    "retain_longitudinal_modified_dates": (
        "113107",
        "Retain Longitudinal Temporal Information Modified Dates Option",
    ),
    "retain_patient_characteristics": ("113108", "Retain Patient Characteristics Option"),
    "retain_device_identity": ("113109", "Retain Device Identity Option"),
    "retain_uids": ("113110", "Retain UIDs Option"),
    "retain_safe_private": ("113111", "Retain Safe Private Option"),
    "retain_institution_identity": ("113112", "Retain Institution Identity Option"),
}


class TableRules(BaseModel):
    """How tables are read. Columns the study's dictionary does not name do not enter.

    ``free_text`` columns pass as they are: name one only when a person has read it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    study: Path | None = None
    issuer: str = (
        ""  # IssuerOfPatientID of the same patients in DICOM, so that both get one pseudonym; else `default_issuer`
    )
    free_text: tuple[str, ...] = ()
    smallest_cell: int = Field(default=5, ge=1)


class Recipe(BaseModel):
    """Options of PS3.15 Annex E by name, and a site's additions. The defaults suit training."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    version: Literal[1] = 1
    retain_longitudinal_modified_dates: bool = True
    retain_patient_characteristics: bool = True
    retain_device_identity: bool = False
    retain_institution_identity: bool = False
    retain_uids: bool = False
    retain_safe_private: bool = False
    clean_descriptors: bool = True
    clean_structured_content: bool = True
    clean_graphics: bool = True
    clean_pixel_data: bool = True
    clean_recognizable_visual_features: bool = True
    #: "CREATOR (gggg,xxee)", each one read by a person; numbers only survive
    safe_private: tuple[str, ...] = ()
    #: words a person allowed beside the built-in vocabulary
    vocabulary: tuple[str, ...] = ()
    #: keywords of attributes to take out beside the profile's
    remove: tuple[str, ...] = ()
    #: file in deid's language with further regions to blank
    regions: str = ""
    #: stands in where a file names no IssuerOfPatientID, so that one patient gets one pseudonym
    default_issuer: str = ""
    table: TableRules = TableRules()
    #: names of source folders that are the classes of the images in them; no other folder's name is kept
    labels: tuple[str, ...] = ()
    #: keep pseudonym -> identifier, encrypted under the site's key
    keep_mapping: bool = False

    @property
    def digest(self) -> str:
        """SHA-256 over the canonical JSON."""
        body = self.model_dump(mode="json")
        if not self.labels:  # so that recipes from before there were labels keep their digest
            del body["labels"]
        if self.table.study:  # what the dictionary says counts, not where it lies
            body["table"]["study"] = hashlib.sha256(self.table.study.read_bytes()).hexdigest()
        text = json.dumps(body, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def options(self) -> frozenset[str]:
        """Names of the options that are on."""
        return frozenset(name for name in OPTION_CODES if getattr(self, name))


def load_recipe(file: Path | None) -> Recipe:
    """The recipe in a file, or the default. Raises ``recipe-invalid`` with every fault."""
    if file is None:
        return Recipe()
    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        raise MedsynxError("recipe-invalid", f"{file} cannot be read as text") from None
    if re.match(r"\s*(#[^\n]*\n\s*)*FORMAT\s+dicom", text):
        return from_deid(text)
    try:
        body: Any = yaml.safe_load(text) or {}
        recipe = Recipe.model_validate(body)
    except yaml.YAMLError:
        raise MedsynxError("recipe-invalid", f"{file} is neither YAML nor JSON") from None
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc'])) or 'recipe'}: {e['msg']}" for e in error.errors()]
        raise MedsynxError("recipe-invalid", f"{file} has {len(lines)} faults", details=lines) from None
    if recipe.retain_safe_private and not recipe.safe_private:
        raise MedsynxError("recipe-invalid", "retain_safe_private needs the list `safe_private`")
    for entry in recipe.safe_private:
        if not re.fullmatch(r".+ \([0-9A-Fa-f]{4},xx[0-9A-Fa-f]{2}\)", entry):
            raise MedsynxError("recipe-invalid", f"safe_private: {entry!r} is not `CREATOR (gggg,xxee)`")
    if recipe.table.study and not recipe.table.study.is_absolute():
        study = (file.parent / recipe.table.study).resolve()
        recipe = recipe.model_copy(update={"table": recipe.table.model_copy(update={"study": study})})
    if recipe.table.study and not recipe.table.study.is_file():
        raise MedsynxError("recipe-invalid", f"table.study: {recipe.table.study} is not a file")
    return recipe


def from_deid(text: str) -> Recipe:
    """A recipe from deid's language: REMOVE and BLANK of named attributes, and regions. Raises ``recipe-invalid`` for every other action."""
    from pydicom.datadict import tag_for_keyword

    removed, faults, section = [], [], ""
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.split("#", 1)[0].strip()
        if line.startswith("%"):
            section = line[1:].split()[0].lower()
            if section not in ("header", "filter"):
                faults.append(f"line {number}: section %{section} is not understood")
            continue
        if section != "header" or not line:
            continue
        action, _, rest = line.partition(" ")
        keyword = rest.split()[0] if rest.split() else ""
        if action in ("REMOVE", "BLANK") and tag_for_keyword(keyword):
            removed.append(keyword)
        else:
            faults.append(f"line {number}: only REMOVE and BLANK of one named attribute are taken over, not `{action}`")
    if faults:
        raise MedsynxError(
            "recipe-invalid", f"the deid recipe has {len(faults)} lines we do not take over", details=faults
        )
    return Recipe(remove=tuple(removed), regions=text if "%filter" in text else "")
