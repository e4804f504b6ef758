from html.parser import HTMLParser

import nbformat
import pytest

from coursekit.course import catalog
from coursekit.course.catalog import Caption, Course
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


def test_readme_table(done):
    assert "| 01_02 | [Another](notebooks/01_first/02_other.ipynb) | 5 |  | nowhere |" in catalog.readme_table(done)


class Images(HTMLParser):
    """The attributes of the images and the targets of the links of a page."""

    def __init__(self, text):
        super().__init__()
        self.images, self.links = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.images.append(dict(attrs))
        elif tag == "a":
            self.links.append(dict(attrs)["href"])


def gallery(course, text=None):
    """The gallery of the course, its captions replaced if a text is given."""
    if text is not None:
        (course.root / "notebooks" / "figures.yml").write_text(text, encoding="utf-8")
    return catalog.figure_index(Course(course.root))


def test_gallery(done):
    text = gallery(done, "01_first/line: {title: A line rises, source: 'Nowhere Fig. 1'}\n")
    assert "## 01_01 [A line](../notebooks/01_first/01_line.ipynb)" in text
    assert "01_02" not in text.partition("## ")[2]  # not executed: no figures yet
    page = Images(text)
    assert page.links == ["01_first/line.png"]
    assert page.images[0]["src"] == "01_first/line.png"
    assert page.images[0]["alt"] == "A straight line from the origin upwards."
    for shown in ("A line rises", "A straight line from the origin upwards.", "Nowhere Fig. 1", "01_first/line"):
        assert f">{shown}<" in text or f"\n{shown}<" in text


def test_gallery_without_captions_shows_names(done):
    text = gallery(done)
    assert "<b>01_first/line</b>" in text and "<i>" not in text
    assert text == (done.root / "figs" / "INDEX.md").read_text(encoding="utf-8")


def test_gallery_escapes_its_texts(done):
    entry = done.find("01_01")
    notebook = nbformat.read(entry.executed, as_version=4)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("metadata", {}):
                output.metadata["image/png"]["alt"] = 'For 1 < x & "y" > 2'
    nbformat.write(notebook, entry.executed)
    text = gallery(done, "01_first/line: {title: 'G > F & H', source: 'a <b>'}\n")
    assert Images(text).images[0]["alt"] == 'For 1 < x & "y" > 2'
    assert "<b>G &gt; F &amp; H</b>" in text and "<i>a &lt;b&gt;</i>" in text


def test_captions(course):
    table = course.root / "notebooks" / "figures.yml"
    assert course.captions == {}
    table.write_text("01_first/line: {title: π rises, source: Nowhere}\n01_first/other: {title: b}\n", encoding="utf-8")
    assert Course(course.root).captions == {
        "01_first/line": Caption("π rises", "Nowhere"),
        "01_first/other": Caption("b"),
    }


@pytest.mark.parametrize(
    "text", ["", "a", "a: [", "a: b", "a: {source: b}", "a: {title: b, sauce: c}", "a: {title: 3}"]
)
def test_malformed_captions(course, text):
    (course.root / "notebooks" / "figures.yml").write_text(text)
    with pytest.raises(CourseError, match="not a valid table of captions"):
        _ = course.captions


def test_write_atomically_leaves_equal_files_alone(tmp_path):
    path = tmp_path / "page.md"
    catalog.write_atomically(path, b"text\n")
    before = path.stat().st_mtime_ns
    catalog.write_atomically(path, b"text\n")
    assert path.stat().st_mtime_ns == before
    assert list(tmp_path.iterdir()) == [path]
