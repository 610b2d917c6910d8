"""A clear word where the coordinator trains and has no torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from medsynx.errors import MedsynxError


@contextmanager
def torch_needed() -> Iterator[None]:
    """Around an import. Raises ``install-incomplete`` when a package is missing."""
    try:
        yield
    except ModuleNotFoundError as missing:
        raise MedsynxError(
            "install-incomplete",
            f"training the generator needs the package {missing.name}",
            hint="Install `medsynx[images]`; a run started again under its name goes on behind its sums.",
        ) from None
