"""Executing one notebook: its text goes in, outputs and figures come out as values.

Nothing here reads or writes a checkout, so the same function serves this machine and the workers of a cluster. The
notebook runs in an empty folder: what it needs besides the package it has to make.
"""

import _thread
import hashlib
import os
import pickle
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
import papermill
from papermill.exceptions import PapermillExecutionError
from papermill.translators import PythonTranslator, papermill_translators
from traitlets.config import Config

from coursekit.course import catalog

# One thread a kernel: notebooks run side by side, and sums come out in the same order on every machine
KERNEL_ENVIRONMENT = {
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1"),
    "COURSEKIT_UNATTENDED": "1",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
}
# The kernel's peak of memory in bytes, and which modules the result depends on
_LAST_CELL = """
import sys
if sys.platform == "win32":
    import psutil
    peak = psutil.Process().memory_info().peak_wset
else:
    import resource
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(peak, *sorted(m for m in sys.modules if m.split(".")[0] == "coursekit"))
"""


@dataclass(frozen=True)
class Job:
    """All that an execution needs."""

    id: str
    notebook: nbformat.NotebookNode
    parameters: dict[str, Any] = field(default_factory=dict)
    figure_format: str = "png"


@dataclass(frozen=True)
class Result:
    """What came of a job: the notebook with its outputs, or in `error` why there is none.

    `memory` is the kernel's peak in bytes; `record` is what staleness is judged by; `figures` maps paths below figs/ to
    the files' content.
    """

    seconds: float = 0.0
    error: str = ""
    memory: int = 0
    notebook: nbformat.NotebookNode | None = None
    record: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, bytes] = field(default_factory=dict)


class _Literals(PythonTranslator):
    """Papermill writes tuples as text and the keys of a dict as strings; these are Python literals already."""

    @classmethod
    def translate(cls, val: Any) -> str:
        return repr(val) if isinstance(val, tuple | dict) else super().translate(val)


papermill_translators.register("python", _Literals)


def isolated(job: Job) -> Result:
    """`execute` in a process of its own: one that dies, of lack of memory say, takes no other notebook along.

    That process ends when this one does. (It is a plain subprocess because a cluster's workers are daemons of
    multiprocessing, which may not have children of that kind.)
    """
    command = [sys.executable, "-c", "from coursekit.course import execution; execution.serve()"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    try:
        with process:  # leaving flushes its standard input, which fails when it is dead, and waits for its end
            pickle.dump(job, process.stdin)
            process.stdin.flush()
            result = pickle.load(process.stdout)
            process.wait()  # leaving closes its standard input, which would interrupt it
    except (EOFError, OSError, pickle.UnpicklingError):
        return Result(error=f"the process that ran it died with status {process.returncode}")
    return result


def serve() -> None:
    """The process behind `isolated`: a job on standard input, the result on standard output."""
    answer = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what anything else prints must not get into the answer
    job = pickle.load(sys.stdin.buffer)

    def end_with_the_parent() -> None:
        os.read(sys.stdin.fileno(), 1)  # returns when the other end is closed, also by the death of its owner
        _thread.interrupt_main()  # so that kernel and temporary files are cleaned up

    threading.Thread(target=end_with_the_parent, daemon=True).start()
    try:
        result = execute(job)
    except Exception as error:
        result = Result(error=f"{type(error).__name__}: {error}")
    with answer:
        pickle.dump(result, answer)


def execute(job: Job) -> Result:
    """Run one notebook by a kernel of its own."""
    start = time.perf_counter()
    hashes = catalog.module_hashes()  # before the run: a change while it runs makes the result stale
    source = catalog.source_hash(job.notebook)
    with tempfile.TemporaryDirectory(prefix="coursekit-") as scratch:
        figs = Path(scratch) / "figs"
        os.environ.update(KERNEL_ENVIRONMENT, COURSEKIT_FIGS=str(figs), COURSEKIT_FORMAT=job.figure_format)
        try:
            executed = _papermill(job, Path(scratch))
        except PapermillExecutionError as error:
            where = f"cell [{error.exec_count}], which begins `{_first_line(error.source)}`"
            text = f"{where}, stopped with {error.ename}: {error.evalue}"
            return Result(time.perf_counter() - start, error=text)
        peak, *used = executed.cells.pop().outputs[0].text.split()
        if "coursekit.plotting" in used:
            used.append("coursekit.course.mplstyle")
        _tidy(executed)
        record = {
            "source": source,
            "modules": {name: hashes[name] for name in used},
            "figures": {name: catalog.file_hash(figs / f"{name}.png") for name in catalog.figures(executed)},
        }
        figures = {path.relative_to(figs).as_posix(): path.read_bytes() for path in sorted(figs.rglob("*.*"))}
    seconds = time.perf_counter() - start
    return Result(seconds, memory=int(peak), notebook=executed, record=record, figures=figures)


def _papermill(job: Job, scratch: Path) -> nbformat.NotebookNode:
    notebook = job.notebook
    notebook.cells.append(nbformat.v4.new_code_cell(_LAST_CELL))  # the caller takes it out again
    notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    nbformat.write(notebook, scratch / "notebook.ipynb")
    (scratch / "cwd").mkdir()
    return papermill.execute_notebook(
        scratch / "notebook.ipynb",
        None,
        parameters=job.parameters,
        cwd=scratch / "cwd",
        kernel_name="python3",
        progress_bar=False,
        coalesce_streams=True,  # or the same text comes in one piece or in two, as it happens
        config=Config({"KernelManager": {"transport_encryption": "auto"}}),  # or every kernel warns on start-up
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


def _first_line(source: str) -> str:
    return next((line for line in source.splitlines() if line.strip()), "")
