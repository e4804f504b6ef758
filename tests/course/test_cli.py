import pytest
from click.testing import CliRunner

from coursekit.course.cli import main


@pytest.fixture
def invoke():
    return lambda *arguments: CliRunner().invoke(main, arguments)


@pytest.mark.usefixtures("course")
def test_list(invoke):
    result = invoke("list")
    assert result.exit_code == 0 and "01_01" in result.output and "Another" in result.output
    assert invoke("list", "--markdown").output.startswith("| id | notebook |")


def test_run_and_status_and_nothing_stale(invoke, done):
    assert "stale: not executed" in invoke("status").output
    result = invoke("run")
    assert result.exit_code == 0 and "✓ 01_02" in result.output and "01_01" not in result.output
    assert "up to date" in invoke("status").output
    assert invoke("run").output == "Nothing is stale: 2 notebook(s) up to date.\n"


def test_run_with_parameters_goes_elsewhere(invoke, done):
    before = done.find("01_01").executed.read_bytes()
    result = invoke("run", "01_01", "-p", "seed", "4")
    assert result.exit_code == 0 and str(done.root / "out") in result.output
    assert done.find("01_01").executed.read_bytes() == before
    assert (done.root / "out" / "notebooks" / "01_first" / "01_line.ipynb").is_file()


def test_parameters_reach_the_later_parts_that_have_them(invoke, course):
    table = course.root / "notebooks" / "course.yml"
    table.write_text(table.read_text().replace("01_02", "01_01b"))
    assert "Running 01_01, 01_01b …" in invoke("run", "01_01", "-p", "seed", "4").output
    other = course.root / "notebooks" / "01_first" / "02_other.md"
    other.write_text(other.read_text().replace('label = "x"\n', ""))
    assert "Running 01_01 …" in invoke("run", "01_01", "-p", "label", "y").output


PROFILES = """
big:
  description: a steeper line
  notebooks:
    "01_02": {seed: 1, label: y}
"""


@pytest.fixture
def profiles(course):
    (course.root / "notebooks" / "profiles.yml").write_text(PROFILES)


@pytest.mark.usefixtures("profiles")
def test_a_profile_runs_what_it_changes_and_goes_elsewhere(invoke, course):
    result = invoke("run", "--profile", "big", "-j", "1")
    assert result.exit_code == 0 and "Running 01_02 …" in result.output
    assert f"Results are in {course.root / 'out' / 'big'}." in result.output
    text = (course.root / "out" / "big" / "notebooks" / "01_first" / "02_other.ipynb").read_text()
    assert "seed = 1" in text and 'label = \\"y\\"' in text
    assert not course.find("01_02").executed.exists()


@pytest.mark.usefixtures("profiles")
def test_list_of_profiles(invoke):
    output = invoke("list", "--profiles").output
    assert "big" in output and "a steeper line" in output and "01_02" in output


def test_failure_has_a_table_and_exit_status_1(invoke, course):
    result = invoke("run", "01_01", "-p", "slope", "3")
    assert result.exit_code == 1
    assert "✗ 01_01 failed" in result.output and "the slope is two: measured 3; expected 2" in result.output
    assert "Error: 1 of 1 failed: 01_01" in result.output


@pytest.mark.usefixtures("course", "profiles")
@pytest.mark.parametrize(
    ("arguments", "message", "status"),
    [
        (("run", "0101"), "did you mean 01_01?", 1),
        (("run", "01_01", "-p", "rnk", "3"), "notebook 01_01 has no parameter 'rnk'; it has seed, slope, label", 1),
        (("run", "-p", "seed", "3"), "-p needs exactly one notebook ID", 2),
        (("run", "01_01", "--format", "gif"), "'gif' is not one of", 2),
        (("run", "01_01", "--jobs", "0"), "0 is not in the range", 2),
        (("run", "--profile", "huge"), "there is no profile 'huge'; there is big", 1),
        (("run", "01_01", "--profile", "big"), "the profile big changes nothing in 01_01", 1),
        (("run", "-j", "2", "--scheduler", "tcp://127.0.0.1:9"), "-j is for this machine", 2),
    ],
)
def test_bad_input(invoke, arguments, message, status):
    result = invoke(*arguments)
    assert result.exit_code == status and message in result.output
    assert "Traceback" not in result.output


def test_outside_a_checkout(invoke, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("coursekit.course.catalog.__file__", str(tmp_path / "a" / "b" / "c.py"))
    result = invoke("list")
    assert result.exit_code == 1 and "no course checkout at or above" in result.output
