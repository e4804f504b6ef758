"""What a row of the benchmarks is, and how it is measured.

A row is one kernel on one work, for which peers give the same answer at the same accuracy. First the answers are
compared; then the kernel, the peers and the floor are called in turn (A B C A B C …), so that all meet the same
machine, and the median of the ratios within a turn is kept. The floor is the part of the work that nobody can avoid:
sorting, drawing the random numbers, one pass over memory, the matrix products.
"""

import math
import tempfile
import timeit
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import memray
import numpy as np

Call = Callable[[], Any]

# how the cost grows with the size n, as theory has it
GROWTH: dict[str, Callable[[float], float]] = {
    "1": lambda n: 1.0,
    "n⁴ᐟ⁵": lambda n: n**0.8,
    "n": lambda n: n,
    "n ln n": lambda n: n * math.log(n),
    "n²": lambda n: n**2,
    "n³": lambda n: n**3,
}
EXPONENT_TOLERANCE = 0.15
EQUAL = 0.97  # ratios nearer to one are not told from it
SHORTEST = 2e-3  # seconds: what takes less is called several times between two looks at the clock


@dataclass(frozen=True)
class Work:
    """One work of one size, done by us, by peers and, as far as nobody can avoid it, by the floor.

    Where the yield of a call is random (a sampler's effective draws), `amount` gives it for what a call returned, and
    costs are seconds divided by it; the floor belongs to our call and shares its amount.
    """

    ours: Call
    peers: Mapping[str, Call]
    floor: Call
    amount: Callable[[Any], float] | None = None


@dataclass(frozen=True)
class Close:
    """Agreement of arrays (or tuples of them): |a - b| ≤ atol + rtol |b|, with atol relative to the largest |b|."""

    rtol: float
    atol: float = 0.0

    def __str__(self) -> str:
        parts = [f"{name} {value:.0e}" for name, value in (("rtol", self.rtol), ("atol", self.atol)) if value]
        return ", ".join(parts).replace("e-0", "e-")

    def __call__(self, ours: Any, theirs: Any) -> None:
        pairs = zip(ours, theirs, strict=True) if isinstance(ours, tuple) else [(ours, theirs)]
        for a, b in pairs:
            a, b = np.asarray(a), np.asarray(b)
            np.testing.assert_allclose(a, b, rtol=self.rtol, atol=self.atol * np.abs(b).max())


@dataclass(frozen=True)
class SameMean:
    """Agreement in law of independent draws (the first axis): means within so many standard errors."""

    std_errors: float = 5.0

    def __str__(self) -> str:
        return f"means, {self.std_errors:g} s.e."

    def __call__(self, ours: Any, theirs: Any) -> None:
        a, b = np.asarray(ours, float), np.asarray(theirs, float)
        error = np.sqrt(a.var(axis=0, ddof=1) / len(a) + b.var(axis=0, ddof=1) / len(b))
        gap = np.abs(a.mean(axis=0) - b.mean(axis=0))
        assert (gap <= self.std_errors * error).all(), f"the means differ by {gap}, standard error {error}"


@dataclass(frozen=True)
class Agreement:
    """Any other comparison of two answers, which raises where they differ; `text` states it."""

    text: str
    check: Callable[[Any, Any], None]

    def __str__(self) -> str:
        return self.text

    def __call__(self, ours: Any, theirs: Any) -> None:
        self.check(ours, theirs)


@dataclass(frozen=True)
class Row:
    """The results; ratios of costs are (lower quartile, median, upper quartile)."""

    name: str
    work: str
    size: str
    kind: Literal["numpy", "torch"]
    peers: Mapping[str, tuple[float, float, float]]  # the peer's cost / ours, the hardest peer first
    floor: str
    over_floor: tuple[float, float, float]  # our cost / the floor's
    growth: str
    exponent: float
    expected_exponent: float
    memory: float  # bytes at the peak, what we were given not counted
    peer_memory: float  # of the hardest peer
    agreement: str
    seconds: float
    reason: str = ""
    sizes: Sequence[int] = field(default=())

    @property
    def fast(self) -> bool:
        """Is the target met?"""
        ratio = next(iter(self.peers.values()))[1]
        return ratio >= EQUAL if self.kind == "torch" else ratio >= 3 or self.over_floor[1] <= 2

    @property
    def grows(self) -> bool:
        """Does the cost grow as theory says, where that was measured?"""
        return not abs(self.exponent - self.expected_exponent) > EXPONENT_TOLERANCE


def repeated(call: Call) -> tuple[int, float]:
    """How many calls take SHORTEST, and the seconds that so many took."""
    number = 1
    while (seconds := timed(call, number)) * number < SHORTEST:
        number = max(2 * number, math.ceil(SHORTEST / seconds))
    return number, number * seconds


def timed(call: Call, number: int) -> float:
    """Seconds of one call, without collections of garbage."""
    return timeit.timeit(call, number=number) / number


def peak_memory(call: Call) -> int:
    """Bytes that a call holds at its peak."""
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "allocations"
        with memray.Tracker(record):
            call()
        return memray.FileReader(record).metadata.peak_memory


def slope(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Exponent of the power law through the points."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def grown(calls: Mapping[int, Call], turns: int) -> float:
    """Exponent of the cost: every size in turn."""
    numbers = {n: repeated(call)[0] for n, call in calls.items()}
    seconds = [[timed(call, numbers[n]) for n, call in calls.items()] for _ in range(turns)]
    return slope(list(calls), np.median(seconds, axis=0))


def quartiles(ratios: np.ndarray) -> tuple[float, float, float]:
    low, median, high = np.quantile(ratios, (0.25, 0.5, 0.75))
    return float(low), float(median), float(high)
