"""What measures and reports the benchmarks; the rows themselves are run by `make bench`."""

import dataclasses
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("memray", reason="memory is measured with memray, which Windows lacks")

FOLDER = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(FOLDER))
try:
    import comparison
    import report
finally:
    sys.path.remove(str(FOLDER))


ROW = comparison.Row(
    name="row",
    work="the work",
    size="10 points",
    kind="numpy",
    peers={"peer": (2.9, 3.1, 3.3)},
    floor="sorting",
    over_floor=(2.0, 2.5, 3.0),
    growth="n",
    exponent=1.1,
    expected_exponent=1.0,
    memory=1e6,
    peer_memory=2e6,
    agreement="rtol 1e-8",
    seconds=1.0,
)


def test_slope_of_a_power_law():
    sizes = [10, 30, 100, 1000]
    assert comparison.slope(sizes, [5 * n**1.5 for n in sizes]) == pytest.approx(1.5, abs=1e-12)
    # n ln n lies between n and n²
    assert 1 < comparison.slope(sizes, [comparison.GROWTH["n ln n"](n) for n in sizes]) < 1.5


def test_growth_is_that_of_the_medians(monkeypatch):
    """By a clock that shows what a call returns: 3n², but for one turn in five that was disturbed."""
    monkeypatch.setattr(comparison, "timed", lambda call, number: call())
    turns = iter(range(1000))
    calls = {n: lambda n=n: 3.0 * n**2 * (50 if next(turns) % 25 < 5 else 1) for n in (4, 8, 16, 32, 64)}
    for call in calls.values():
        call()  # `repeated` asks each once more
    assert comparison.grown(calls, 5) == pytest.approx(2, abs=1e-12)


def test_peak_memory_counts_what_is_held():
    def call():
        for _ in range(3):
            np.ones(10**6)

    assert comparison.peak_memory(call) == pytest.approx(8e6, rel=0.01)


def test_a_short_call_is_repeated():
    number, seconds = comparison.repeated(lambda: None)
    assert number > 1000 and seconds >= comparison.SHORTEST


class TestAgreement:
    def test_close(self):
        close = comparison.Close(rtol=1e-6, atol=1e-3)
        assert str(close) == "rtol 1e-6, atol 1e-3"
        close(np.array([1.0, 1e-9]), np.array([1.0, 9e-4]))  # atol is relative to the largest
        with pytest.raises(AssertionError):
            close(np.array([1.0, 1e-9]), np.array([1.0, 2e-3]))
        with pytest.raises(AssertionError):
            comparison.Close(rtol=1e-6)((1.0, 2.0), (1.0, 2.1))
        with pytest.raises(ValueError):
            comparison.Close(rtol=1e-6)((1.0, 2.0), (1.0,))

    def test_same_mean(self):
        rng = np.random.default_rng(0)
        a, b = rng.standard_normal((2, 10_000, 3))
        comparison.SameMean()(a, b)
        with pytest.raises(AssertionError, match="means differ"):
            comparison.SameMean()(a, b + np.array([0, 0, 0.1]))  # seven standard errors


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "✓ ≥ 3 ×"),
        ({"over_floor": (1.0, 1.9, 2.1)}, "✓ ≥ 3 × and ≤ 2 floors"),
        ({"over_floor": (1.0, 1.9, 2.1), "peers": {"peer": (0.5, 0.6, 0.7)}}, "✓ ≤ 2 floors"),
        ({"peers": {"fast": (2.0, 2.9, 3.5), "slow": (9.0, 9.0, 9.0)}}, "✗ speed"),
        ({"exponent": 1.2}, "✓ ≥ 3 ×, ✗ growth"),
        ({"exponent": 0.8}, "✓ ≥ 3 ×, ✗ growth"),
        ({"exponent": math.nan, "expected_exponent": math.nan, "growth": ""}, "✓ ≥ 3 ×"),
        ({"kind": "torch", "peers": {"peer": (0.95, 0.98, 1.01)}}, "✓ no slower"),
        ({"kind": "torch", "peers": {"peer": (0.90, 0.96, 1.05)}}, "✗ speed"),
    ],
)
def test_targets(changes, verdict):
    row = dataclasses.replace(ROW, **changes)
    assert report.target(row) == verdict
    assert bool(report.missed([("Field", row)])) == ("✗" in verdict)


def test_what_is_missed_comes_with_its_reason():
    rows = [("Field", dataclasses.replace(ROW, exponent=2.0)), ("Field", ROW)]
    assert report.missed(rows) == {"Unexplained.": ["The work"]}
    other = dataclasses.replace(ROW, exponent=2.0, reason="it is so.")
    rows = [("Field", other), ("Field", dataclasses.replace(other, work="more work"))]
    assert report.missed(rows) == {"It is so.": ["The work", "More work"]}


BENCH = '''"""Field."""
import time
from comparison import Close, Work

def bench_row(compare):
    def make(n):
        return Work(lambda: time.sleep(1e-4 * n) or 1.0, {"peer": lambda: time.sleep(4e-4 * n) or PEER}, lambda: 0)
    compare("sleeping", make, (100, 200, 400, 800), unit="naps", agree=Close(1e-3), floor="nothing", growth="n")
'''


@pytest.mark.parametrize("equal", [True, False])
def test_a_row_from_end_to_end(tmp_path, equal):
    for name in ("comparison.py", "conftest.py", "report.py", "pytest.ini"):
        (tmp_path / name).write_bytes((FOLDER / name).read_bytes())
    (tmp_path / "bench_field.py").write_text(BENCH.replace("PEER", "1.0" if equal else "1.1"))
    command = [sys.executable, "-m", "pytest", "--quick", "--results", "RESULTS.md"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_XDIST_WORKER"}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (run.returncode, (tmp_path / "RESULTS.md").exists()) == ((0, True) if equal else (1, False)), run.stdout
    if equal:
        _, text = (tmp_path / "RESULTS.md").read_text(encoding="utf-8").split("## Field\n")
        (line,) = re.findall(r"^\| Sleeping .*", text, re.M)
        _, work, size, peers, floor, growth, memory, agreement, *_ = (cell.strip() for cell in line.split("|"))
        assert (work, size, agreement) == ("Sleeping", "100 naps", "rtol 1e-3")
        name, ratio = peers.split()[:2]
        assert name == "peer" and 2.5 < float(ratio) < 6
        assert floor.startswith("nothing") and growth == "n: only in the whole run" and " / " in memory
    else:
        assert "Mismatched elements" in run.stdout and "stays as it was" in run.stdout


def test_results_have_every_row():
    command = [sys.executable, "-m", "pytest", "--collect-only"]
    listing = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, check=True).stdout
    files = re.findall(r"^(bench_\w+\.py)::(?!bench_whole_course)", listing, re.M)
    expected = {path.name: files.count(path.name) for path in FOLDER.glob("bench_*.py")}
    assert 0 not in expected.values()
    results = (FOLDER / "RESULTS.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## (.+)\n((?:(?!## ).*\n)*)", results, re.M))
    for path in FOLDER.glob("bench_*.py"):
        title = path.read_text(encoding="utf-8").splitlines()[0].strip('".')
        rows = re.findall(r"^\| (?!work |---)", sections[title], re.M)
        assert len(rows) == expected[path.name], title
    assert "Unexplained" not in results and "The whole course" in sections
