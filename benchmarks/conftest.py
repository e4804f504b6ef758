"""The fixture `compare`, one row each; the results go to the screen and, of a whole run, to RESULTS.md."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import report
import threadpoolctl
import torch
from comparison import GROWTH, Call, Row, Work, grown, peak_memory, quartiles, repeated, slope, timed

from coursekit.course.runner import Outcome

SECONDS = 4.0  # what the turns of one row may take, at least MIN_TURNS of them
MIN_TURNS, MAX_TURNS = 5, 41
ROWS = pytest.StashKey[list[tuple[str, Row]]]()
COURSE = pytest.StashKey[tuple[list[Outcome], float]]()


def pytest_addoption(parser):
    parser.addoption("--quick", action="store_true", help="The smallest sizes and few turns, no growth, no course.")
    parser.addoption("--results", type=Path, metavar="FILE", help="Where the tables are written as Markdown.")


def pytest_configure(config):
    config.stash[ROWS] = []
    threadpoolctl.threadpool_limits(1)
    torch.set_num_threads(1)


def pytest_terminal_summary(terminalreporter, exitstatus, config):
    rows, course = config.stash[ROWS], config.stash.get(COURSE, None)
    report.show(rows, course)
    if path := config.getoption("results"):
        if exitstatus == pytest.ExitCode.OK:
            path.write_text(report.markdown(rows, course), encoding="utf-8")
        else:
            terminalreporter.write_line(f"{path} stays as it was: not every row could be measured")


@pytest.fixture
def quick(request) -> bool:
    return request.config.getoption("quick")


@pytest.fixture
def record_course(request) -> Callable[[list[Outcome], float], None]:
    """Keeps what became of the notebooks and how many seconds they took together."""
    return lambda outcomes, seconds: request.config.stash.__setitem__(COURSE, (outcomes, seconds))


@pytest.fixture
def compare(request, benchmark, quick) -> Callable[..., None]:
    """Measure one row: ``compare(work, make, sizes, agree=…, floor=…, growth=…, kind=…)``.

    `make(n)` gives the `Work` of size n. Peers are met at the size `at` (default: the largest), the exponent is that of
    our cost over all `sizes`; a quick run takes the smallest alone. What has no size has `growth` None.
    `unit` says what n counts, `floor` what it is, `reason`
    why a target is missed, should it be.
    """

    def measure(
        work: str,
        make: Callable[[int], Work],
        sizes: Sequence[int],
        *,
        at: int | None = None,
        unit: str,
        agree: Callable,
        floor: str,
        growth: str | None,
        kind: str = "numpy",
        reason: str = "",
        memory: Callable[[Call], float] = peak_memory,
    ) -> None:
        assert len(sizes) >= 4 or growth is None, "an exponent needs four sizes"
        n = sizes[0] if quick else at or sizes[-1]
        case = make(n)
        answer = case.ours()
        amounts = {}
        for name, call in case.peers.items():
            theirs = call()
            agree(answer, theirs)
            amounts[name] = case.amount(theirs) if case.amount else 1.0
        our_amount = case.amount(answer) if case.amount else 1.0
        del answer, theirs

        others = {**case.peers, "floor": case.floor}
        number, seconds = repeated(case.ours)
        numbers, costs = {}, {name: [] for name in others}
        for name, call in others.items():
            numbers[name], spent = repeated(call)
            seconds += spent

        def turn():
            for name, call in others.items():
                costs[name].append(timed(call, numbers[name]))

        turns = int(np.clip(SECONDS / seconds, MIN_TURNS, MAX_TURNS)) if not quick else 3 if seconds < 0.3 else 1
        benchmark.pedantic(lambda: timed(case.ours, number), setup=turn, rounds=turns)
        ours = np.array(benchmark.stats.stats.data) / number

        ratios = {name: quartiles(np.array(costs[name]) / amounts[name] / (ours / our_amount)) for name in case.peers}
        ratios = dict(sorted(ratios.items(), key=lambda item: item[1][1]))
        exponent = expected = math.nan
        if growth and not quick:
            exponent = grown({size: (case if size == n else make(size)).ours for size in sizes}, 5)
            expected = slope(sizes, [GROWTH[growth](size) for size in sizes])
        row = Row(
            name=request.node.name.removeprefix("bench_"),
            work=work,
            size=f"{n:,} {unit}" if growth else "",
            kind=kind,
            peers=ratios,
            floor=floor,
            over_floor=quartiles(ours / np.array(costs["floor"])),
            growth=growth or "",
            exponent=exponent,
            expected_exponent=expected,
            memory=memory(case.ours),
            peer_memory=memory(case.peers[next(iter(ratios))]),
            agreement=str(agree),
            seconds=float(np.median(ours)),
            reason=reason,
            sizes=tuple(sizes),
        )
        benchmark.extra_info.update(vars(row), sizes=list(sizes))
        request.config.stash[ROWS].append((request.module.__doc__.splitlines()[0], row))

    return measure
