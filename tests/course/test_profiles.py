from pathlib import Path

import pytest

from coursekit.course import catalog, profiles, runner
from coursekit.course.errors import CourseError

COURSE = catalog.open_course(Path(__file__).parent)
PROFILES = profiles.read_profiles(COURSE)
CELL = """seed = 0
slope = 2.0
label = "x"
"""


def write_parameters(entry, cell):
    entry.source.write_text(entry.source.read_text().replace(CELL, cell.rstrip() + "\n"))


def write_profiles(course, text):
    (course.root / "notebooks" / "profiles.yml").write_text(text)


def test_defaults_are_the_values_of_the_cell(course):
    entry = course.find("01_01")
    write_parameters(entry, CELL + "rate, epochs = 1e-3, 7  # two in a line\nn = 2**10\nsizes = (1, 2)\n")
    assert profiles.default_parameters(entry) == {
        "seed": 0, "slope": 2.0, "label": "x", "rate": 1e-3, "epochs": 7, "n": 1024, "sizes": (1, 2)
    }  # fmt: skip


def test_parameters_cell_that_does_not_run(course):
    write_parameters(course.find("01_01"), "seed = nothing\n")
    with pytest.raises(CourseError, match="parameters cell of notebook 01_01 does not run: name 'nothing'"):
        profiles.default_parameters(course.find("01_01"))


def test_text_becomes_checked_values(course):
    entry = course.find("01_01")
    given = [("seed", "3"), ("slope", "1e-3"), ("label", "5")]
    assert profiles.parse_parameters(entry, given) == {"seed": 3, "slope": 1e-3, "label": "5"}


@pytest.mark.parametrize(
    ("cell", "name", "text", "value"),
    [
        ("n = 2**10", "n", "7", 7),
        ("slope = 2.0", "slope", "1", 1),
        ("sizes = (1, 2)", "sizes", "[3]", [3]),
        ("sizes = [1, 2.5]", "sizes", "(3, 1.5)", (3, 1.5)),
        ("steps = {1: [2]}", "steps", "{3: [4]}", {3: [4]}),
    ],
)
def test_kinds_that_are_taken(course, cell, name, text, value):
    write_parameters(course.find("01_01"), cell)
    assert profiles.parse_parameters(course.find("01_01"), [(name, text)]) == {name: value}


@pytest.mark.parametrize(
    ("cell", "name", "text"),
    [
        ("n = 10", "n", "1.5"),
        ("n = 10", "n", "True"),
        ("n = 10", "n", "ten"),
        ("slope = 2.0", "slope", "steep"),
        ("slope = 2.0", "slope", "True"),
        ("sizes = (1, 2)", "sizes", "3"),
        ("sizes = (1, 2)", "sizes", "[0.5]"),
        ("shown = True", "shown", "1"),
    ],
)
def test_kinds_that_are_refused(course, cell, name, text):
    write_parameters(course.find("01_01"), cell)
    with pytest.raises(CourseError, match=f"parameter {name} of notebook 01_01 is like .*, got "):
        profiles.parse_parameters(course.find("01_01"), [(name, text)])


def test_unknown_name(course):
    with pytest.raises(CourseError, match="no parameter 'speed'; it has seed, slope, label"):
        profiles.parse_parameters(course.find("01_01"), [("speed", "3")])


def test_every_literal_reaches_the_notebook(course, tmp_path):
    entry = course.find("01_01")
    write_parameters(entry, 'sizes = (1,)\nsteps = {1: (2,)}\nlabel = "x"\nslope = 2.0\n')
    given = {"sizes": (3, 4), "steps": {5: (6.5, 1e-9)}, "label": 'a "b"'}
    check = "\n```{code-cell} ipython3\nprint(repr((sizes, steps, label)))\n```\n"
    entry.source.write_text(entry.source.read_text() + check)
    outcome = runner.run(course, [entry], output_dir=tmp_path / "out", parameters={"01_01": given})[0]
    assert not outcome.error
    notebook = (tmp_path / "out/notebooks/01_first/01_line.ipynb").read_text()
    assert "((3, 4), {5: (6.5, 1e-09)}, 'a \\\"b\\\"')" in notebook


def test_given_goes_over_the_profile_and_to_later_parts(course):
    write_profiles(course, 'big: {description: more, notebooks: {"01_01": {seed: 1, slope: 3.0}, "01_02": {seed: 2}}}')
    both = course.entries
    assert profiles.overrides(course, both, None, []) == {}
    assert profiles.overrides(course, both, "big", []) == {"01_01": {"seed": 1, "slope": 3.0}, "01_02": {"seed": 2}}
    assert profiles.overrides(course, both[:1], "big", [("slope", "4")]) == {"01_01": {"seed": 1, "slope": 4}}
    write_parameters(both[1], "seed = 0\n")
    assert profiles.overrides(course, both, None, [("slope", "4")]) == {"01_01": {"slope": 4}}


def test_unknown_profile(course):
    with pytest.raises(CourseError, match="no profile 'big'; there is none"):
        profiles.find_profile(course, "big")
    write_profiles(course, "small: {description: less, notebooks: {}}\nlarge: {description: more, notebooks: {}}\n")
    with pytest.raises(CourseError, match="no profile 'big'; there is small, large"):
        profiles.find_profile(course, "big")


@pytest.mark.parametrize(
    "text", ["", "big: 3", "big: {notebooks: {}}", "big: {description: x, notebooks: 4}", "big: ["]
)
def test_malformed_profiles(course, text):
    write_profiles(course, text)
    with pytest.raises(CourseError, match="profiles.yml is not a valid file of profiles"):
        profiles.read_profiles(course)


def test_profile_of_a_notebook_that_there_is_not(course):
    write_profiles(course, 'big: {description: more, notebooks: {"01_03": {seed: 1}}}')
    with pytest.raises(CourseError, match="no notebook '01_03'"):
        profiles.read_profiles(course)


def test_the_course_has_a_profile_for_full_size_figures():
    assert "full" in PROFILES


@pytest.mark.parametrize("name", PROFILES)
def test_profiles_of_the_course_suit_its_notebooks(name):
    for notebook_id, values in PROFILES[name].parameters.items():
        entry = COURSE.find(notebook_id)
        profiles.check_parameters(entry, values)
        defaults = profiles.default_parameters(entry)
        unchanged = [name for name, value in values.items() if value == defaults[name]]
        assert values and not unchanged, f"{notebook_id}: {unchanged} are as in the notebook"
