"""Running the notebooks of a checkout: who executes them, and how the results get to their places whole."""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import nbformat

from coursekit.course import catalog, cluster
from coursekit.course.catalog import Course, Entry
from coursekit.course.errors import CourseError
from coursekit.course.execution import Job, Result, isolated


@dataclass(frozen=True)
class Outcome:
    """What came of one notebook: `memory` is its kernel's peak in bytes, `error` is empty if it ran through."""

    id: str
    seconds: float
    n_figures: int = 0
    n_claims: int = 0
    error: str = ""
    memory: int = 0


def run(
    course: Course,
    entries: Sequence[Entry],
    *,
    parameters: Mapping[str, dict[str, Any]] | None = None,
    output_dir: Path | None = None,
    figure_format: str = "png",
    jobs: int = 1,
    scheduler: str = "",
    report: Callable[[Outcome], None] = lambda outcome: None,
    announce: Callable[[str], None] = lambda text: None,
) -> list[Outcome]:
    """Execute notebooks side by side; one that fails leaves its old outputs and figures intact.

    Without `output_dir` the executed notebooks and figures replace those of the checkout; with it they go there
    (``<output_dir>/notebooks/…``, ``<output_dir>/figs/…``) and the checkout stays as it is. `parameters` has the
    overrides for each notebook id. They run in up to `jobs` processes here or, given the address of a Dask
    `scheduler`, on its cluster. `report` is called as each notebook ends, `announce` with other news.
    """
    target = course.root if output_dir is None else output_dir.resolve()
    if output_dir is not None and target == course.root.resolve():
        raise CourseError(
            "--output-dir must not be the checkout itself; without it results replace those of the checkout"
        )
    by_id = {entry.id: entry for entry in entries}
    outcomes = {}

    def settle(entry: Entry, result: Result) -> None:
        outcomes[entry.id] = _publish(entry, result, target)
        report(outcomes[entry.id])

    with _exclusive(target):
        ready = []
        for entry in entries:
            try:
                notebook = catalog.read_source(entry)
                if output_dir is None:
                    _refuse_unsaved_edits(entry, catalog.source_hash(notebook))
                ready.append(Job(entry.id, notebook, (parameters or {}).get(entry.id, {}), figure_format))
            except CourseError as error:
                settle(entry, Result(error=str(error)))
        results = cluster.execute(scheduler, ready, announce) if scheduler else _execute_here(ready, jobs)
        with closing(results):
            for job, result in results:
                settle(by_id[job.id], result)
        if output_dir is None:
            catalog.write_index(course)
    return [outcomes[entry.id] for entry in entries]


def _execute_here(jobs: Sequence[Job], at_once: int) -> Generator[tuple[Job, Result], None, None]:
    """The results of jobs as they end; leaving the iterator early cancels those that have not begun."""
    with ThreadPoolExecutor(at_once) as pool:
        futures = {pool.submit(isolated, job): job for job in jobs}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def _exclusive(target: Path) -> Iterator[None]:
    """Hold the folder that results go to: two runs at once would mix their files."""
    try:
        target.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(target / ".coursekit.lock", timeout=0)
        lock.acquire()
    except filelock.Timeout as error:
        raise CourseError(f"another `coursekit run` is writing to {target}: wait for it to end") from error
    except OSError as error:
        raise CourseError(
            f"cannot write to {target} ({error.strerror}): make it writable or give --output-dir"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _refuse_unsaved_edits(entry: Entry, source: str) -> None:
    """An .ipynb edited without its .md would be overwritten: say so instead."""
    executed = catalog.read_executed(entry)
    edited = catalog.source_hash(executed) if executed is not None else source
    record = executed.metadata.get("coursekit", {}).get("source") if executed is not None else None
    if edited not in (source, record):
        names = f"{entry.executed.name} has edits that {entry.source.name} lacks"
        if record == source:
            raise CourseError(f"{names}: keep them with `jupytext --to md:myst {entry.executed}`, or delete the .ipynb")
        raise CourseError(
            f"{names}, and both were edited since the last run: merge them by hand, then delete the .ipynb"
        )


def _publish(entry: Entry, result: Result, target: Path) -> Outcome:
    """Move figures, then the notebook, to their places; each file appears whole."""
    if result.notebook is None:
        return Outcome(entry.id, result.seconds, error=result.error)
    try:
        if target == entry.root:
            # it may have been edited while it ran, perhaps for long
            _refuse_unsaved_edits(entry, catalog.source_hash(catalog.read_source(entry)))
            result.notebook.metadata["coursekit"] = result.record
        for name, content in result.figures.items():
            catalog.write_atomically(target / "figs" / name, content)
        text = nbformat.writes(result.notebook) + "\n"
        catalog.write_atomically(target / "notebooks" / f"{entry.file}.ipynb", text.encode())
    except CourseError as error:
        return Outcome(entry.id, result.seconds, error=str(error))
    outputs = [output for cell in result.notebook.cells for output in cell.get("outputs", [])]
    claims = sum(output.get("text", "").count("✓ ") for output in outputs)
    return Outcome(entry.id, result.seconds, len(catalog.figures(result.notebook)), claims, memory=result.memory)
