import json
import os
import shutil
import subprocess
import sys
import time

import filelock
import nbformat
import psutil
import pytest

from coursekit.course import catalog, runner
from coursekit.course.errors import CourseError
from coursekit.course.execution import Result

PIECES = """
```{code-cell} ipython3
import time

print("one", flush=True)
time.sleep(0.5)
print("two")
```
"""


def break_claim(entry):
    """The figure is drawn differently, and then the claim fails."""
    entry.source.write_text(entry.source.read_text().replace("slope = 2.0", "slope = 3.0"))


def snapshot(root):
    return {p: p.read_bytes() for p in root.rglob("*") if p.is_file() and p.name != ".coursekit.lock"}


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
    return value


def is_running(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_writes_notebook_figure_and_index(done):
    notebook = nbformat.read(done.find("01_01").executed, as_version=4)
    nbformat.validate(notebook)
    output = "".join(out.get("text", "") for cell in notebook.cells for out in cell.get("outputs", []))
    assert output == "✓ the slope is two: measured 2; expected 2\n"
    assert catalog.figures(notebook) == {"01_first/line": "A straight line from the origin upwards."}
    assert (done.root / "figs/01_first/line.png").is_file()
    assert "papermill" not in json.dumps(notebook)


def test_text_printed_in_pieces_is_one_output(done):
    entry = done.find("01_01")
    entry.source.write_text(entry.source.read_text() + PIECES)
    assert not runner.run(done, [entry])[0].error
    last = nbformat.read(entry.executed, as_version=4).cells[-1]
    assert [output.text for output in last.outputs] == ["one\ntwo\n"]


def test_running_again_changes_no_byte(done):
    before = snapshot(done.root)
    outcome = runner.run(done, [done.find("01_01")])[0]
    assert (outcome.error, outcome.n_figures, outcome.n_claims) == ("", 1, 1)
    assert snapshot(done.root) == before


def test_failure_keeps_old_results_and_the_others_go_on(done):
    bad, good = done.find("01_01"), done.find("01_02")
    before = bad.executed.read_bytes(), (done.root / "figs/01_first/line.png").read_bytes()
    break_claim(bad)
    reported = []
    outcomes = runner.run(done, [bad, good], jobs=2, report=lambda outcome: reported.append(outcome.id))
    assert sorted(reported) == ["01_01", "01_02"]
    assert (
        "cell [3], which begins `fig, ax = plt.subplots()`, stopped with ClaimError: the slope is two"
        in outcomes[0].error
    )
    assert not outcomes[1].error and good.executed.is_file()
    assert (bad.executed.read_bytes(), (done.root / "figs/01_first/line.png").read_bytes()) == before


def test_kernel_that_dies_is_reported(course):
    entry = course.find("01_01")
    entry.source.write_text(
        entry.source.read_text().replace("import matplotlib", "import os; os._exit(1)\nimport matplotlib")
    )
    outcome = runner.run(course, [entry])[0]
    assert "died" in outcome.error.lower()


def test_output_dir_leaves_the_checkout_alone(done, tmp_path):
    before = snapshot(done.root)
    runner.run(
        done,
        [done.find("01_01")],
        output_dir=tmp_path / "out",
        parameters={"01_01": {"label": "y"}},
        figure_format="pdf",
    )
    assert snapshot(done.root) == before
    assert {p.relative_to(tmp_path / "out").as_posix() for p in snapshot(tmp_path / "out")} == {
        "notebooks/01_first/01_line.ipynb",
        "figs/01_first/line.png",
        "figs/01_first/line.pdf",
    }
    assert 'label = "y"' in (tmp_path / "out/notebooks/01_first/01_line.ipynb").read_text().replace('\\"', '"')


def test_an_edited_ipynb_is_not_overwritten(done):
    entry = done.find("01_01")
    notebook = nbformat.read(entry.executed, as_version=4)
    notebook.cells[0].source += " edited"
    nbformat.write(notebook, entry.executed)
    before = entry.executed.read_bytes()
    outcome = runner.run(done, [entry])[0]
    assert "01_line.ipynb has edits that 01_line.md lacks: keep them with `jupytext --to md:myst" in outcome.error
    assert entry.executed.read_bytes() == before


def test_an_ipynb_edited_while_it_runs_is_not_overwritten(done, monkeypatch):
    entry = done.find("01_01")
    notebook = nbformat.read(entry.executed, as_version=4)
    notebook.cells[0].source += " edited"

    def edited_meanwhile(jobs, at_once):
        nbformat.write(notebook, entry.executed)
        yield jobs[0], Result(notebook=catalog.read_source(entry), figures={"01_first/line.png": b"new"})

    monkeypatch.setattr(runner, "_execute_here", edited_meanwhile)
    assert "01_line.ipynb has edits that 01_line.md lacks" in runner.run(done, [entry])[0].error
    assert nbformat.read(entry.executed, as_version=4) == notebook
    assert (done.root / "figs/01_first/line.png").read_bytes() != b"new"


def test_the_process_that_dies_is_reported(course, monkeypatch):
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    outcome = runner.run(course, [course.find("01_01")])[0]
    assert outcome.error == "the process that ran it died with status 1"


def test_a_run_that_is_killed_leaves_no_process_behind(course, tmp_path):
    entry = course.find("01_01")
    note = f"""
```{{code-cell}} ipython3
import os, time
from pathlib import Path

Path({str(tmp_path)!r}, "kernel").write_text(f"{{os.getpid()}} {{os.getppid()}}")
time.sleep(100)
```
"""
    text = entry.source.read_text()
    entry.source.write_text(text[: text.index("```")] + note)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    command = [sys.executable, "-c", "from coursekit.course.cli import main; main()", "run", "01_01"]
    run = subprocess.Popen(command, env=os.environ | {"TMPDIR": str(scratch)}, stdout=subprocess.DEVNULL)
    kernel = tmp_path / "kernel"
    wait_for(lambda: kernel.is_file() and len(kernel.read_text().split()) == 2)
    run.kill()
    run.wait()
    wait_for(lambda: not any(is_running(int(pid)) for pid in kernel.read_text().split()))
    assert list(scratch.iterdir()) == [] and not entry.executed.exists()


def test_an_interruption_runs_no_more_notebooks(course, monkeypatch):
    ran = []

    def isolated(job):
        time.sleep(0.2 * len(ran))
        ran.append(job.id)
        return Result(error="failed")

    def interrupt(outcome):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "isolated", isolated)
    with pytest.raises(KeyboardInterrupt):
        runner.run(course, [course.find("01_01")] * 10, report=interrupt)
    assert len(ran) <= 3


def test_both_edited_is_said_so(done):
    entry = done.find("01_01")
    notebook = nbformat.read(entry.executed, as_version=4)
    notebook.cells[0].source += " edited"
    nbformat.write(notebook, entry.executed)
    entry.source.write_text(entry.source.read_text() + "\nEdited too.\n")
    assert "both were edited since the last run" in runner.run(done, [entry])[0].error


def test_a_damaged_ipynb_is_made_anew(done):
    entry = done.find("01_01")
    before = entry.executed.read_bytes()
    entry.executed.write_bytes(b"\xff\xfe{")
    assert not runner.run(done, [entry])[0].error
    assert entry.executed.read_bytes() == before


def test_output_dir_is_not_the_checkout(done):
    with pytest.raises(CourseError, match="must not be the checkout itself"):
        runner.run(done, [done.find("01_01")], output_dir=done.root)


def test_second_run_at_the_same_time(done):
    with (
        filelock.FileLock(done.root / ".coursekit.lock"),
        pytest.raises(CourseError, match="another `coursekit run` is writing to"),
    ):
        runner.run(done, [done.find("01_01")])


def test_unwritable_target(done, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CourseError, match="cannot write to .*file"):
        runner.run(done, [done.find("01_01")], output_dir=tmp_path / "file")


def test_unwritable_figures(done):
    figure = done.root / "figs" / "01_first" / "line.png"
    notebook = done.find("01_01").executed.read_bytes()
    figure.unlink()
    figure.parent.rmdir()
    figure.parent.write_text("a file where a folder should be")
    assert "cannot write line.png in" in runner.run(done, [done.find("01_01")])[0].error
    assert done.find("01_01").executed.read_bytes() == notebook
