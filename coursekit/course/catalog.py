"""The table of contents (notebooks/course.yml), and which notebooks are out of date."""

import difflib
import hashlib
import html
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import jupytext
import nbformat
import yaml

from coursekit.course.errors import CourseError

TABLE_START, TABLE_END = "<!-- course table -->", "<!-- end of the course table -->"


@dataclass(frozen=True)
class Entry:
    """One notebook of the course: a row of course.yml."""

    root: Path
    id: str
    title: str
    file: str  # below notebooks/, without suffix
    minutes: int
    sources: list[str]
    covers: str
    prerequisites: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        texts = {"id": self.id, "title": self.title, "file": self.file, "covers": self.covers}
        for name, value in texts.items():
            if not isinstance(value, str):
                raise TypeError(f"{name} must be a text in quotes, got {value!r}")
        for name, rows in {"sources": self.sources, "prerequisites": self.prerequisites}.items():
            if not isinstance(rows, list):
                raise TypeError(f"{name} of {self.id} must be a list, got {rows!r}")

    @property
    def source(self) -> Path:
        """The MyST Markdown text, which people edit."""
        return self.root / "notebooks" / f"{self.file}.md"

    @property
    def executed(self) -> Path:
        """The paired .ipynb with outputs, which people open."""
        return self.root / "notebooks" / f"{self.file}.ipynb"


@dataclass(frozen=True)
class Caption:
    """What the gallery says of a figure: a row of figures.yml."""

    title: str
    source: str = ""  # which figure, example or exercise of a source text it corresponds to, corrects or extends

    def __post_init__(self) -> None:
        for name, value in {"title": self.title, "source": self.source}.items():
            if not isinstance(value, str):
                raise TypeError(f"{name} must be a text in quotes, got {value!r}")


@dataclass(frozen=True)
class Course:
    """A checkout of the course."""

    root: Path

    @cached_property
    def entries(self) -> list[Entry]:
        table = self.root / "notebooks" / "course.yml"
        try:
            rows = yaml.safe_load(table.read_text(encoding="utf-8"))["notebooks"]
            return [Entry(root=self.root, **row) for row in rows]
        except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError, KeyError) as error:
            raise CourseError(f"{table} is not a valid table of contents: {error}") from error

    @cached_property
    def captions(self) -> dict[str, Caption]:
        """The captions of the figures by name; empty if nobody has written any."""
        table = self.root / "notebooks" / "figures.yml"
        try:
            rows = yaml.safe_load(table.read_text(encoding="utf-8"))
            return {name: Caption(**row) for name, row in rows.items()}
        except FileNotFoundError:
            return {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError, AttributeError) as error:
            raise CourseError(f"{table} is not a valid table of captions: {error}") from error

    def find(self, notebook_id: str) -> Entry:
        """The notebook of that id, or CourseError that proposes a similar one."""
        by_id = {entry.id: entry for entry in self.entries}
        if notebook_id in by_id:
            return by_id[notebook_id]
        close = difflib.get_close_matches(notebook_id, by_id, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}?" if close else f"the course has {', '.join(by_id)}"
        raise CourseError(f"there is no notebook {notebook_id!r}; {hint} (`coursekit list` shows all)")

    def select(self, notebook_ids: Iterable[str]) -> list[Entry]:
        """The notebooks of these ids, each once and followed by its later parts: 03_03 brings 03_03b with it."""
        selected = {}
        for notebook_id in notebook_ids:
            parts = [entry for entry in self.entries if entry.id.rstrip(ascii_lowercase) == notebook_id]
            for entry in (self.find(notebook_id), *parts):
                selected[entry.id] = entry
        return list(selected.values())


def open_course(start: Path | None = None) -> Course:
    """The checkout that `start` (default: the working directory, then the package itself) lies in."""
    package = Path(__file__).resolve().parents[2]
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents, package):
        if (folder / "notebooks" / "course.yml").is_file():
            return Course(folder)
    raise CourseError(f"no course checkout at or above {here}: run this inside a clone of the course")


# --- staleness ------------------------------------------------------------------------------------------------------


def source_hash(notebook: nbformat.NotebookNode) -> str:
    """Hash of what a person writes in a notebook: the type, text and tags of every cell."""
    digest = hashlib.sha256()
    for cell in notebook.cells:
        digest.update(repr((cell.cell_type, cell.source, sorted(cell.metadata.get("tags", [])))).encode())
    return digest.hexdigest()[:16]


def file_hash(path: Path) -> str | None:
    """Hash of a file, None if it is not there."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError:
        return None


def module_hashes() -> dict[str, str]:
    """Hashes of all files of the package by dotted name, the style sheet included; line endings normalised."""
    package = Path(__file__).resolve().parents[1]
    hashes = {}
    for path in (*package.rglob("*.py"), *package.rglob("*.mplstyle")):
        parts = ["coursekit", *path.relative_to(package).with_suffix("").parts]
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts) + (
            "" if path.suffix == ".py" else path.suffix
        )
        hashes[name] = hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n")).hexdigest()[:16]
    return hashes


def read_source(entry: Entry) -> nbformat.NotebookNode:
    """The notebook's text as written in its .md file."""
    try:
        return jupytext.read(entry.source, fmt="md:myst")
    except OSError as error:
        raise CourseError(f"cannot read {entry.source}: {error.strerror}") from error


def read_executed(entry: Entry) -> nbformat.NotebookNode | None:
    """The executed .ipynb, or None if there is none or it is not readable as a notebook."""
    try:
        return nbformat.read(entry.executed, as_version=4)
    except (OSError, ValueError, AttributeError, nbformat.ValidationError):
        return None  # reported by `staleness` as "not executed"


def figures(notebook: nbformat.NotebookNode) -> dict[str, str]:
    """Names and alt texts of the figures in a notebook's outputs, in order."""
    found = {}
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            meta: dict[str, Any] = output.get("metadata", {}).get("image/png", {})
            if "figure" in meta:
                found[meta["figure"]] = meta["alt"]
    return found


def staleness(entry: Entry) -> list[str]:
    """Why the executed notebook is out of date, in words; empty if it is up to date."""
    executed = read_executed(entry)
    record = executed.metadata.get("coursekit", {}) if executed is not None else {}
    if executed is None or not {"source", "modules", "figures"} <= set(record):
        return ["not executed"]
    reasons = []
    if record["source"] != source_hash(read_source(entry)):
        reasons.append("its text changed")
    elif record["source"] != source_hash(executed):
        reasons.append("the .ipynb was edited")
    now = module_hashes()
    changed = [name for name, value in record["modules"].items() if now.get(name) != value]
    if changed:
        reasons.append(f"{', '.join(changed)} changed")
    folder = entry.root / "figs"
    lost = [name for name, value in record["figures"].items() if file_hash(folder / f"{name}.png") != value]
    if lost:
        reasons.append(f"{', '.join(lost)} missing from figs or overwritten")
    return reasons


# --- generated pages ------------------------------------------------------------------------------------------------


def readme_table(course: Course) -> str:
    """The README's table of notebooks, in Markdown."""
    rows = ["| id | notebook | minutes | prerequisites | sources |", "|---|---|---|---|---|"]
    for e in course.entries:
        link = f"[{e.title}](notebooks/{e.file}.ipynb)"
        rows.append(f"| {e.id} | {link} | {e.minutes} | {', '.join(e.prerequisites)} | {'; '.join(e.sources)} |")
    return "\n".join(rows)


GALLERY = """\
# Figures

Made by `coursekit run` from the executed notebooks and notebooks/figures.yml. Below each title: what the figure shows,
what it corresponds to in the source texts, and its name. Click for full size.

*Corrected* means that the printed figure or what is said of it is wrong, *extended* that ours shows more; a figure
without a source is the course's own. The texts are Chertkov, *Mathematics of Generative AI*; Cao, *Stochastic Dynamics
and Machine Learning*; Miyamoto, *Machine Learning for Physicists*.

`make figs NB=01_02` draws the figures of notebook 01_02 anew. With `FORMAT=pdf` it also writes them as vector graphics
with embedded fonts, for LaTeX: `\\includegraphics{svd_bbp.pdf}`.
"""


def figure_index(course: Course) -> str:
    """figs/INDEX.md, the gallery: for every figure a thumbnail, its title, alt text, source and name."""
    lines = GALLERY.splitlines()
    for entry in course.entries:
        notebook = read_executed(entry)
        if notebook is None:
            continue
        lines += ["", f"## {entry.id} [{entry.title}](../notebooks/{entry.file}.ipynb)"]
        for name, alt in figures(notebook).items():
            caption = course.captions.get(name, Caption(name))
            title, alt, source = (html.escape(text) for text in (caption.title, alt, caption.source))
            # HTML, since Markdown has no image size; on a narrow screen the text goes below the image
            image = f'<img src="{name}.png" alt="{alt}" width="400" align="left" vspace="8" loading="lazy">'
            about = [f"<b>{title}</b>", alt, *([f"<i>{source}</i>"] if source else []), f"<code>{name}</code>"]
            lines += ["", f'<p><a href="{name}.png">{image}</a>', "<br>\n".join(about) + '</p><br clear="left">']
    return "\n".join(lines) + "\n"


def write_index(course: Course) -> None:
    """Bring figs/INDEX.md up to date."""
    write_atomically(course.root / "figs" / "INDEX.md", figure_index(course).encode())


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; leave it untouched if nothing changes."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if path.is_file() and path.read_bytes() == content:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            draft.write_bytes(content)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise CourseError(
            f"cannot write {path.name} in {path.parent} ({error.strerror}): make it a writable folder, "
            "or give --output-dir"
        ) from error
