"""How far long work has come, told to whoever watches, without a callback through every function between."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")
Listener = Callable[[str, int, int], None]
_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Within the block, ``listener(what, done, of)`` hears of steps told."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def on_screen() -> Iterator[None]:
    """Within the block, a bar of the steps told on the error stream, where that is a screen; gone afterwards."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", visible=False)
        with listening(
            lambda what, done, of: bar.update(task, description=what, completed=done, total=of, visible=True)
        ):
            yield


def track(steps: Iterable[T], what: str, of: int) -> Iterator[T]:
    """The steps themselves; how many are done is told once a second at most."""
    listener, told = _listener.get(), 0.0
    for done, step in enumerate(steps):
        if listener and time.monotonic() - told > 1:
            listener(what, done, of)
            told = time.monotonic()
        yield step
