"""Executing notebooks: papermill runs them, this module decides where results go and keeps them whole."""

import ast
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import filelock
import nbformat
import papermill
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from coursekit.course import catalog
from coursekit.course.catalog import Course, Entry
from coursekit.course.errors import CourseError

# One thread a kernel: notebooks run side by side, and sums come out in the same order on every machine
KERNEL_ENVIRONMENT = {
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1"),
    "COURSEKIT_UNATTENDED": "1",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
}
_MODULES_CELL = "import sys; print(*sorted(m for m in sys.modules if m.split('.')[0] == 'coursekit'))"


@dataclass(frozen=True)
class Outcome:
    """What came of one notebook. `error` is empty if it ran through."""

    id: str
    seconds: float
    n_figures: int = 0
    n_claims: int = 0
    error: str = ""


def default_parameters(entry: Entry) -> dict[str, Any]:
    """Names and values in the notebook's `parameters` cell."""
    notebook = catalog.read_source(entry)
    cells = [cell.source for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    defaults = {}
    for node in ast.parse("\n".join(cells)).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            defaults[node.targets[0].id] = _literal(ast.unparse(node.value))
    return defaults


def parse_parameters(entry: Entry, given: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Parameter overrides as Python values, checked against the notebook's `parameters` cell.

    Raises CourseError for a name that the notebook does not have, or text where it expects a number.
    """
    defaults = default_parameters(entry)
    values = {}
    for name, text in given:
        if name not in defaults:
            raise CourseError(f"notebook {entry.id} has no parameter {name!r}; it has {', '.join(defaults)}")
        values[name] = text if isinstance(defaults[name], str) else _literal(text)
        if isinstance(values[name], str) and not isinstance(defaults[name], str):
            raise CourseError(f"parameter {name} of notebook {entry.id} is like {defaults[name]!r}, got {text!r}")
    return values


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def run(
    course: Course,
    entries: Sequence[Entry],
    *,
    parameters: dict[str, Any] | None = None,
    output_dir: Path | None = None,
    figure_format: str = "png",
    jobs: int = 1,
    report: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Execute notebooks in parallel processes; one that fails leaves its old outputs and figures intact.

    Without `output_dir` the executed notebooks and figures replace those of the checkout; with it they go there
    (``<output_dir>/notebooks/…``, ``<output_dir>/figs/…``) and the checkout stays as it is.
    `report` is called as each notebook ends.
    """
    target = course.root if output_dir is None else output_dir.resolve()
    if output_dir is not None and target == course.root.resolve():
        raise CourseError(
            "--output-dir must not be the checkout itself; without it results replace those of the checkout"
        )
    outcomes = {}
    with _exclusive(target), ThreadPoolExecutor(jobs) as pool:
        pending = {
            pool.submit(_isolated, entry, target, parameters or {}, figure_format, output_dir is None): entry.id
            for entry in entries
        }
        for future in as_completed(pending):
            if (error := future.exception()) is not None:
                outcome = Outcome(pending[future], 0.0, error=f"{type(error).__name__}: {error}")
            else:
                outcome = future.result()
            outcomes[outcome.id] = outcome
            report(outcome)
        if output_dir is None:
            catalog.write_index(course)
    return [outcomes[entry.id] for entry in entries]


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


def _isolated(*arguments: Any) -> Outcome:
    """`_execute` in a process of its own: one that dies, of lack of memory say, takes no other notebook along."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(_execute, *arguments).result()


def _execute(entry: Entry, target: Path, parameters: dict, figure_format: str, record: bool) -> Outcome:
    """Run one notebook in this (worker) process and put its results in place."""
    start = time.perf_counter()
    hashes = catalog.module_hashes()  # before the run: a change while it runs makes the result stale
    try:
        notebook = catalog.read_source(entry)
        source = catalog.source_hash(notebook)
        if record:
            _refuse_unsaved_edits(entry, source)
        with tempfile.TemporaryDirectory(prefix="coursekit-") as scratch:
            os.environ.update(KERNEL_ENVIRONMENT, COURSEKIT_FIGS=scratch, COURSEKIT_FORMAT=figure_format)
            executed = _papermill(entry, notebook, parameters)
            used = executed.cells.pop().outputs[0].text.split()
            if "coursekit.plotting" in used:
                used.append("coursekit.course.mplstyle")
            _tidy(executed)
            if record:
                executed.metadata["coursekit"] = {
                    "source": source,
                    "modules": {name: hashes[name] for name in used},
                    "figures": {n: catalog.file_hash(Path(scratch) / f"{n}.png") for n in catalog.figures(executed)},
                }
            _publish(entry, executed, Path(scratch), target)
    except (CourseError, OSError) as error:
        return Outcome(entry.id, time.perf_counter() - start, error=str(error))
    except PapermillExecutionError as error:
        where = f"cell [{error.exec_count}], which begins `{_first_line(error.source)}`"
        text = f"{where}, stopped with {error.ename}: {error.evalue}"
        return Outcome(entry.id, time.perf_counter() - start, error=text)
    claims = sum(output.get("text", "").count("✓ ") for cell in executed.cells for output in cell.get("outputs", []))
    return Outcome(entry.id, time.perf_counter() - start, len(catalog.figures(executed)), claims)


def _papermill(entry: Entry, notebook: nbformat.NotebookNode, parameters: dict) -> nbformat.NotebookNode:
    # which modules the result depends on; the caller takes the cell out again
    notebook.cells.append(nbformat.v4.new_code_cell(_MODULES_CELL))
    notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    with tempfile.TemporaryDirectory(prefix="coursekit-") as scratch:
        source = Path(scratch) / "notebook.ipynb"
        nbformat.write(notebook, source)
        return papermill.execute_notebook(
            source,
            None,
            parameters=parameters,
            cwd=entry.source.parent,
            kernel_name="python3",
            progress_bar=False,
            coalesce_streams=True,  # or the same text comes in one piece or in two, as it happens
            config=Config({"KernelManager": {"transport_encryption": "auto"}}),  # or every kernel warns on start-up
        )


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


def _tidy(notebook: nbformat.NotebookNode) -> None:
    """Drop what would differ at every run: time stamps, host and version details, random cell ids."""
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": notebook.metadata["kernelspec"],
            "language_info": {"name": "python", "pygments_lexer": "ipython3"},
        }
    )
    seen: dict[str, int] = {}
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        digest = hashlib.sha256(f"{cell.cell_type}{cell.source}".encode()).hexdigest()[:12]
        seen[digest] = seen.get(digest, 0) + 1
        cell["id"] = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"


def _publish(entry: Entry, executed: nbformat.NotebookNode, figures: Path, target: Path) -> None:
    """Move figures, then the notebook, to their places; each file appears whole."""
    for figure in sorted(figures.rglob("*.*")):
        catalog.write_atomically(target / "figs" / figure.relative_to(figures), figure.read_bytes())
    text = nbformat.writes(executed) + "\n"
    catalog.write_atomically(target / "notebooks" / f"{entry.file}.ipynb", text.encode())


def _first_line(source: str) -> str:
    return next((line for line in source.splitlines() if line.strip()), "")
