"""What a notebook shows: figures in one style, saved with alt text, and the source of a kernel.

The style is the package's Matplotlib style sheet: ``plt.style.use("coursekit.course")``.
"""

import base64
import inspect
import io
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

THEORY: dict[str, Any] = {"color": "0.15", "linewidth": 1.1, "zorder": 3}
"""Line style of an exact curve; measurement is drawn in points, bars or bands of the colour cycle."""

FORMATS = ("png", "pdf", "svg")
# Creation dates and library versions would change the file at every run
_METADATA: dict[str, dict[str, None]] = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Producer": None, "Creator": None},
    "svg": {"Date": None, "Creator": None},
}


def figures_folder() -> Path:
    """Where `savefig` writes: $COURSEKIT_FIGS, or figs/ of the checkout that the working directory lies in."""
    if folder := os.environ.get("COURSEKIT_FIGS"):
        return Path(folder)
    here = Path.cwd()
    for folder_above in (here, *here.parents):
        if (folder_above / "notebooks" / "course.yml").is_file():
            return folder_above / "figs"
    raise FileNotFoundError(
        f"no course checkout at or above {here}: work inside one, or set COURSEKIT_FIGS to a folder for the figures"
    )


def savefig(fig: Figure, name: str, *, alt: str) -> None:
    """Save a figure under its name, show it in the notebook with its alt text, and close it.

    Always writes ``<figures folder>/<name>.png``; with the environment variable ``COURSEKIT_FORMAT=pdf`` or
    ``svg`` also that format for print. Files appear whole or not at all, and equal figures give equal bytes.

    Parameters
    ----------
    fig : matplotlib Figure
    name : str
        ``chapter_folder/figure_name``, e.g. ``"01_linear_algebra/svd_spectrum"``.
    alt : str
        What the figure shows, for a reader who cannot see it: at least a short sentence.

    Raises
    ------
    ValueError
        If the name or the alt text is malformed, or COURSEKIT_FORMAT is unknown.
    OSError
        If the folder cannot be written; figures saved before stay as they are.
    """
    if not re.fullmatch(r"[0-9a-z_]+/[0-9a-z_]+", name):
        raise ValueError(f"name must be 'chapter_folder/figure_name' in lower case, digits and _, got {name!r}")
    if not isinstance(alt, str) or len(alt.split()) < 4:
        raise ValueError(f"alt must describe the figure in a sentence, got {alt!r}")
    extra = os.environ.get("COURSEKIT_FORMAT", "png")
    if extra not in FORMATS:
        raise ValueError(f"COURSEKIT_FORMAT must be one of {', '.join(FORMATS)}, got {extra!r}")
    content = {fmt: _render(fig, fmt) for fmt in dict.fromkeys(("png", extra))}
    for fmt, data in content.items():
        _write_atomically(figures_folder() / f"{name}.{fmt}", data)
    if (ipython := sys.modules.get("IPython")) is not None and ipython.get_ipython() is not None:
        width = round(82 * fig.get_figwidth())  # 7.2 in fill the text width of a printed or web page
        ipython.display.display(
            {"image/png": _thumbnail(content["png"]), "text/plain": f"Figure {name}: {alt}"},
            raw=True,
            metadata={"image/png": {"alt": alt, "figure": name, "width": width}},
        )
    plt.close(fig)


def _render(fig: Figure, fmt: str) -> bytes:
    buffer = io.BytesIO()
    fig.savefig(buffer, format=fmt, metadata=_METADATA[fmt])
    return buffer.getvalue()


def _thumbnail(png: bytes) -> str:
    """Half the size in 128 colours, as base64: a notebook of twelve figures stays below 600 kB."""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    small = image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.quantize(128).save(buffer, "png", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _write_atomically(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".writing-") as scratch:
            draft = Path(scratch) / path.name
            draft.write_bytes(content)
            draft.replace(path)
    except OSError as error:
        raise OSError(
            f"cannot write {path.name} to the figures folder {path.parent} ({error.strerror}): "
            "make it writable, or set COURSEKIT_FIGS to another folder"
        ) from error


def image_row(axes: Iterable[Axes], images: np.ndarray, titles: Sequence[str], **imshow: Any) -> None:
    """Draw images (n, h, w) side by side on one grey scale, without ticks.

    Panels share `vmin` and `vmax` (the range of all the images unless given), so that they can be compared.
    """
    limits: dict[str, Any] = {"vmin": float(np.min(images)), "vmax": float(np.max(images)), "cmap": "gray"} | imshow
    for ax, image, title in zip(axes, images, titles, strict=True):
        ax.imshow(image, **limits)
        ax.set_title(title)
        ax.set_axis_off()


def show_source(kernel: Callable | type) -> None:
    """Show the source code of a kernel in the notebook, without its docstring: the algorithm is the lesson."""
    from IPython.display import Code, display

    source = inspect.getsource(kernel).rstrip()
    doc = re.search(r'\n\s+r?"""(?s:.*?)"""', source)
    if doc:
        source = source[: doc.start()] + source[doc.end() :]
    display(Code(source, language="python"))
