"""Two calls timed in turn, so that both meet the same machine: what the benchmarks share."""

import statistics
import timeit
from collections.abc import Callable
from typing import Any


def in_turn(ours: Callable[[], Any], theirs: Callable[[], Any], repeats: int) -> tuple[float, float, float]:
    """Median seconds of each call, and the median over `repeats` of (ours / theirs); both run once before."""
    ours(), theirs()
    pairs = [(timeit.timeit(ours, number=1), timeit.timeit(theirs, number=1)) for _ in range(repeats)]
    mine, other = (statistics.median(seconds) for seconds in zip(*pairs, strict=True))
    return mine, other, statistics.median(a / b for a, b in pairs)
