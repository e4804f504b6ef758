import nbformat
import pytest

from coursekit.course import catalog
from coursekit.course.catalog import Course
from coursekit.course.errors import CourseError

TABLE = """notebooks:
  - {id: "01_01", title: A line, file: 01_first/01_line, minutes: 5, sources: [nowhere], covers: none}
"""


def test_select_brings_later_parts(course):
    table = course.root / "notebooks" / "course.yml"
    rows = [TABLE, *(TABLE.partition("\n")[2].replace("01_01", f"01_{part}") for part in ("01b", "10", "02"))]
    table.write_text("".join(rows))
    course = Course(course.root)
    assert [entry.id for entry in course.select(["01_01"])] == ["01_01", "01_01b"]
    assert [entry.id for entry in course.select(["01_02", "01_01b", "01_01"])] == ["01_02", "01_01b", "01_01"]
    with pytest.raises(CourseError, match="no notebook '01_03'"):
        course.select(["01_03"])


def test_find(course):
    assert course.find("01_02").title == "Another"


@pytest.mark.parametrize(("wrong", "hint"), [("0102", "did you mean 01_02?"), ("xyz", "the course has 01_01, 01_02")])
def test_unknown_id(course, wrong, hint):
    with pytest.raises(CourseError, match=f"no notebook '{wrong}'; {hint}"):
        course.find(wrong)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "notebooks: 3",
        "notebooks: [{id: a}]",
        "a: [",
        "notebooks:\n- {nonsense: 1}",
        TABLE.replace('"01_01"', "01_01"),
        TABLE.replace("[nowhere]", "nowhere"),
    ],
)
def test_malformed_table(course, text):
    (course.root / "notebooks" / "course.yml").write_text(text)
    with pytest.raises(CourseError, match="not a valid table of contents"):
        _ = Course(course.root).entries


def test_open_course_from_a_folder_within(course):
    assert catalog.open_course(course.root / "notebooks" / "01_first").root == course.root


def test_never_executed_is_stale(course):
    assert catalog.staleness(course.find("01_01")) == ["not executed"]


def test_unreadable_ipynb_is_stale(course):
    course.find("01_01").executed.write_text("{")
    assert catalog.staleness(course.find("01_01")) == ["not executed"]


def test_missing_source(course):
    course.find("01_01").source.unlink()
    with pytest.raises(CourseError, match="cannot read .*01_line.md"):
        catalog.read_source(course.find("01_01"))


def test_executed_is_up_to_date(done):
    assert catalog.staleness(done.find("01_01")) == []


def test_change_of_the_text(done):
    entry = done.find("01_01")
    entry.source.write_text(entry.source.read_text() + "\nOne more sentence.\n")
    assert catalog.staleness(entry) == ["its text changed"]


def test_change_of_the_ipynb(done):
    entry = done.find("01_01")
    notebook = nbformat.read(entry.executed, as_version=4)
    notebook.cells[0].source += "!"
    nbformat.write(notebook, entry.executed)
    assert catalog.staleness(entry) == ["the .ipynb was edited"]


def test_change_of_a_module_it_uses(done, monkeypatch):
    entry = done.find("01_01")
    modules = catalog.read_executed(entry).metadata["coursekit"]["modules"]
    assert {"coursekit", "coursekit.claims", "coursekit.plotting"} <= set(modules)
    assert "coursekit.course.mplstyle" in modules and "coursekit.linalg" not in modules
    changed = catalog.module_hashes() | {"coursekit.claims": "0"}
    monkeypatch.setattr(catalog, "module_hashes", lambda: changed)
    assert catalog.staleness(entry) == ["coursekit.claims changed"]
    del changed["coursekit.claims"]
    assert catalog.staleness(entry) == ["coursekit.claims changed"]


def test_module_hashes_cover_the_package():
    hashes = catalog.module_hashes()
    assert {"coursekit", "coursekit.linalg", "coursekit.course", "coursekit.course.cli"} <= set(hashes)


@pytest.mark.parametrize("spoil", [lambda path: path.unlink(), lambda path: path.write_bytes(b"x")])
def test_missing_or_overwritten_figure(done, spoil):
    spoil(done.root / "figs" / "01_first" / "line.png")
    assert catalog.staleness(done.find("01_01")) == ["01_first/line missing from figs or overwritten"]


def test_malformed_record_counts_as_not_executed(done):
    entry = done.find("01_01")
    notebook = nbformat.read(entry.executed, as_version=4)
    notebook.metadata["coursekit"] = {}
    nbformat.write(notebook, entry.executed)
    assert catalog.staleness(entry) == ["not executed"]


def test_generated_pages(done):
    assert "| 01_02 | [Another](notebooks/01_first/02_other.ipynb) | 5 |  | nowhere |" in catalog.readme_table(done)
    index = (done.root / "figs" / "INDEX.md").read_text()
    assert "![A straight line from the origin upwards.](01_first/line.png)" in index


def test_write_atomically_leaves_equal_files_alone(tmp_path):
    path = tmp_path / "page.md"
    catalog.write_atomically(path, b"text\n")
    before = path.stat().st_mtime_ns
    catalog.write_atomically(path, b"text\n")
    assert path.stat().st_mtime_ns == before
    assert list(tmp_path.iterdir()) == [path]
