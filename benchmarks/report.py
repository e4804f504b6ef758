"""Rows as tables: on the screen, and as the Markdown of RESULTS.md."""

import math
import os
import platform
from collections.abc import Iterable, Sequence
from importlib import metadata
from itertools import groupby
from operator import itemgetter

from comparison import EQUAL, EXPONENT_TOLERANCE, Row
from rich.console import Console
from rich.table import Table

from coursekit.course.runner import Outcome

PACKAGES = (
    *("numpy", "scipy", "torch", "scikit-learn", "torchdiffeq", "pot", "kdepy", "zuko", "torchsde", "emcee"),
    *("blackjax", "jax"),
)
COLUMNS = (
    *("work", "size", "peers: their cost / ours", "floor: our cost / its", "growth (theory)", "peak MB, ours / peer's"),
    *("answers agree to", "target"),
)
COURSE_MINUTES = 6.0  # on two cores
INTRODUCTION = """# Benchmarks

Written by `make bench`. Each row compares a kernel with what one would otherwise reach for, on the same work: first the
answers are compared, to the tolerance in the row, then all are timed in turn (A B C A B C …), on one thread, and the
median of the ratios within a turn is kept (quartiles in parentheses). Ratios can be compared between machines, seconds
cannot.

- **peers**: the peer's cost divided by ours, the hardest peer first. Costs are seconds, for samplers seconds per
  effective draw, counted in one run of each.
- **floor**: our cost divided by that of the part which nobody can avoid.
- **growth**: the exponent of our cost in the size over at least four sizes, and in parentheses that of the stated law
  over the same sizes; they should agree to ±{tolerance}.
- **peak MB**: memory allocated during one call, the inputs not counted; ours, and the hardest peer's.
- **target**: kernels in numpy are to be three times as fast as the fastest peer (≥ 3 ×) or within twice the floor
  (≤ 2 floors), those in torch no slower than the fastest peer, as far as timings tell (a ratio of {equal} or more).
  ✗ marks what is missed; the reasons are below.

Python {python}, {cores} cores, {system}; {versions}.
"""


def number(value: float) -> str:
    """Three digits at most."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def spread(quartiles: tuple[float, float, float]) -> str:
    low, median, high = map(number, quartiles)
    return f"{median} ({low}–{high})"


def target(row: Row) -> str:
    """What is met, or a cross."""
    if row.kind == "torch":
        met = "no slower"
    else:
        within, ahead = row.over_floor[1] <= 2, next(iter(row.peers.values()))[1] >= 3
        met = " and ".join([*["≥ 3 ×"] * ahead, *["≤ 2 floors"] * within])
    return ("✓ " + met if row.fast else "✗ speed") + ("" if row.grows else ", ✗ growth")


def growth(row: Row) -> str:
    if not row.growth:
        return "has no size"
    if math.isnan(row.exponent):
        return f"{row.growth}: only in the whole run"
    return f"{row.growth}: {row.exponent:.2f} ({row.expected_exponent:.2f})"


def cells(row: Row) -> tuple[str, ...]:
    (hardest, ratio), *others = row.peers.items()
    peers = "; ".join([f"{hardest} {spread(ratio)}", *(f"{name} {number(r[1])}" for name, r in others)])
    return (
        capitalised(row.work),
        row.size,
        peers,
        f"{row.floor} {spread(row.over_floor)}",
        growth(row),
        f"{number(row.memory / 1e6)} / {number(row.peer_memory / 1e6)}",
        row.agreement,
        target(row),
    )


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines) + "\n"


def fields(rows: Sequence[tuple[str, Row]]) -> Iterable[tuple[str, list[Row]]]:
    return [(field, [row for _, row in group]) for field, group in groupby(rows, key=itemgetter(0))]


def missed(rows: Sequence[tuple[str, Row]]) -> dict[str, list[str]]:
    """The works that miss a target, by the reason."""
    works: dict[str, list[str]] = {}
    for _, row in rows:
        if not (row.fast and row.grows):
            works.setdefault(capitalised(row.reason or "unexplained."), []).append(capitalised(row.work))
    return works


def capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


def course_table(outcomes: Sequence[Outcome]) -> list[tuple[str, str, str]]:
    return [(o.id, f"{o.seconds:.1f}", f"{o.memory / 1e6:.0f}") for o in outcomes]


def course_summary(outcomes: Sequence[Outcome], seconds: float) -> str:
    cores = os.cpu_count() or 1
    floor = max(sum(o.seconds for o in outcomes) / cores, *(o.seconds for o in outcomes))
    verdict = "✓" if seconds <= 60 * COURSE_MINUTES else "✗"
    return (
        f"{len(outcomes)} notebooks in {seconds / 60:.1f} minutes on {cores} cores, {seconds / floor:.2f} times "
        f"the floor (a schedule without gaps); the target is {COURSE_MINUTES:g} minutes on 2 cores {verdict}"
    )


def markdown(rows: Sequence[tuple[str, Row]], course: tuple[Sequence[Outcome], float] | None) -> str:
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    parts = [
        INTRODUCTION.format(
            tolerance=EXPONENT_TOLERANCE,
            equal=EQUAL,
            python=platform.python_version(),
            cores=os.cpu_count(),
            system=f"{platform.system()} {platform.machine()}",
            versions=versions,
        )
    ]
    for field, group in fields(rows):
        parts.append(f"## {field.rstrip('.')}\n\n{markdown_table(COLUMNS, map(cells, group))}")
    if lines := [f"- **{'; '.join(works)}.** {reason}\n" for reason, works in missed(rows).items()]:
        parts.append("## What misses its target, and why\n\n" + "".join(lines))
    if course:
        columns = ("notebook", "seconds", "peak MB")
        parts.append(
            f"## The whole course\n\n{course_summary(*course)}\n\n{markdown_table(columns, course_table(course[0]))}"
        )
    return "\n".join(parts)


def show(rows: Sequence[tuple[str, Row]], course: tuple[Sequence[Outcome], float] | None) -> None:
    console = Console(width=max(Console().width, 160))
    for field, group in fields(rows):
        table = Table(*COLUMNS, title=field, show_lines=True)
        for row in group:
            table.add_row(*cells(row))
        console.print(table)
    if course:
        table = Table("notebook", "seconds", "peak MB")
        for line in course_table(course[0]):
            table.add_row(*line)
        console.print(table, course_summary(*course))
