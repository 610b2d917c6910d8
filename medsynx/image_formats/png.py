"""PNG: 8 or 16 bits grey or 8 bits RGB, with the provenance in text chunks."""

from __future__ import annotations

import io

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from medsynx.image_files import Item, Scale
from medsynx.provenance import MARK, Provenance


def encode(item: Item, scale: Scale, about: Provenance) -> dict[str, bytes]:
    """``Description``, ``Software`` and ``Source`` are keywords of the PNG specification (11.3.3.2); ``Source`` holds the JSON."""
    text = PngInfo()
    text.add_text("Description", f"{MARK}. {item.label}")
    text.add_text("Software", about.body["software"])
    more = {"label": item.label, "slope": scale.slope, "intercept": scale.intercept}
    text.add_text("Source", about.json(**more).decode())
    out = io.BytesIO()
    Image.fromarray(item.pixels).save(out, "PNG", pnginfo=text)
    return {".png": out.getvalue()}
