"""The assignments: the instructor's version passes its checks, the student's fails before it is solved and holds no
solution, and typical wrong answers (tests/mistakes) fail with a message that teaches.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat
import pytest
import yaml
from nbclient import NotebookClient
from nbgrader.preprocessors import ClearHiddenTests, ClearSolutions

ROOT = Path(__file__).parents[1]
EXERCISES = ROOT / "exercises"
MISTAKES = Path(__file__).parent / "mistakes"
NAMES = sorted(str(path.relative_to(EXERCISES).with_suffix("")) for path in EXERCISES.glob("*/*.ipynb"))
CHAPTERS = sorted({name.partition("/")[0] for name in NAMES})
# nbgrader looks for alembic on the PATH, as in an activated environment
ACTIVE = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
REGION = re.compile(r"### BEGIN (SOLUTION|HIDDEN TESTS)\n(.*?)### END \1", re.DOTALL)


def read(name):
    return nbformat.read(EXERCISES / f"{name}.ipynb", as_version=4)


def role(cell):
    return cell.metadata.nbgrader


def answers(notebook):
    """The cells that a student fills with code, by grade id."""
    return {role(c).grade_id: c for c in notebook.cells if c.cell_type == "code" and role(c).solution}


def checks(notebook):
    """The cells of checks, by the grade id of the answer that they check."""
    return {
        role(c).grade_id.removesuffix("_checks"): c for c in notebook.cells if c.cell_type == "code" and role(c).grade
    }


def mistakes(name):
    return yaml.safe_load((MISTAKES / f"{name}.yml").read_text(encoding="utf-8"))


def student_version(notebook):
    for preprocessor in (ClearSolutions(), ClearHiddenTests()):
        notebook, _ = preprocessor.preprocess(notebook, {})
    return notebook


def wrong(cell, mistake):
    """The answer's text with one mistake put into the worked solution."""
    before, solution, after = re.split(r"(?s)(### BEGIN SOLUTION.*### END SOLUTION)", cell.source)
    assert solution.count(mistake["replace"]) == 1, mistake
    return before + solution.replace(mistake["replace"], mistake["by"]) + after


@pytest.fixture(scope="module", params=NAMES)
def outcome(request):
    """What the checks of one assignment say: (version, exercise) → the error's text, None if they pass.

    All versions run in one kernel, one after the other: each redefines what it answers, and no exercise builds on
    another. The student's comes first, when nothing is answered yet.
    """
    name = request.param
    notebook = read(name)
    answer, check = answers(notebook), checks(notebook)
    setup = [c for c in notebook.cells if c.cell_type == "code" and not role(c).solution and not role(c).grade]
    blank = student_version(read(name))
    versions = [(("student", i), answers(blank)[i].source, checks(blank)[i].source) for i in answer]
    versions += [(("instructor", i), answer[i].source, check[i].source) for i in answer]
    versions += [
        ((mistake["mistake"], i), wrong(answer[i], mistake), check[i].source)
        for i, listed in mistakes(name).items()
        for mistake in listed
    ]
    cells = [*setup]
    for _, *pair in versions:
        cells += map(nbformat.v4.new_code_cell, pair)
    trial = nbformat.v4.new_notebook(cells=cells, metadata=notebook.metadata)
    NotebookClient(trial, kernel_name="python3", allow_errors=True, timeout=120).execute()
    assert not [error for cell in trial.cells[: len(setup)] for error in errors(cell)]
    ran = [trial.cells[k : k + 2] for k in range(len(setup), len(cells), 2)]
    return name, {key: next(errors(pair[1]), None) for (key, *_), pair in zip(versions, ran, strict=True)}


def errors(cell):
    return (f"{o.ename}: {o.evalue}" for o in cell.outputs if o.output_type == "error")


def test_instructor_version_passes(outcome):
    _, said = outcome
    assert {key: error for key, error in said.items() if key[0] == "instructor" and error} == {}


def test_student_version_fails_before_it_is_solved(outcome):
    _, said = outcome
    passed = [exercise for (version, exercise), error in said.items() if version == "student" and error is None]
    assert passed == []


def test_wrong_answers_meet_a_message_that_teaches(outcome):
    name, said = outcome
    for exercise, listed in mistakes(name).items():
        for mistake in listed:
            error = said[mistake["mistake"], exercise]
            assert error is not None, f"{exercise}: {mistake['mistake']} passes"
            assert error.startswith("AssertionError: ") and mistake["message"] in error, (exercise, mistake, error)


@pytest.mark.parametrize("name", NAMES)
def test_anatomy(name):
    notebook = read(name)
    ids = [role(cell).grade_id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    assert set(answers(notebook)) == set(checks(notebook)) == set(mistakes(name))
    for cell in notebook.cells:
        told = role(cell)
        assert cell.outputs == [] if cell.cell_type == "code" else True
        assert told.locked != told.solution  # what is not to be answered is not to be edited
        assert not told.grade or told.points > 0
        if cell.cell_type == "code":
            assert ("### BEGIN SOLUTION" in cell.source) == told.solution
            assert ("### BEGIN HIDDEN TESTS" in cell.source) == told.grade


@pytest.mark.parametrize("name", NAMES)
def test_pair_is_in_step(name):
    text = jupytext.read(EXERCISES / f"{name}.md", fmt="md:myst")
    fields = [(c.cell_type, c.source, c.metadata) for c in read(name).cells]
    assert [(c.cell_type, c.source, c.metadata) for c in text.cells] == fields


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A copy of the exercises from which nbgrader has made the student tree, as `make assignments` does."""
    folder = tmp_path_factory.mktemp("course")
    shutil.copytree(EXERCISES, folder / "exercises", ignore=shutil.ignore_patterns("submitted", "autograded", "*.db"))
    nbgrader(folder / "exercises", "generate_assignment", CHAPTERS)
    return folder


def nbgrader(folder, command, chapters):
    for chapter in chapters:
        call = [sys.executable, "-m", "nbgrader", command, chapter]
        run = subprocess.run(call, cwd=folder, env=ACTIVE, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr


def test_no_solution_is_in_the_student_tree(released):
    tree = released / "build" / "assignments"
    assert sorted(str(p.relative_to(tree).with_suffix("")) for p in tree.rglob("*.*")) == NAMES
    texts = [nbformat.read(path, as_version=4) for path in tree.rglob("*.ipynb")]
    handed_out = "\n".join(cell.source for notebook in texts for cell in notebook.cells)
    raw = "\n".join(path.read_text(encoding="utf-8") for path in tree.rglob("*") if path.is_file())
    assert "BEGIN SOLUTION" not in raw and "HIDDEN TESTS" not in raw
    for name in NAMES:
        for cell in read(name).cells:
            regions = [m[2] for m in REGION.finditer(cell.source)] if cell.cell_type == "code" else []
            if cell.cell_type == "markdown" and role(cell).solution:
                regions = [cell.source]
            for region in regions:
                # a line of code that could stand anywhere gives nothing away
                lines = [line.strip() for line in region.splitlines() if len(line.strip()) > 20]
                assert [line for line in lines if line in handed_out] == [], role(cell).grade_id


def test_nbgrader_grades_the_worked_solution_in_full_and_the_blank_with_nothing(released):
    chapter = CHAPTERS[0]
    exercises = released / "exercises"
    for student, tree in {"solved": EXERCISES, "blank": released / "build" / "assignments"}.items():
        (exercises / "submitted" / student).mkdir(parents=True)
        shutil.copytree(tree / chapter, exercises / "submitted" / student / chapter)
    nbgrader(exercises, "autograde", [chapter])
    run = [sys.executable, "-m", "nbgrader", "export", "--to", "grades.csv"]
    subprocess.run(run, cwd=exercises, env=ACTIVE, capture_output=True, check=True)
    header, *rows = [line.split(",") for line in (exercises / "grades.csv").read_text().splitlines()]
    records = [dict(zip(header, row, strict=True)) for row in rows]
    score = {r["student_id"]: float(r["raw_score"]) for r in records if r["assignment"] == chapter}
    names = [name for name in NAMES if name.startswith(f"{chapter}/")]
    total = sum(role(cell).points for name in names for cell in checks(read(name)).values())
    assert score == {"solved": total, "blank": 0.0}
