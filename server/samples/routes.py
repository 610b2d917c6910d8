"""``/generators/{id}/samples``."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel, Field

from medsynx.bundle import Bundle
from medsynx.errors import MedsynxError
from medsynx.image_files import to_npz
from medsynx.image_samplers import draw_images
from medsynx.samplers import draw
from server.auth.principal import SignedIn
from server.database import Db
from server.generators import service
from server.problems import RESPONSES

if TYPE_CHECKING:
    import pandas as pd

MEDIA = {"csv": "text/csv; charset=utf-8", "parquet": "application/vnd.apache.parquet", "npz": "application/zip"}
MAX_IMAGES = 10_000  #: in one answer: they are drawn before the first byte leaves
router = APIRouter(prefix="/generators", tags=["samples"], responses=RESPONSES)


class Order(BaseModel):
    """How many rows or images, in which format, given what. The same order gives the same ones when it has a seed.

    ``format``: ``npz`` for images, the others for rows. ``conditions``, for rows: column -> a level, a number (its bin), null (missing), a list of
    these, or ``{"min": a, "max": b}`` for a binned column.
    """

    rows: int = Field(ge=1, le=1_000_000)
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    format: Literal["csv", "parquet", "npz"] = "csv"
    conditions: dict[str, Any] = Field(default_factory=dict, max_length=256)


@router.post(
    "/{generator_id}/samples",
    summary="Draw synthetic rows or images",
    response_class=StreamingResponse,
    responses={
        200: {
            "content": {"text/csv": {}, "application/vnd.apache.parquet": {}, "application/zip": {}},
            "description": "The rows, streamed; or images and labels as one NPZ.",
        }
    },
)
def samples(generator_id: str, order: Order, request: Request, who: SignedIn, db: Db) -> Response:
    """Synthetic rows of a released generator, streamed, or its images."""
    found = service.released(service.find(db, generator_id, who))
    opened = service.open_bundle(request.app.state.folder, found)
    named = {"Content-Disposition": f'attachment; filename="{found.name}-{order.rows}.{order.format}"'}
    if order.format == "npz":
        return Response(_npz(opened, order), media_type=MEDIA["npz"], headers=named)
    chunks = draw(opened, order.rows, order.seed, order.conditions)
    body = _csv(chunks) if order.format == "csv" else _parquet(chunks)
    return StreamingResponse(body, media_type=MEDIA[order.format], headers=named)


def _npz(bundle: Bundle, order: Order) -> bytes:
    spec = bundle.study.image
    if spec is None:
        raise MedsynxError("request-invalid", "this generator makes rows", hint="Ask for the format csv or parquet.")
    if order.conditions:
        raise MedsynxError("condition-invalid", "images are drawn without conditions only")
    if order.rows > MAX_IMAGES:
        raise MedsynxError("rows-invalid", f"{order.rows} images asked for", hint=f"Ask for {MAX_IMAGES:,} at most.")
    return to_npz(draw_images(bundle, order.rows, order.seed), spec)


def _csv(chunks: Iterator[pd.DataFrame]) -> Iterator[bytes]:
    for number, chunk in enumerate(chunks):
        yield chunk.to_csv(index=False, header=number == 0).encode()


def _parquet(chunks: Iterator[pd.DataFrame]) -> Iterator[bytes]:
    """Row groups as they are drawn; the file's footer comes last, so nothing is held but one chunk."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink, sent, writer = io.BytesIO(), 0, None
    for chunk in chunks:
        table = pa.Table.from_pandas(chunk, preserve_index=False, schema=writer.schema if writer else None)
        writer = writer or pq.ParquetWriter(pa.PythonFile(_Tail(sink), mode="w"), table.schema)
        writer.write_table(table)
        sent += len(data := sink.getvalue())
        sink.seek(0), sink.truncate()
        yield data
    if writer:
        writer.close()
        yield sink.getvalue()


class _Tail(io.RawIOBase):
    """A writable file that keeps only what was not taken yet, and knows how far it has come."""

    def __init__(self, sink: io.BytesIO) -> None:
        self.sink, self.at = sink, 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.at

    def write(self, data: object) -> int:
        size = self.sink.write(bytes(data))  # type: ignore[call-overload]
        self.at += size
        return size
