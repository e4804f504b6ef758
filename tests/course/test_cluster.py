"""Notebooks on a real Dask cluster: a scheduler and two worker processes on the loopback address."""

import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor

import distributed
import filelock
import pytest
from click.testing import CliRunner

from coursekit.course import catalog, cluster, runner
from coursekit.course.cli import main
from coursekit.course.errors import CourseError
from tests.course.conftest import HEADER
from tests.course.test_runner import is_running, snapshot, wait_for

QUICK = (
    HEADER
    + """```{code-cell} ipython3
print("done")
```
"""
)
# notes each attempt by the kernel's process id, and stays until it is told to go on
SLOW = """
```{{code-cell}} ipython3
import os
import time
from pathlib import Path

attempts = Path({folder!r})
(attempts / str(os.getpid())).touch()
deadline = time.monotonic() + 100
while not (attempts / "go").exists() and time.monotonic() < deadline:
    time.sleep(0.05)
```
"""


@pytest.fixture(scope="module")
def dask():
    """Two workers of one thread each, restarted by their nannies when they die."""
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=":0", silence_logs=60
    ) as local:
        yield local


@pytest.fixture
def attempts(course, tmp_path):
    """The folder where the first notebook, now a slow one, notes its attempts; the second is a quick one."""
    folder = tmp_path / "attempts"
    folder.mkdir()
    course.find("01_01").source.write_text(QUICK + SLOW.format(folder=str(folder)))
    course.find("01_02").source.write_text(QUICK)
    yield folder
    (folder / "go").touch()


def kernels(attempts):
    return {int(path.name) for path in attempts.iterdir() if path.name.isdigit()}


def kill_the_worker_of(dask, address):
    """SIGKILL for the worker process that has a task; its nanny starts another."""
    with distributed.Client(address, set_as_default=False) as client:
        pids = client.run(os.getpid)
    busy = [state.processing_on.address for state in dask.scheduler.tasks.values() if state.processing_on]
    os.kill(pids[busy[0]], signal.SIGKILL)


def assert_nothing_is_half_written(root):
    assert not [path for path in root.rglob(".*") if path.name != ".coursekit.lock"]
    with filelock.FileLock(root / ".coursekit.lock", timeout=0):
        pass


def test_results_are_those_of_a_local_run(dask, course, finished):
    result = CliRunner().invoke(main, ["run", "01_01", "--scheduler", dask.scheduler_address])
    assert result.exit_code == 0, result.output
    assert f"cluster at {dask.scheduler_address} has 2 worker(s) for 2 notebook(s) at a time." in result.output
    assert "✓ 01_01 " in result.output and "Results are in the checkout." in result.output
    contents = [
        {path.relative_to(root).as_posix(): content for path, content in snapshot(root).items()}
        for root in (course.root, finished.root)
    ]
    assert contents[0] == contents[1] and "figs/01_first/line.png" in contents[0]
    assert_nothing_is_half_written(course.root)


def test_a_notebook_whose_worker_dies_is_tried_again(dask, course, attempts):
    news = []
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(runner.run, course, course.entries, scheduler=dask.scheduler_address, announce=news.append)
        first = wait_for(lambda: kernels(attempts)).pop()
        wait_for(course.find("01_02").executed.is_file)
        kill_the_worker_of(dask, dask.scheduler_address)
        wait_for(lambda: len(kernels(attempts)) == 2)
        wait_for(lambda: not is_running(first))  # no orphan goes on computing
        assert not course.find("01_01").executed.exists()
        (attempts / "go").touch()
        outcomes = run.result(timeout=60)
    assert [outcome.error for outcome in outcomes] == ["", ""]
    assert len(kernels(attempts)) == 2
    assert len(news) == 2 and news[1].startswith("01_01: its worker at tcp://127.0.0.1:")
    assert catalog.staleness(course.find("01_01")) == []
    assert_nothing_is_half_written(course.root)


def test_after_too_many_deaths_it_has_failed_and_the_others_go_on(dask, course, attempts, monkeypatch):
    monkeypatch.setattr(dask.scheduler, "allowed_failures", 0)
    old = course.find("01_01").executed, course.root / "figs" / "01_first" / "line.png"
    old[1].parent.mkdir(parents=True)
    for path in old:
        path.write_text("as before")
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(runner.run, course, course.entries, scheduler=dask.scheduler_address)
        wait_for(lambda: kernels(attempts))
        wait_for(course.find("01_02").executed.is_file)
        kill_the_worker_of(dask, dask.scheduler_address)
        failed, other = run.result(timeout=60)
    assert failed.error.startswith("1 worker(s) died over it, the last at tcp://127.0.0.1:")
    assert not other.error and catalog.staleness(course.find("01_02")) == []
    assert [path.read_text() for path in old] == ["as before", "as before"]
    assert len(kernels(attempts)) == 1
    assert_nothing_is_half_written(course.root)


def test_a_claim_that_fails_is_reported_and_not_tried_again(dask, course, attempts):
    (attempts / "go").touch()
    entry = course.find("01_01")
    claim = '\n```{code-cell} ipython3\nfrom coursekit import claim\n\nclaim("two", 3, equals=2)\n```\n'
    entry.source.write_text(entry.source.read_text() + claim)
    outcome = runner.run(course, [entry], scheduler=dask.scheduler_address)[0]
    assert "cell [3], which begins `from coursekit import claim`, stopped with ClaimError: two: " in outcome.error
    assert len(kernels(attempts)) == 1
    assert not entry.executed.exists()
    assert_nothing_is_half_written(course.root)


def test_an_interruption_cancels_what_is_outstanding(dask, course, attempts):
    def interrupt(outcome):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runner.run(course, course.entries, scheduler=dask.scheduler_address, report=interrupt)
    wait_for(lambda: not dask.scheduler.tasks)
    assert not course.find("01_01").executed.exists() and course.find("01_02").executed.is_file()
    assert_nothing_is_half_written(course.root)


def test_a_worker_with_another_coursekit_refuses(dask, course, monkeypatch):
    other = catalog.module_hashes() | {"coursekit.claims": "0", "coursekit.new": "1"}
    monkeypatch.setattr(catalog, "module_hashes", lambda: other)
    outcome = runner.run(course, course.entries[:1], scheduler=dask.scheduler_address)[0]
    assert outcome.error == "the worker's coursekit differs in coursekit.claims, coursekit.new: update its checkout"


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "nonsense://host"])
def test_no_scheduler(course, monkeypatch, address):
    monkeypatch.setattr(cluster, "_TIMEOUT", "1s")
    with pytest.raises(CourseError, match=f"no Dask scheduler answers at {address}: "):
        runner.run(course, course.entries, scheduler=address)
    assert_nothing_is_half_written(course.root)


def test_without_the_extra(course, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(CourseError, match="distributed is missing; --scheduler needs `pip install -e '.\\[cluster\\]'"):
        runner.run(course, course.entries, scheduler="tcp://127.0.0.1:9")
