"""The web edition's sources: what becomes of a notebook's text, and the pages collected from all of them."""

import re
from pathlib import Path

import nbformat
import pytest
from PIL import Image

from book import errata, pages, stage, uses
from coursekit.course import catalog
from coursekit.course.catalog import Entry

ROOT = Path(__file__).parents[1]
COURSE = catalog.open_course(ROOT)
ENTRIES = {entry.id: entry for entry in COURSE.entries}


def entry(sources=("Chertkov §1.2",), **changes):
    row = {"id": "01_02", "title": "T", "file": "01_x/02_t", "minutes": 75, "covers": "", "prerequisites": []}
    return Entry(root=ROOT, sources=list(sources), **(row | changes))


def notebook(*cells):
    made = [
        nbformat.v4.new_code_cell(c[3:]) if c.startswith(">>>") else nbformat.v4.new_markdown_cell(c) for c in cells
    ]
    return nbformat.v4.new_notebook(
        cells=made, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    )


# --- text -----------------------------------------------------------------------------------------------------------


def test_ids_in_the_prose_become_links_and_those_in_code_and_formulas_do_not():
    text = "See notebook 07_04 (06_02), `07_04`, $x_{07_04}$, [07_04](a), 07_99 and 07_04x."
    target, other = f"/notebooks/{ENTRIES['07_04'].file}.ipynb", f"/notebooks/{ENTRIES['06_02'].file}.ipynb"
    linked = pages.link_notebooks(text, ENTRIES)
    assert linked == text.replace("notebook 07_04", f"[notebook 07_04]({target})", 1).replace(
        "(06_02)", f"([06_02]({other}))"
    )
    assert pages.link_notebooks("07_04", ENTRIES, ENTRIES["07_04"]) == "07_04"


def test_a_solution_on_one_line_gets_lines_of_its_own_and_keeps_its_characters():
    text = "1. Why?\n   <details><summary>Solution</summary>x_t and w* in $a_1*b$ and <code>y_z</code>.</details>"
    folded = pages.fold_solutions(text)
    assert "   x\\_t and w\\* in $a_1*b$ and <code>y\\_z</code>." in folded.split("\n")
    assert folded.count("\n\n   <details><summary>Solution</summary>\n\n") == 1
    already = "<details><summary>Solution</summary>\n\nTake *this* $x$.\n\n</details>"
    assert pages.fold_solutions(already).strip() == already


def test_sources_have_full_names():
    merged = pages.merged_sources(["Chertkov §3.2.3", "§3.3.2 and §3.3.5", "Cao §1.4.3"])
    assert merged == ["Chertkov §3.2.3, §3.3.2 and §3.3.5", "Cao §1.4.3"]
    assert pages.full_source("Miyamoto, Beg Rohu notes, §6.3") == f"{errata.BEG_ROHU}, §6.3"
    assert pages.full_source("Miyamoto §11") == f"{errata.RECITATIONS}, §11"
    with pytest.raises(ValueError, match="Nobody"):
        pages.full_source("Nobody §1")


def test_reading_time_counts_words_formulas_as_one_and_lines_of_code_as_ten():
    text = " ".join(["word"] * 300) + " $a + b$ " * 60
    assert pages.reading_minutes(notebook(text, ">>>x = 1\n\ny = 2\n" * 2)) == 2  # 360 words and 4 lines


def test_a_figure_keeps_its_ratio_and_alt_text(tmp_path):
    (tmp_path / "01_x").mkdir()
    Image.new("RGB", (300, 100)).save(tmp_path / "01_x" / "a_b.png")
    html = pages.image_html("01_x/a_b", 'says "1 < 2"', 150, tmp_path, "../../")
    assert 'width="150" height="50"' in html and 'alt="says &quot;1 &lt; 2&quot;"' in html
    assert 'href="../../figs/01_x/a_b.png"' in html and 'id="figure-a-b"' in html


def test_a_page_has_its_box_its_labels_and_its_erratum():
    made = pages.page(
        entry(prerequisites=["notebook 07_04"]),
        notebook("# T\n\nText.", "## One\n\n> **Erratum** (Chertkov §1.2). Wrong: $x$.", "## Two"),
        ENTRIES,
        ["coursekit.linalg.svd"],
        ROOT / "figs",
    )
    text = "\n".join(cell.source for cell in made.cells)
    assert text.startswith("(nb-01-02)=\n# 01_02 T\n\n::::{div} facts")
    assert "{py:obj}`linalg.svd <coursekit.linalg.svd>`" in text and "[notebook 07_04](/notebooks/" in text
    assert "(nb-01-02-1)=\n## One" in text and "(nb-01-02-2)=\n## Two" in text
    assert (
        ":::{admonition} Erratum: Chertkov, §1.2\n:class: erratum\n:name: erratum-01-02-1\n\nWrong: $x$.\n:::" in text
    )


# --- errata ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("box", "sources", "text", "place", "body", "order"),
    [
        (
            "**Erratum** (the book, Exercise 7.3.2(e)). It is.",
            (),
            errata.CHERTKOV,
            "Exercise 7.3.2(e)",
            "It is.",
            (7, 3, 2),
        ),
        ("**Errata** (Beg Rohu notes). In (6.3.10) no.", (), errata.BEG_ROHU, "", "In (6.3.10) no.", (6, 3, 10)),
        (
            "**Erratum** (Miyamoto §6.3.2). a",
            ("Miyamoto, Beg Rohu notes, §6",),
            errata.BEG_ROHU,
            "§6.3.2",
            "a",
            (6, 3, 2),
        ),
        ("**Erratum** (Miyamoto §5.2). a", ("Miyamoto §5",), errata.RECITATIONS, "§5.2", "a", (5, 2)),
        (
            "**Errata.** Miyamoto, §11.1.1: $s$ is.",
            ("Miyamoto §11",),
            errata.RECITATIONS,
            "§11.1.1",
            "$s$ is.",
            (11, 1, 1),
        ),
    ],
)
def test_a_box_says_which_text_and_where(box, sources, text, place, body, order):
    (found,) = errata.collect(entry(sources), notebook(f"Text.\n\n> {box}\n\nMore."))
    assert (found.text, found.place, found.body, found.order) == (text, place, body, order)


def test_a_box_that_names_no_text_is_an_error():
    with pytest.raises(ValueError, match="01_02 names no source text"):
        errata.collect(entry(), notebook("> **Erratum** (somewhere). Wrong."))


def test_every_erratum_box_of_the_notebooks_is_on_the_page():
    boxes = []
    for row in COURSE.entries:
        boxes += errata.collect(row, catalog.read_source(row))
    written = [
        line
        for path in sorted((ROOT / "notebooks").glob("*/*.md"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if "**Errat" in line
    ]
    page = stage.errata_page(boxes)
    assert len(boxes) == len(written) > 0
    assert page.startswith(f"# Errata\n\n{len(written)} places")
    words = re.compile(r"\S+(?: \S+){5}$")
    missing = [line for line in written if (end := words.search(line)) and end.group() not in page]
    assert missing == []


# --- kernels and figures --------------------------------------------------------------------------------------------


def test_used_kernels_are_found_through_every_kind_of_import():
    code = (
        ">>>import coursekit as ck\nfrom coursekit import optim as o\nfrom coursekit.sde import langevin",
        "text",
        ">>>ck.claim('a', 1, equals=1)\nck.linalg.svd(np.eye(2)).energy\nlangevin(o.adam(0.1))\nother.optim.momentum()",
    )
    found = uses.used_kernels(notebook(*code), {"claim": "claims.claim"})
    names = ("claims.claim", "linalg.svd", "sde.langevin", "optim.adam")
    assert found == {f"coursekit.{name}": 2 for name in names}


def test_every_module_stands_in_one_field():
    modules, exported = uses.public_names(ROOT / "coursekit" / "__init__.pyi")
    assert sorted(modules) == sorted(module for group in stage.FIELDS.values() for module in group)
    assert exported["claim"] == "claims.claim"


def test_the_gallery_has_every_figure_with_its_alt_text(tmp_path):
    notebooks = {row.id: catalog.read_executed(row) for row in COURSE.entries}
    figures = {name: alt for made in notebooks.values() for name, alt in catalog.figures(made).items()}
    for name in figures:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 2)).save(tmp_path / f"{name}.webp")
    page = stage.gallery(COURSE, notebooks, tmp_path)
    assert all(f'src="thumbnails/{name}.webp"' in page for name in figures)
    assert page.count('class="thumbnail"') == len(figures) and 'alt=""' not in page
    assert set(stage.SHOWCASE) <= figures.keys()


def test_every_assignment_is_listed_with_its_exercises():
    listed = stage.assignments(ROOT / "exercises")
    names = [path.relative_to(ROOT / "exercises").with_suffix("").as_posix() for path in ROOT.glob("exercises/*/*.md")]
    assert len(names) == len(listed.splitlines()) and all(f"`{name}`" in listed for name in names)
    headings = re.findall(r"(?m)^## \d+\. (.+)$", (ROOT / "exercises" / f"{names[0]}.md").read_text(encoding="utf-8"))
    assert "; ".join(headings) in listed


def test_a_tree_keeps_only_what_was_written_and_images_follow_their_originals(tmp_path):
    (tmp_path / "old.md").touch()
    origin = tmp_path.parent / "origin.png"
    Image.new("RGB", (100, 50), "red").save(origin)
    tree = stage.Tree(tmp_path)
    tree.write("a/new.md", "text")
    tree.image("small.webp", origin, 20)
    tree.clean()
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["new.md", "small.webp"]
    with Image.open(tmp_path / "small.webp") as image:
        assert image.size == (20, 10)
