"""Progress bars for loops that a person waits for."""

import os
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def unattended() -> bool:
    """Whether nobody is watching: a program executes the notebook (`coursekit run`, nbval, CI), or writes to a file."""
    if os.environ.get("COURSEKIT_UNATTENDED"):
        return True
    return "ipykernel" not in sys.modules and not sys.stderr.isatty()


def track(iterable: Iterable[T], description: str = "", total: int | None = None) -> Iterator[T]:
    """Iterate with a tqdm bar that leaves nothing behind; silent when the notebook is executed unattended.

    A bar in a saved output would differ at every run and say nothing to a reader.
    """
    if unattended():
        yield from iterable
        return
    from tqdm import tqdm

    yield from tqdm(iterable, desc=description, total=total, leave=False)
