"""``/generators/{id}/samples``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from medsynx.bundle import Bundle
from medsynx.conditions import classes_of
from medsynx.errors import MedsynxError
from medsynx.image_files import ARCHIVES, archive, image_spec, to_npz
from medsynx.samplers import draw
from medsynx.streams import Tail
from server.auth.principal import SignedIn
from server.database import Db
from server.generators import service
from server.problems import RESPONSES

if TYPE_CHECKING:
    import pandas as pd

MEDIA = {"csv": "text/csv; charset=utf-8", "parquet": "application/vnd.apache.parquet"}
MAX_IMAGES = 10_000  #: in one answer; an NPZ is drawn before its first byte leaves
router = APIRouter(prefix="/generators", tags=["samples"], responses=RESPONSES)


class Order(BaseModel):
    """How many rows or images, in which format, given what. The same order gives the same ones when it has a seed.

    ``format``: ``csv`` or ``parquet`` for rows; for images one ``npz``, or a ZIP of ``png``, ``dicom`` or ``nifti`` files. ``conditions``, for rows:
    column -> a level, a number (its bin), null (missing), a list of these, or ``{"min": a, "max": b}`` for a binned column; for images:
    ``class`` -> its name, or a list of names.
    """

    rows: int = Field(ge=1, le=1_000_000)
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    format: Literal["csv", "parquet", "npz", "png", "dicom", "nifti"] = "csv"
    conditions: dict[str, Any] = Field(default_factory=dict, max_length=256)


@router.post(
    "/{generator_id}/samples",
    summary="Draw synthetic rows or images",
    response_class=StreamingResponse,
    responses={
        200: {
            "content": {"text/csv": {}, "application/vnd.apache.parquet": {}, "application/zip": {}},
            "description": "The rows, streamed; images and labels as one NPZ, or as files in a ZIP, streamed.",
        }
    },
)
def samples(generator_id: str, order: Order, request: Request, who: SignedIn, db: Db) -> StreamingResponse:
    """Synthetic rows of a released generator, streamed, or its images."""
    found = service.released(service.find(db, generator_id, who))
    opened = service.open_bundle(request.app.state.folder, found)
    ending = f"-{order.format}.zip" if order.format in ARCHIVES else f".{order.format}"
    named = {"Content-Disposition": f'attachment; filename="{found.name}-{order.rows}{ending}"'}
    if order.format in ("csv", "parquet"):
        chunks = draw(opened, order.rows, order.seed, order.conditions)
        body = _csv(chunks) if order.format == "csv" else _parquet(chunks)
    else:
        body = _images(opened, order)
    return StreamingResponse(body, media_type=MEDIA.get(order.format, "application/zip"), headers=named)


def _images(bundle: Bundle, order: Order) -> Iterator[bytes]:
    """Refusals come before the first byte."""
    image_spec(bundle)
    classes = classes_of(order.conditions, bundle.study)
    if order.rows > MAX_IMAGES:
        raise MedsynxError("rows-invalid", f"{order.rows} images asked for", hint=f"Ask for {MAX_IMAGES:,} at most.")
    if order.format == "npz":
        return iter([to_npz(bundle, order.rows, order.seed, classes)])
    return archive(bundle, order.rows, order.seed, order.format, classes)


def _csv(chunks: Iterator[pd.DataFrame]) -> Iterator[bytes]:
    for number, chunk in enumerate(chunks):
        yield chunk.to_csv(index=False, header=number == 0).encode()


def _parquet(chunks: Iterator[pd.DataFrame]) -> Iterator[bytes]:
    """Row groups as they are drawn; the file's footer comes last, so nothing is held but one chunk."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    tail, writer = Tail(), None
    for chunk in chunks:
        table = pa.Table.from_pandas(chunk, preserve_index=False, schema=writer.schema if writer else None)
        writer = writer or pq.ParquetWriter(pa.PythonFile(tail, mode="w"), table.schema)
        writer.write_table(table)
        yield tail.take()
    if writer:
        writer.close()
        yield tail.take()
