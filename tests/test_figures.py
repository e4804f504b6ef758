"""The committed figures are those that the notebooks draw: same names, same alt texts, same picture; all have captions.

`make test` renders them anew while nbval re-executes the notebooks (COURSEKIT_RENDERED names the folder); without that
variable the notebooks are run here.
"""

import os
import re
from pathlib import Path

import pytest
from matplotlib.testing.compare import compare_images

from coursekit.course import catalog, runner

COURSE = catalog.open_course(Path(__file__).parent)
NAMES = [
    pytest.param(entry, name, id=name)
    for entry in COURSE.entries
    if (notebook := catalog.read_executed(entry)) is not None
    for name in catalog.figures(notebook)
]
# RMS difference in grey levels of 0..255: fonts and line caps move a little between builds, a changed curve much more
TOLERANCE = 2.0
# a correction stands with its reason
SOURCE = re.compile(
    r"(Chertkov|Cao|Miyamoto) (Fig\.|Figs\.|Example|Exercise) [\d.–]+[^()]*( \([a-e]\))?( \((?!corrected\)).+\))?"
)


@pytest.fixture(scope="session")
def rendered(tmp_path_factory):
    if folder := os.environ.get("COURSEKIT_RENDERED"):
        return Path(folder)
    folder = tmp_path_factory.mktemp("rendered")
    outcomes = runner.run(COURSE, COURSE.entries, output_dir=folder)
    assert not [outcome for outcome in outcomes if outcome.error]
    return folder / "figs"


@pytest.mark.parametrize(("entry", "name"), NAMES)
def test_figure_is_what_the_notebook_draws(rendered, tmp_path, entry, name):
    fresh = tmp_path / f"{Path(name).name}.png"
    fresh.write_bytes((rendered / f"{name}.png").read_bytes())  # compare_images writes its difference beside it
    difference = compare_images(str(entry.root / "figs" / f"{name}.png"), str(fresh), tol=TOLERANCE)
    assert difference is None, difference


def test_no_figure_is_left_over():
    drawn = {param.values[1] for param in NAMES}
    folder = COURSE.root / "figs"
    assert {path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.png")} == drawn


def test_index_is_in_step():
    assert (COURSE.root / "figs" / "INDEX.md").read_text(encoding="utf-8") == catalog.figure_index(COURSE)


def test_every_figure_has_a_caption_in_the_order_of_the_course():
    assert list(COURSE.captions) == [param.values[1] for param in NAMES]


@pytest.mark.parametrize("entry", COURSE.entries, ids=lambda entry: entry.id)
def test_titles_are_short_plain_and_told_apart(entry):
    titles = [COURSE.captions[name].title for name in catalog.figures(catalog.read_executed(entry))]
    assert [title for title in titles if not 5 <= len(title) <= 60 or re.search(r"[$\\]", title)] == []
    assert len(set(titles)) == len(titles)


def test_sources_name_a_figure_or_an_exercise_and_say_what_was_corrected():
    sources = [caption.source for caption in COURSE.captions.values() if caption.source]
    assert [source for source in sources if not SOURCE.fullmatch(source)] == []


def test_pages_show_figures_that_exist():
    pages = [COURSE.root / "README.md", COURSE.root / "CONTRIBUTING.md", COURSE.root / "figs" / "INDEX.md"]
    shown = {
        (page.parent / target).resolve()
        for page in pages
        for target in re.findall(r"[\w/]+\.png", page.read_text(encoding="utf-8"))
    }
    assert len(shown) >= len(NAMES)
    assert [path for path in shown if not path.is_file()] == []
