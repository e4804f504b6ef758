"""From an executed notebook to a page of the web edition: cells in, cells out."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html import escape
from itertools import count
from pathlib import Path

import nbformat
from PIL import Image

from book import errata
from coursekit.course.catalog import Entry

WORDS_A_MINUTE = 200
# as in course.yml; the longer name first
SOURCES = {
    "Chertkov": errata.CHERTKOV,
    "Miyamoto, Beg Rohu notes,": errata.BEG_ROHU,
    "Miyamoto": errata.RECITATIONS,
    "Cao": errata.CAO,
}

# Code, mathematics, links and tags, in which no word of the text is to be changed
_VERBATIM = re.compile(r"```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$]*\$|\[[^\]]*\]\([^)]*\)|</?[a-z][^>$]*>", re.DOTALL)
_ID = re.compile(r"(?<![\w/])(?:notebook )?(\d\d_\d\d[a-z]?)(?!\w)")
_SOLUTION = re.compile(r"(?m)^( *)<details><summary>(.*?)</summary>(.*?)</details>", re.DOTALL)


@dataclass(frozen=True)
class Section:
    """A heading of a notebook page, with the label by which other pages refer to it."""

    label: str
    title: str


def outside_verbatim(change: Callable[[str], str], text: str) -> str:
    """Apply `change` to the prose of a Markdown text, leaving code, mathematics, links and tags as they are."""
    pieces, end = [], 0
    for verbatim in _VERBATIM.finditer(text):
        pieces += [change(text[end : verbatim.start()]), verbatim.group()]
        end = verbatim.end()
    return "".join([*pieces, change(text[end:])])


def link_notebooks(text: str, entries: Mapping[str, Entry], here: Entry | None = None) -> str:
    """Make each notebook that the prose names, "notebook 07_04" or "07_04", a link to its page."""

    def link(match: re.Match) -> str:
        target = entries.get(match[1])
        known = target is not None and target is not here
        return f"[{match.group()}](/notebooks/{target.file}.ipynb)" if known else match.group()

    return outside_verbatim(lambda prose: _ID.sub(link, prose), text)


def fold_solutions(text: str) -> str:
    """Give the content of ``<details>`` lines of its own, or MyST takes its formulas for HTML.

    What stands on one line with the tag JupyterLab shows as HTML, in which * and _ are no marks: they are escaped.
    """

    def unfold(match: re.Match) -> str:
        indent, summary, content = match.groups()
        if "\n\n" not in content:
            content = outside_verbatim(lambda prose: re.sub(r"[\\*_`~\[\]]", r"\\\g<0>", prose), content)
        lines = ("", f"<details><summary>{summary}</summary>", "", content.strip(), "", "</details>", "")
        return "\n".join(indent + line if line else "" for line in lines)

    return _SOLUTION.sub(unfold, text)


def figure_id(name: str) -> str:
    """The anchor of a figure on its page."""
    return "figure-" + name.split("/")[1].replace("_", "-")


def image_html(name: str, alt: str, width: int, figures: Path, up: str) -> str:
    """A figure at its natural ratio, with a link to the full-size file."""
    with Image.open(figures / f"{name}.png") as image:
        height = round(width * image.height / image.width)
    return (
        f'<a class="figure" id="{figure_id(name)}" href="{up}figs/{name}.png">'
        f'<img src="{up}figs/{name}.webp" alt="{escape(alt)}" '
        f'width="{width}" height="{height}" loading="lazy" decoding="async"></a>'
    )


def show_output(output: nbformat.NotebookNode, figures: Path, up: str) -> nbformat.NotebookNode:
    """A figure's thumbnail becomes its file in figs/; a kernel's source, highlighted for paper, becomes plain code."""
    data = output.get("data", {})
    if "image/png" in data:
        meta = output.metadata["image/png"]
        data = {"text/html": image_html(meta["figure"], meta["alt"], meta["width"], figures, up)}
    elif "text/html" in data:
        data = {"text/markdown": f"```python\n{data['text/plain'].strip()}\n```"}
    else:
        return output
    return nbformat.v4.new_output("display_data", data)


def reading_minutes(notebook: nbformat.NotebookNode) -> int:
    """Minutes to read it: the words of the text (a formula is one), and ten words a line of code."""
    words = 0
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            words += len(re.sub(r"\$\$.*?\$\$|\$[^$]*\$", "formula", cell.source, flags=re.DOTALL).split())
        else:
            words += 10 * sum(bool(line.strip()) for line in cell.source.splitlines())
    return max(1, round(words / WORDS_A_MINUTE))


def full_source(reference: str) -> str:
    """ "Cao §1.4" with the author's and the text's full names."""
    for short, full in SOURCES.items():
        if reference.startswith(short):
            return f"{full}, {reference.removeprefix(short).strip()}"
    raise ValueError(f"{reference!r} names none of the source texts {', '.join(SOURCES)}")


def merged_sources(sources: list[str]) -> list[str]:
    """The sources of a row of course.yml, one a text: a comma within the sections of a text splits its item."""
    merged: list[str] = []
    for source in sources:
        if source.startswith("§") and merged:
            merged[-1] += f", {source}"
        else:
            merged.append(source)
    return merged


def facts(entry: Entry, entries: Mapping[str, Entry], minutes: int, kernels: list[str]) -> str:
    """The box under the title, as a MyST field list."""
    download = f'<a href="{entry.executed.name}" download>{entry.executed.name}</a>'
    rows = {
        "Time": f"{entry.minutes} minutes in class, about {minutes} to read",
        "You need": link_notebooks(", ".join(entry.prerequisites), entries) or "nothing but school mathematics",
        "Sources": "; ".join(full_source(source) for source in merged_sources(entry.sources)),
        "Kernels": ", ".join(f"{{py:obj}}`{name.removeprefix('coursekit.')} <{name}>`" for name in kernels),
        "Notebook": f"{download}, executed",
    }
    fields = "\n".join(f":{name}: {text}" for name, text in rows.items() if text)
    return f"::::{{div}} facts\n\n{fields}\n::::"


def sections(entry: Entry, notebook: nbformat.NotebookNode) -> list[Section]:
    """For each cell the section that it ends in."""
    label = f"nb-{entry.id.replace('_', '-')}"
    found, current, number = [], Section(label, entry.title), 0
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for title in re.findall(r"(?m)^## (.+)$", cell.source):
                number += 1
                current = Section(f"{label}-{number}", title)
        found.append(current)
    return found


def page(
    entry: Entry,
    notebook: nbformat.NotebookNode,
    entries: Mapping[str, Entry],
    kernels: list[str],
    figures: Path,
) -> nbformat.NotebookNode:
    """The notebook as a source of the web edition."""
    up = "../" * (entry.file.count("/") + 1)
    box = facts(entry, entries, reading_minutes(notebook), kernels)
    label = f"nb-{entry.id.replace('_', '-')}"
    labels = (f"{label}-{k}" for k in count(1))
    boxes = iter(errata.collect(entry, notebook))
    cells = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            text = errata.as_admonitions(cell.source, boxes)
            text = link_notebooks(fold_solutions(text), entries, entry)
            text = re.sub(r"(?m)^## ", lambda _: f"({next(labels)})=\n## ", text)
            text = re.sub(r"\A# (.+)", lambda m: f"({label})=\n# {entry.id} {m[1]}\n\n{box}\n", text)
            cells.append(nbformat.v4.new_markdown_cell(text, id=cell.id))
        else:
            outputs = [show_output(output, figures, up) for output in cell.outputs]
            cells.append(nbformat.v4.new_code_cell(cell.source, id=cell.id, outputs=outputs, metadata=cell.metadata))
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": notebook.metadata.kernelspec})
