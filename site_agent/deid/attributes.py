"""One walk over every attribute of a data set, at every depth: the table first, then the value representation, then deny.

An attribute survives only when Table E.1-1 keeps or cleans it, or when it is not text, or when every word of it is in the vocabulary.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pydicom._uid_dict import UID_dictionary
from pydicom.charset import python_encoding
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from site_agent.deid.codes import is_public, meaning_of
from site_agent.deid.keys import SiteKey
from site_agent.deid.pixels import PIXELS
from site_agent.deid.profile import Profile, attribute_type, resolve
from site_agent.deid.reader import Needles
from site_agent.deid.recipe import Recipe
from site_agent.deid.values import (
    BINARY,
    PROSE,
    SHAPES,
    TEXT,
    canonical,
    has_declared_type,
    is_over_89,
    number_text,
    plain_srgb,
    shift,
    values_of,
)
from site_agent.deid.vocabulary import CONTROL, MOST_DIGITS, OLDEST, Vocabulary

#: binary values that are samples or geometry, not a place for text
SAMPLES = frozenset(
    """PixelData FloatPixelData DoubleFloatPixelData ExtendedOffsetTable ExtendedOffsetTableLengths LUTData WaveformData WaveformPaddingValue
    TrackPointIndexList VertexPointIndexList EdgePointIndexList TrianglePointIndexList PrimitivePointIndexList LongPrimitivePointIndexList
    LongTrianglePointIndexList LongEdgePointIndexList LongVertexPointIndexList PointCoordinatesData PointPositionAccuracy DoublePointCoordinatesData
    SurfacePointsNormals VectorCoordinateData SpectroscopyData FirstOrderPhaseCorrectionAngle VectorGridData FloatingPointValues
    AnnotationIndexList UValueData VValueData TwoDimensionalToThreeDimensionalMapData VolumetricCurvePoints VolumetricCurveUpDirections
    VerticesOfThePolygonalOutline BlockEdgeData CompensatorDistalThicknessMap CompensatorProximalThicknessMap BlendingLookupTableData
    FilterLookupTableData RedPaletteColorLookupTableData GreenPaletteColorLookupTableData BluePaletteColorLookupTableData
    AlphaPaletteColorLookupTableData SegmentedRedPaletteColorLookupTableData SegmentedGreenPaletteColorLookupTableData
    SegmentedBluePaletteColorLookupTableData SegmentedAlphaPaletteColorLookupTableData PixelPaddingValue""".split()
)
#: identifying and not in the table
EXTRA = frozenset({"PatientBirthDateInAlternativeCalendar", "PatientDeathDateInAlternativeCalendar"})
#: defined terms that are numbers: compression standards, templates and context groups (PS3.16)
NUMBERED_TERMS = {
    "LossyImageCompressionMethod": re.compile(r"ISO_\d{5}_\d{1,2}"),
    "TemplateIdentifier": re.compile(r"\d{1,5}"),
    "ContextIdentifier": re.compile(r"\d{1,5}"),
    "ImageType": re.compile(
        r"0\d{3}|"
    ),  # ultrasound codes its mode in four digits (PS3.3 C.8.5.6); empty keeps its place
}
DUMMY: dict[str, Any] = {"DA": "19000101", "DT": "19000101000000", "TM": "000000", "AS": "000Y", "DS": "0", "IS": "0"}
CODE_ITEM = frozenset({"CodeValue", "LongCodeValue", "URNCodeValue"})


@dataclass
class Trace:
    """What a walk did, in counts, and what it took out, for the second reader only."""

    actions: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)
    dates: set[str] = field(default_factory=set)
    needles: Needles = field(default_factory=Needles)


class Walk:
    """Cleans one data set in place.

    Args:
        profile, recipe, key: see their modules.
        days: this patient's date shift.
        denied: words that must not stay though the vocabulary has them.
        identifiers: the patient's numbers, which must not stay in a number either.
    """

    def __init__(
        self,
        profile: Profile,
        recipe: Recipe,
        key: SiteKey,
        *,
        sop_class: str,
        days: int,
        denied: frozenset[str],
        identifiers: frozenset[str] = frozenset(),
    ) -> None:
        self.profile, self.recipe, self.key = profile, recipe, key
        self.sop_class, self.days = sop_class, days
        self.vocabulary = Vocabulary(recipe.vocabulary, denied)
        self.denied = denied
        self.identifiers = identifiers
        self._numbers = {canonical(i) for i in identifiers} - {""}
        self.trace = Trace()
        self.options = recipe.options
        self._remove = frozenset(recipe.remove)
        self._safe = {self._safe_key(entry) for entry in recipe.safe_private}
        self._retains_names = bool(self.options & {"retain_device_identity", "retain_institution_identity"})

    @staticmethod
    def _safe_key(entry: str) -> tuple[str, int, int]:
        m = re.fullmatch(r"(.+) \(([0-9A-Fa-f]{4}),xx([0-9A-Fa-f]{2})\)", entry)
        assert m is not None
        return m[1], int(m[2], 16), int(m[3], 16)

    def clean(self, ds: Dataset, path: tuple[str, ...] = ()) -> Trace:
        """Clean every element of the data set and of its sequences."""
        public_code = self._code(ds) if path else True
        for tag in list(ds.keys()):
            try:
                element = ds[tag]
                _ = element.value
            except Exception:  # a value that cannot be read cannot be shown to be clean
                del ds[tag]
                self.trace.actions["unreadable value removed"] += 1
                continue
            self._element(ds, element, path, public_code)
        return self.trace

    # -- one element

    def _element(self, ds: Dataset, e: DataElement, path: tuple[str, ...], public_code: bool) -> None:
        tag, group, keyword = e.tag, e.tag.group, e.keyword
        if e.tag.is_private:
            return self._private(ds, e, path)
        if 0x5000 <= group <= 0x501E or 0x6000 <= group <= 0x601E or group in (0x0004, 0xFFFC) or tag == 0x00880200:
            return self._remove_element(ds, e, "curve, overlay, icon or padding removed")
        if e.VR == "UN" or not keyword:
            return self._remove_element(ds, e, "unknown attribute removed")
        if not has_declared_type(e):
            return self._blank(ds, e, path, "value of another type than the standard's removed")
        if keyword in PIXELS and path:
            return self._remove_element(ds, e, "pixels of another image removed")
        if keyword in EXTRA:
            return self._remove_element(ds, e, "date in another calendar removed")
        if keyword in self._remove:
            return self._blank(ds, e, path, "removed by the recipe")
        action = self.profile.action(int(tag))
        type_ = attribute_type(self.sop_class, path, keyword)
        action = resolve(action, type_) if action else None
        if e.VR == "SQ":
            return self._sequence(ds, e, path, action, type_)
        if keyword in CODE_ITEM and path:
            return self._keep(e)  # checked or replaced by _code before the walk
        if keyword in ("CodingSchemeDesignator", "CodeMeaning") and path and "CodeValue" in ds:
            return self._keep(e)
        if keyword == "ICCProfile":
            e.value = plain_srgb()
            self.trace.actions["colour profile replaced by sRGB"] += 1
            return self._keep(e)
        if e.VR in BINARY and keyword not in SAMPLES:
            return self._remove_element(ds, e, "binary removed")
        by_vr: dict[str, Callable[..., None]] = {"UI": self._uid, "DA": self._date, "DT": self._date, "PN": self._name}
        if action in ("X", "Z", "D") and e.VR != "UI":
            return self._blank(ds, e, path, f"E.1-1 {action}", dummy=action == "D")
        if e.VR in by_vr:
            return by_vr[e.VR](ds, e, path, action)
        if e.VR == "UR":
            return self._remove_element(ds, e, "address removed")
        if e.VR in SHAPES:
            return self._shaped(ds, e, path)
        if e.VR in TEXT:
            return self._text(ds, e, path, action)
        self._keep(e)

    def _private(self, ds: Dataset, e: DataElement, path: tuple[str, ...]) -> None:
        if "retain_safe_private" in self.options:
            if e.tag.is_private_creator and any(k[0] == str(e.value).strip() for k in self._safe):
                return self._keep(e)
            creator = str(
                (
                    ds.get(e.tag.group << 16 | e.tag.element >> 8, None)
                    and ds[e.tag.group << 16 | e.tag.element >> 8].value
                )
                or ""
            )
            safe = (creator.strip(), e.tag.group, e.tag.element & 0xFF) in self._safe
            if safe and e.VR in ("US", "SS", "UL", "SL", "FL", "FD", "UV", "SV"):
                return self._keep(e)
            if safe and e.VR in ("IS", "DS"):
                return self._shaped(ds, e, path)
        self._remove_element(ds, e, "private removed")

    def _sequence(self, ds: Dataset, e: DataElement, path: tuple[str, ...], action: str | None, type_: str) -> None:
        keyword = e.keyword
        if keyword == "GraphicAnnotationSequence" or (action == "X" and type_ != "1"):
            return self._remove_element(ds, e, "sequence removed")
        if keyword == "ContentSequence" and "clean_structured_content" not in self.options:
            return self._remove_element(ds, e, "sequence removed")
        if action == "Z" and type_ != "1":
            self._harvest(e)
            e.value = Sequence([])
            self.trace.actions["sequence emptied"] += 1
            return None
        for item in e.value or []:
            if keyword == "ContentSequence":
                self._content_item(item)
            self.clean(item, (*path, keyword))
        return self._keep(e)

    def _content_item(self, item: Dataset) -> None:
        """A content item keeps its place, since others may refer to it by position; free text and names become a dummy."""
        kind = str(item.get("ValueType", ""))
        concept = (item.get("ConceptNameCodeSequence") or [Dataset()])[0]
        scheme, code = str(concept.get("CodingSchemeDesignator", "")), str(concept.get("CodeValue", ""))
        action = self.profile.content_action(scheme, code, kind)
        for keyword in ("TextValue", "PersonName"):
            if keyword in item:
                self._harvest(item[keyword])
                item[keyword].value = "REMOVED"
                self.trace.actions["report text removed"] += 1
        if action and action[0] == "X" and kind in ("CODE", "NUM"):
            for keyword in ("ConceptCodeSequence", "MeasuredValueSequence"):
                if keyword in item:
                    item[keyword].value = Sequence([])

    def _code(self, ds: Dataset) -> bool:
        """Check a coded entry against its scheme; a local one gets a pseudonymous code. Returns whether it was public."""
        if "CodeValue" not in ds and "LongCodeValue" not in ds and "URNCodeValue" not in ds:
            return True
        scheme = str(ds.get("CodingSchemeDesignator", "") or "").strip()
        value = str(ds.get("CodeValue", "") or "").strip()
        meaning = str(ds.get("CodeMeaning", "") or "")
        if "LongCodeValue" not in ds and "URNCodeValue" not in ds and is_public(scheme, value, self.vocabulary.knows):
            known = meaning_of(scheme, value)
            if meaning and meaning != known and not self.vocabulary.knows(meaning):
                self.trace.needles.add_text(meaning)
                ds.CodeMeaning = known or f"code {value}"
                self.trace.actions["code meaning replaced"] += 1
            return True
        for text in (value, meaning, scheme):
            self.trace.needles.add_text(text)
        for keyword in ("LongCodeValue", "URNCodeValue"):
            if keyword in ds:
                self.trace.needles.add_text(str(ds[keyword].value))
                value = value or str(ds[keyword].value)
                del ds[keyword]
        kept = self.vocabulary.clean(meaning)
        ds.CodeValue = "L" + self.key.mac("code", scheme, value).hex()[:12].upper()
        ds.CodingSchemeDesignator, ds.CodeMeaning = "99LOCAL", kept or "local code"
        self.trace.actions["local code replaced"] += 1
        return False

    # -- by value representation

    def _uid(self, ds: Dataset, e: DataElement, path: tuple[str, ...], action: str | None) -> None:
        values = [str(v).strip("\0 ") for v in values_of(e)]
        if e.keyword.endswith("ClassUID") or e.keyword in (
            "TransferSyntaxUID",
            "CodingSchemeUID",
            "ContextUID",
            "MappingResourceUID",
        ):
            # a private class in a reference: the reference stays whole, the maker's root does not
            if not all(v in UID_dictionary for v in values):
                e.value = [v if v in UID_dictionary else self.key.uid(v) for v in values]
                self.trace.actions["UID mapped"] += 1
            return self._keep(e)
        if any(not SHAPES["UI"].fullmatch(v) for v in values):
            # text in a UID: map it all the same, so that references to it still agree
            for v in values:
                self.trace.needles.add_text(v)
        if action == "X":
            return self._remove_element(ds, e, "E.1-1 X")
        if action == "K" or ("retain_uids" in self.options and all(SHAPES["UI"].fullmatch(v) for v in values)):
            return self._keep(e)
        new = [v if v in UID_dictionary else self.key.uid(v) for v in values]
        if new:
            e.value = new if len(new) > 1 else new[0]
            self.trace.actions["UID mapped"] += 1
        return self._keep(e)

    def _date(self, ds: Dataset, e: DataElement, path: tuple[str, ...], action: str | None) -> None:
        old = [str(v) for v in values_of(e)]
        if not old:
            return self._keep(e)
        if "retain_longitudinal_modified_dates" not in self.options:
            return self._blank(ds, e, path, "date removed")
        new = [shift(v, self.days) for v in old]
        if None in new:
            return self._blank(ds, e, path, "date without the shape of a date removed")
        self._harvest(e)
        e.value = new if len(new) > 1 else new[0]
        self.trace.dates.update(str(v)[:8] for v in new)
        self.trace.actions["date shifted"] += 1
        return self._keep(e)

    def _name(self, ds: Dataset, e: DataElement, path: tuple[str, ...], action: str | None) -> None:
        self._blank(ds, e, path, "person name emptied", dummy=attribute_type(self.sop_class, path, e.keyword) == "1")

    def _shaped(self, ds: Dataset, e: DataElement, path: tuple[str, ...]) -> None:
        if e.VR == "TM" and "retain_longitudinal_modified_dates" not in self.options:
            return self._blank(ds, e, path, "time removed")
        if any(not SHAPES[e.VR].fullmatch(number_text(v)) for v in values_of(e)):
            return self._blank(ds, e, path, "value without the shape of its type removed")
        numbers = [number_text(v).lower() for v in values_of(e)]
        if any(n in self.identifiers or canonical(n) in self._numbers for n in numbers):
            return self._blank(ds, e, path, "number equal to an identifier removed")
        if e.VR == "IS" and e.keyword.endswith("Number") and any(len(n.strip("+-0")) > MOST_DIGITS for n in numbers):
            return self._blank(ds, e, path, "number as long as an identifier removed")
        if e.VR == "AS" and any(is_over_89(n.upper()) for n in numbers):
            e.value = f"{OLDEST:03d}Y"
            self.trace.actions["age over 89 grouped"] += 1
        return self._keep(e)

    def _text(self, ds: Dataset, e: DataElement, path: tuple[str, ...], action: str | None) -> None:
        values = [str(v) for v in values_of(e)]
        if e.keyword == "SpecificCharacterSet":
            if any(v not in python_encoding for v in values):
                e.value = "ISO_IR 192"
            return self._keep(e)
        if (
            action == "K"
            and self._retains_names
            and not any(w in self.denied for v in values for w in v.lower().split())
        ):
            return self._keep(e)
        if any(CONTROL.search(v) for v in values):  # an escape to another character set that is not declared
            return self._blank(ds, e, path, "text with control characters removed")
        if e.VR == "CS":
            # a code string is a defined term or it is not: half of one means something else. Names do not deny it: MR stays MR.
            plain = Vocabulary(self.recipe.vocabulary)
            numbered = NUMBERED_TERMS.get(e.keyword)
            known = [
                plain.knows(v) or bool(numbered and numbered.fullmatch(v) and v not in self.identifiers) for v in values
            ]
            stands_in = "OTHER" if e.keyword == "ImageType" else ""  # its values count by position
            new = [v if k else stands_in for v, k in zip(values, known, strict=True)]
        elif e.VR in PROSE:
            new = [v if self.vocabulary.knows(v) else "" for v in values]
        else:
            new = self.vocabulary.clean_values(values)
        digits = re.sub("[^0-9]", "", "".join(new))
        if any(len(n) > 3 and n in digits for n in self._numbers):  # an identifier in groups
            new = [re.sub("[0-9]+", " ", v).strip() for v in new]
        if new == values:
            return self._keep(e)
        for v in values:
            self.trace.needles.add_text(v)
        if not any(new):
            return self._blank(ds, e, path, "text outside the vocabulary removed")
        e.value = new if len(new) > 1 else new[0]
        self.trace.actions["text cleaned"] += 1
        return self._keep(e)

    # -- endings

    def _keep(self, e: DataElement) -> None:
        self.trace.kept[e.keyword or f"private {e.tag}"] += 1

    def _blank(self, ds: Dataset, e: DataElement, path: tuple[str, ...], why: str, dummy: bool = False) -> None:
        """Take the value out and leave what the IOD needs: nothing, an empty value, or a dummy."""
        self._harvest(e)
        type_ = attribute_type(self.sop_class, path, e.keyword)
        if type_ == "1" or dummy:
            if e.VR in ("OB", "OW", "UN"):
                e.value = b"\0\0"
            elif e.VR in TEXT or e.VR == "PN":
                e.value = "REMOVED"
            elif e.VR in DUMMY:
                e.value = DUMMY[e.VR]
            else:
                e.value = 0
            self.trace.dates.add(DUMMY["DA"])
        elif type_ == "2":
            e.value = None
        else:
            del ds[e.tag]
        self.trace.actions[why] += 1

    def _remove_element(self, ds: Dataset, e: DataElement, why: str) -> None:
        self._harvest(e)
        del ds[e.tag]
        self.trace.actions[why] += 1

    def _harvest(self, e: DataElement) -> None:
        """Remember what goes, for the second reader."""
        needles = self.trace.needles
        if e.VR == "SQ":
            for item in e.value or []:
                for inner in item:
                    self._harvest(inner)
            return
        for v in values_of(e):
            if isinstance(v, bytes):
                needles.add_bytes(v)
            elif e.VR in ("DA", "DT"):
                needles.add_date(str(v))
                if not re.match(r"\d{8}", str(v)):
                    needles.add_text(str(v))
            elif e.VR == "PN" or e.VR not in ("UI", "DS", "IS", "TM", "US", "SS", "UL", "SL", "FL", "FD", "AT"):
                needles.add_text(str(v))
