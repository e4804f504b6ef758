"""Write what Sphinx makes the web edition of: ``python -m book.stage``.

build/book/source is what Sphinx reads, build/book/extra what the site serves as it is: the figures and the executed
notebooks. Both are brought up to date file by file, so that Sphinx reads again only what changed.
"""

import ast
import json
import re
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from html import escape
from itertools import groupby
from pathlib import Path

import nbformat
from PIL import Image

from book import errata, pages, uses
from coursekit.course import catalog
from coursekit.course.catalog import Caption, Course, Entry
from coursekit.course.errors import CourseError

FRONT = ("teach", "exercises")
THUMBNAIL = 560  # pixels: twice the width at which galleries show them

# The modules by field, in the order of the course
FIELDS = {
    "Linear algebra": ["linalg"],
    "Calculus": ["autodiff", "ode"],
    "Optimization": ["regression", "optim"],
    "Neural networks": ["nn", "training", "shallow", "landscape", "neural_ode"],
    "Probability": ["distributions", "empirical", "flows"],
    "Information": ["information", "transport"],
    "Stochastic processes": ["sampling", "sde", "mcmc"],
    "Energy-based models": ["ising", "rbm"],
    "Synthesis": ["diffusion", "interpolants"],
    "Services": ["claims", "data", "plotting", "random", "progress", "course"],
}
SHOWCASE = (
    "01_linear_algebra/svd_bbp",
    "03_optimization/opt_rotation",
    "04_neural_networks/node_spiral",
    "05_probability/flow_moons",
    "06_information/transport_plans",
    "07_stochastic_processes/langevin_paths",
    "07_stochastic_processes/langevin_arrhenius",
    "07_stochastic_processes/mcmc_banana",
    "07_stochastic_processes/spins_pictures",
    "09_synthesis/score_there_and_back",
    "09_synthesis/score_field",
    "09_synthesis/digits_samples",
)
SERVICES = tuple(f"coursekit.{module}." for module in FIELDS["Services"])


def chapter(entry: Entry) -> str:
    """ "Linear algebra" for a notebook in 01_linear_algebra."""
    return entry.file.split("/")[0].split("_", 1)[1].replace("_", " ").capitalize()


def by_chapter(entries: list[Entry]) -> dict[str, list[Entry]]:
    return {name: list(group) for name, group in groupby(entries, chapter)}


# --- generated parts of pages ---------------------------------------------------------------------------------------


def navigation(entries: list[Entry], front: list[str]) -> str:
    """The table of contents in the side bar."""
    parts = {"The course": front}
    parts |= {name: [f"notebooks/{e.file}" for e in group] for name, group in by_chapter(entries).items()}
    parts["The library"] = ["All modules <api/index>"]
    return "\n\n".join(
        f"```{{toctree}}\n:hidden:\n:caption: {caption}\n\n" + "\n".join(documents) + "\n```"
        for caption, documents in parts.items()
    )


def contents(entries: list[Entry]) -> str:
    """The table of notebooks by chapter."""
    rows = ["| | notebook | minutes | you need |", "|---|---|---|---|"]
    by_id = {entry.id: entry for entry in entries}
    for name, group in by_chapter(entries).items():
        rows.append(f"| | **{name}** | | |")
        for e in group:
            needs = pages.link_notebooks(", ".join(e.prerequisites), by_id)
            rows.append(f"| {e.id} | [{e.title}](/notebooks/{e.file}.ipynb) | {e.minutes} | {needs} |")
    return "\n".join(rows)


def thumbnail(name: str, alt: str, caption: Caption, href: str, thumbnails: Path) -> str:
    """A small figure with its title and the source's figure that it answers to, all one link."""
    with Image.open(thumbnails / f"{name}.webp") as image:
        width, height = image.size
    source = f"<small>{escape(caption.source)}</small>" if caption.source else ""
    return (
        f'<a class="thumbnail" href="{href}"><img src="thumbnails/{name}.webp" alt="{escape(alt)}" '
        f'width="{width}" height="{height}" loading="lazy" decoding="async">'
        f"<span>{escape(caption.title)}</span>{source}</a>"
    )


def gallery(course: Course, notebooks: Mapping[str, nbformat.NotebookNode], thumbnails: Path) -> str:
    """All figures by notebook."""
    total = sum(len(catalog.figures(notebook)) for notebook in notebooks.values())
    blocks = [
        "# Gallery",
        f"All {total} figures of the course. Each leads to the place where a notebook draws it and states, as executed "
        "claims, what it shows.",
    ]
    for entry in course.entries:
        cards = [
            thumbnail(name, alt, course.captions[name], figure_page(entry, name), thumbnails)
            for name, alt in catalog.figures(notebooks[entry.id]).items()
        ]
        blocks += [f"## {entry.id} {entry.title}", "\n".join(['<div class="gallery">', *cards, "</div>"])]
    return "\n\n".join(blocks)


def showcase(course: Course, notebooks: Mapping[str, nbformat.NotebookNode], thumbnails: Path) -> str:
    """The figures of the landing page."""
    cards = []
    for entry in course.entries:
        for name, alt in catalog.figures(notebooks[entry.id]).items():
            if name in SHOWCASE:
                caption = Caption(course.captions[name].title)
                cards.append(thumbnail(name, alt, caption, figure_page(entry, name), thumbnails))
    if len(cards) != len(SHOWCASE):
        raise CourseError("SHOWCASE of book/stage.py names a figure that no notebook draws")
    return "\n".join(['<div class="gallery">', *cards, "</div>"])


def assignments(exercises: Path) -> str:
    """The list of assignments, with their points and exercises."""
    rows = []
    for path in sorted(exercises.glob("[0-9]*/*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
        title = re.findall(r"(?m)^# Assignment: (.+)$", text)[0]
        names = re.findall(r"(?m)^## \d+\. (.+)$", text)
        points = sum(cell.metadata.nbgrader.get("points", 0) for cell in cells)
        file = path.relative_to(exercises).with_suffix("").as_posix()
        rows.append(f"- **{title[:1].upper() + title[1:]}** (`{file}`, {points} points): {'; '.join(names)}")
    return "\n".join(rows)


def count_claims(notebook: nbformat.NotebookNode) -> int:
    """Lines with ✓ in the outputs."""
    texts = (output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    return sum(text.count("✓ ") for text in texts)


def fill(template: str, parts: Mapping[str, str]) -> str:
    """Put each part in the place of its comment, ``<!-- name -->``; KeyError if there is no such part."""
    return re.sub(r"<!-- (\w+) -->", lambda match: parts[match[1]], template)


def summary(package: Path, module: str) -> str:
    """The first sentence of a module's docstring, read without importing it."""
    path = package / f"{module}.py"
    text = (path if path.is_file() else package / module / "__init__.py").read_text(encoding="utf-8")
    paragraph = (ast.get_docstring(ast.parse(text)) or "").split("\n\n")[0]
    return " ".join(paragraph.split())


def figure_page(entry: Entry, name: str) -> str:
    return f"notebooks/{entry.file}.html#{pages.figure_id(name)}"


def errata_page(boxes: list[errata.Erratum]) -> str:
    """All erratum boxes by source text and section."""
    blocks = [
        "# Errata",
        f"{len(boxes)} places where a source text is wrong or misleads, as the notebooks meet them: what is printed, "
        "what is right, and the check. Each box leads to its notebook, where the check is executed.",
    ]
    for text in errata.TEXTS:
        group = sorted((box for box in boxes if box.text == text), key=lambda box: box.order)
        blocks += [f"## {text}", f"{len(group)} boxes." if len(group) != 1 else "One box."]
        for box in group:
            place = box.place[:1].upper() + box.place[1:] or "Several places"
            link = f"[{box.notebook.id} {box.notebook.title}](#{box.label})"
            blocks.append(f":::{{admonition}} {place}\n:class: erratum\n\n{box.body}\n\nIn {link}.\n:::")
    return "\n\n".join(blocks)


def module_page(module: str) -> str:
    title = f"coursekit.{module}"
    return f"{title}\n{'=' * len(title)}\n\n.. automodule:: {title}\n   :members:\n   :member-order: bysource\n"


def api_index(summaries: Mapping[str, str]) -> str:
    """The modules by field, each with the first line of its docstring."""
    blocks = [
        "# The library",
        "{ref}`All names in one list <genindex>`.",
        "All algorithms of the course are functions on arrays in one package, `coursekit`; the notebooks never "
        're-implement them. Shapes stand in the signatures: `Float[np.ndarray, "n d"]` is an array of n rows and d '
        "columns. Samples are rows, randomness comes from `rng`, bad input raises `ValueError`. Modules load on first "
        "use: after `import coursekit as ck` all of them are at hand.",
        "```{toctree}\n:hidden:\n\n" + "\n".join(m for group in FIELDS.values() for m in group) + "\n```",
    ]
    for field, modules in FIELDS.items():
        rows = [f"- {{py:mod}}`coursekit.{module}`: {summaries[module]}" for module in modules]
        blocks += [f"## {field}", "\n".join(rows)]
    warning = "```{eval-rst}\n.. autoexception:: coursekit.ConvergenceWarning\n```"
    return "\n\n".join([*blocks, "## Of the package itself", warning])


# --- writing --------------------------------------------------------------------------------------------------------


class Tree:
    """A folder that holds, in the end, exactly the files written in this run."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.kept: set[Path] = set()

    def write(self, name: str, text: str) -> None:
        catalog.write_atomically(self._keep(name), text.encode())

    def copy(self, name: str, origin: Path) -> None:
        target = self._keep(name)
        if _older(target, origin):
            shutil.copyfile(origin, target)

    def image(self, name: str, origin: Path, width: int | None = None) -> None:
        """A PNG as WebP: at full size in 256 colours and otherwise without loss, or at a smaller width."""
        target = self._keep(name)
        if _older(target, origin):
            with Image.open(origin) as image:
                colours = image.convert("RGB")
                if width is None:
                    palette = colours.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
                    palette.convert("RGB").save(target, "WEBP", lossless=True, quality=60)
                else:
                    colours.thumbnail((width, image.height))
                    colours.save(target, "WEBP", quality=75)

    def clean(self) -> None:
        for path in self.root.rglob("*"):
            if path.is_file() and path not in self.kept:
                path.unlink()

    def _keep(self, name: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self.kept.add(path)
        return path


def _older(target: Path, origin: Path) -> bool:
    return not target.is_file() or target.stat().st_mtime <= origin.stat().st_mtime


def stage(course: Course, source: Path, extra: Path) -> None:
    """Write both trees."""
    root, entries = course.root, {entry.id: entry for entry in course.entries}
    notebooks = {}
    for entry in course.entries:
        notebook = catalog.read_executed(entry)
        if notebook is None:
            raise CourseError(f"notebook {entry.id} has not been executed: `coursekit run {entry.id}`")
        notebooks[entry.id] = notebook
    sources, site = Tree(source), Tree(extra)

    for entry in course.entries:
        site.copy(f"notebooks/{entry.file}.ipynb", entry.executed)
    figures = [name for notebook in notebooks.values() for name in catalog.figures(notebook)]

    def publish(name: str) -> None:
        figure = root / "figs" / f"{name}.png"
        site.copy(f"figs/{name}.png", figure)
        site.image(f"figs/{name}.webp", figure)
        site.image(f"thumbnails/{name}.webp", figure, THUMBNAIL)

    with ThreadPoolExecutor() as pool:  # Pillow releases the interpreter's lock
        list(pool.map(publish, figures))

    modules, exported = uses.public_names(root / "coursekit" / "__init__.pyi")
    if set(modules) != {module for group in FIELDS.values() for module in group}:
        raise CourseError("FIELDS of book/stage.py does not name the modules of coursekit/__init__.pyi")
    used_in: dict[str, list[dict[str, str]]] = {}
    names: dict[str, dict[str, str]] = {}
    boxes = []
    for entry in course.entries:
        notebook = notebooks[entry.id]
        where = pages.sections(entry, notebook)
        used = uses.used_kernels(notebook, exported)
        names[f"notebooks/{entry.file}"] = uses.imported_names([c for c in notebook.cells if c.cell_type == "code"])
        for kernel, cell in used.items():
            place = where[cell]
            used_in.setdefault(kernel, []).append({"id": entry.id, "label": place.label, "section": place.title})
        kernels = [kernel for kernel in used if not kernel.startswith(SERVICES)]
        page = pages.page(entry, notebook, entries, kernels, root / "figs")
        sources.write(f"notebooks/{entry.file}.ipynb", nbformat.writes(page))
        boxes += errata.collect(entry, notebook)
    n_claims = sum(count_claims(notebook) for notebook in notebooks.values())
    documents = {entry.id: f"notebooks/{entry.file}" for entry in course.entries}
    table = {"documents": documents, "used_in": used_in, "names": names, "exported": exported}
    sources.write("uses.json", json.dumps(table, indent=1))

    thumbnails = extra / "thumbnails"
    sources.write("errata.md", errata_page(boxes))
    sources.write("gallery.md", gallery(course, notebooks, thumbnails))
    sources.write("api/index.md", api_index({module: summary(root / "coursekit", module) for module in modules}))
    for module in modules:
        sources.write(f"api/{module}.rst", module_page(module))
    for name in FRONT:
        text = (root / "book" / f"{name}.md").read_text(encoding="utf-8")
        text = fill(text, {"assignments": assignments(root / "exercises")})
        sources.write(f"{name}.md", pages.link_notebooks(text, entries))
    for drawing in (root / "book").glob("*.svg"):
        sources.copy(drawing.name, drawing)
    parts = {
        "contents": contents(course.entries),
        "figures": showcase(course, notebooks, thumbnails),
        "navigation": navigation(course.entries, [*FRONT, "gallery", "errata"]),
        "counts": f"{len(course.entries)} notebooks, {len(figures)} figures, {n_claims} claims, {len(boxes)} errata",
    }
    sources.write("index.md", fill((root / "book" / "index.md").read_text(encoding="utf-8"), parts))
    sources.clean()
    site.clean()


if __name__ == "__main__":
    course = catalog.open_course(Path(__file__).parent)
    stage(course, course.root / "build" / "book" / "source", course.root / "build" / "book" / "extra")
