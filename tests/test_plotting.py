import re

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from coursekit import plotting

matplotlib.use("agg")
ALT = "A straight line that rises from zero to one."


@pytest.fixture(autouse=True)
def style():
    with plt.style.context("coursekit.course"):
        yield


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSEKIT_FIGS", str(tmp_path / "figs"))
    return tmp_path / "figs"


def line(slope=1.0):
    fig, ax = plt.subplots()
    ax.plot([0, 1], [0, slope], **plotting.THEORY)
    ax.set(xlabel="$x$", ylabel="$y$")
    return fig


def test_saves_and_closes(folder):
    fig = line()
    plotting.savefig(fig, "01_chapter/line", alt=ALT)
    assert Image.open(folder / "01_chapter/line.png").size == (720, 540)  # 3.6 × 2.7 in at 200 dpi
    assert not plt.fignum_exists(fig.number)
    assert [p.name for p in folder.rglob("*") if p.is_file()] == ["line.png"]  # no drafts left


@pytest.mark.parametrize("fmt", ["png", "pdf", "svg"])
def test_equal_figures_give_equal_bytes(folder, monkeypatch, fmt):
    monkeypatch.setenv("COURSEKIT_FORMAT", fmt)
    contents = []
    for _ in range(2):
        plotting.savefig(line(), "01_chapter/line", alt=ALT)
        contents.append((folder / f"01_chapter/line.{fmt}").read_bytes())
    assert contents[0] == contents[1]
    assert (folder / "01_chapter/line.png").is_file()  # the PNG always


def test_pdf_embeds_truetype_fonts(folder, monkeypatch):
    monkeypatch.setenv("COURSEKIT_FORMAT", "pdf")
    fig = line()
    fig.axes[0].set_title(r"AᵀA and $\sqrt{\pi}\,\kappa$")  # text, a glyph beyond Latin 1, mathematics
    plotting.savefig(fig, "01_chapter/line", alt=ALT)
    data = (folder / "01_chapter/line.pdf").read_bytes()
    fonts = re.findall(rb"/Type /FontDescriptor.*?>>", data, re.S)
    assert len(fonts) >= 2 and all(b"/FontFile2" in font for font in fonts)  # FontFile2 is an embedded TrueType font
    assert b"/Type3" not in data


def test_png_names_no_software_or_date(folder):
    plotting.savefig(line(), "01_chapter/line", alt=ALT)
    assert set(Image.open(folder / "01_chapter/line.png").info) <= {"dpi"}


@pytest.mark.parametrize("name", ["line", "01_chapter/Line", "01_chapter/line.png", "../line", "a/b/c"])
def test_bad_name(folder, name):
    with pytest.raises(ValueError, match="name must be"):
        plotting.savefig(line(), name, alt=ALT)


@pytest.mark.parametrize("alt", ["", "A line", "   "])
def test_alt_text_is_required(folder, alt):
    with pytest.raises(ValueError, match="alt must describe"):
        plotting.savefig(line(), "01_chapter/line", alt=alt)
    with pytest.raises(TypeError):
        plotting.savefig(line(), "01_chapter/line")


def test_unknown_format(folder, monkeypatch):
    monkeypatch.setenv("COURSEKIT_FORMAT", "jpeg")
    with pytest.raises(ValueError, match="one of png, pdf, svg"):
        plotting.savefig(line(), "01_chapter/line", alt=ALT)


def test_unwritable_folder_keeps_the_old_figure(folder):
    plotting.savefig(line(), "01_chapter/line", alt=ALT)
    before = (folder / "01_chapter/line.png").read_bytes()
    (folder / "02_chapter").write_text("a file where a folder should be")
    with pytest.raises(OSError, match=r"cannot write line.png to the figures folder .*02_chapter"):
        plotting.savefig(line(2.0), "02_chapter/line", alt=ALT)
    assert (folder / "01_chapter/line.png").read_bytes() == before


def test_folder_of_the_checkout(tmp_path, monkeypatch):
    monkeypatch.delenv("COURSEKIT_FIGS")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="no course checkout"):
        plotting.figures_folder()
    (tmp_path / "notebooks" / "01_chapter").mkdir(parents=True)
    (tmp_path / "notebooks" / "course.yml").touch()
    monkeypatch.chdir(tmp_path / "notebooks" / "01_chapter")
    assert plotting.figures_folder() == tmp_path / "figs"


def test_image_row_shares_one_scale():
    fig, axes = plt.subplots(1, 2)
    plotting.image_row(axes, np.array([[[0.0, 1]], [[2, 3]]]), ["a", "b"])
    assert {ax.images[0].get_clim() for ax in axes} == {(0.0, 3.0)}
    with pytest.raises(ValueError, match="argument 2"):
        plotting.image_row(axes, np.zeros((3, 2, 2)), ["a", "b", "c"])
    plt.close(fig)


def test_style_is_legible_and_colour_blind_safe():
    with plt.style.context("coursekit.course"):
        sizes = [
            matplotlib.rcParams[key] for key in ("font.size", "xtick.labelsize", "ytick.labelsize", "legend.fontsize")
        ]
        assert min(sizes) >= 8
        colours = matplotlib.rcParams["axes.prop_cycle"].by_key()["color"]
    assert len(set(colours)) == 7 and "#000000" not in colours


def kernel(x):
    """Docstring."""
    # why
    return x + 1


def test_show_source_leaves_the_docstring_out(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    plotting.show_source(kernel)
    assert shown[0].data == "def kernel(x):\n    # why\n    return x + 1"
