"""The committed figures are those that the notebooks draw: same names, same alt texts, same picture.

`make test` renders them anew while nbval re-executes the notebooks (COURSEKIT_RENDERED names the folder); without that
variable the notebooks are run here.
"""

import os
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
