"""The erratum boxes of the notebooks: quotations that begin with **Erratum** or **Errata**."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import nbformat

from coursekit.course.catalog import Entry

CHERTKOV, RECITATIONS, BEG_ROHU, CAO = TEXTS = (
    "Michael Chertkov, *Mathematics of Generative AI*",
    "Clark Miyamoto, *Machine Learning for Physicists: Recitation Notes*",
    "Clark Miyamoto, *Lecture Notes from Beg Rohu 2025*",
    "Yu Cao, *Stochastic Dynamics and Machine Learning*",
)

_BOX = re.compile(r"^> \*\*Errat(?:um|a)\b.*(?:\n>(?! \*\*Errat).*)*", re.MULTILINE)
_AUTHOR = re.compile(
    r"^(Chertkov|the book|book|Miyamoto's Beg Rohu notes|Miyamoto|Beg Rohu notes|notes|Cao)(?=[\s,]|$),? ?"
)


@dataclass(frozen=True)
class Erratum:
    """One box: which place of which text it is about, and what it says."""

    label: str
    notebook: Entry
    text: str
    """The source text, one of TEXTS."""
    place: str
    """Section, equation or figure of it, as in the box; may be empty."""
    body: str

    @property
    def order(self) -> tuple[int, ...]:
        """The first number of the place, or of the box: sorts by section."""
        number = re.search(r"\d+(?:\.\d+)*", self.place) or re.search(r"\d+(?:\.\d+)+", self.body)
        return tuple(int(part) for part in number.group().split(".")) if number else ()


def collect(entry: Entry, notebook: nbformat.NotebookNode) -> list[Erratum]:
    """All boxes of a notebook, in order."""
    quotes = [quote for cell in notebook.cells if cell.cell_type == "markdown" for quote in _BOX.findall(cell.source)]
    return [_parse(entry, quote, k) for k, quote in enumerate(quotes, 1)]


def as_admonitions(text: str, boxes: Iterator[Erratum]) -> str:
    """Replace the quotations in one cell's text by admonitions that can be linked to."""
    return _BOX.sub(lambda _: _admonition(next(boxes)), text)


def _admonition(box: Erratum) -> str:
    return f":::{{admonition}} Erratum: {reference(box)}\n:class: erratum\n:name: {box.label}\n\n{box.body}\n:::"


def reference(box: Erratum) -> str:
    """Who and where, in short: "Cao §3.4.2"."""
    short = {CHERTKOV: "Chertkov", RECITATIONS: "Miyamoto", BEG_ROHU: "Miyamoto, Beg Rohu notes", CAO: "Cao"}[box.text]
    return f"{short}, {box.place}" if box.place else short


def _parse(entry: Entry, quote: str, k: int) -> Erratum:
    text = re.sub(r"(?m)^> ?", "", quote)
    rest = re.sub(r"\A\*\*Errat(?:um|a)\.?\*\*\s*", "", text)
    if rest.startswith("("):
        end = _closing(rest)
        place, body = rest[1:end], rest[end + 1 :].lstrip(". ")
    else:
        place, _, body = rest.partition(":")
    return Erratum(
        label=f"erratum-{entry.id.replace('_', '-')}-{k}",
        notebook=entry,
        text=_text(place, entry),
        place=_AUTHOR.sub("", place),
        body=body.strip(),
    )


def _closing(text: str) -> int:
    """Where the parenthesis closes with which the text begins."""
    depth = 0
    for position, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return position
    raise ValueError(f"the parenthesis of this erratum does not close: {text[:80]}")


def _text(place: str, entry: Entry) -> str:
    """Which source text is meant, in a notebook's own short words."""
    if "Beg Rohu" in place or place.startswith("notes"):
        return BEG_ROHU
    if "Cao" in place:
        return CAO
    if "Miyamoto" in place:
        both = [source for source in entry.sources if source.startswith("Miyamoto")]
        return BEG_ROHU if both and all("Beg Rohu" in source for source in both) else RECITATIONS
    if "Chertkov" in place or "book" in place:
        return CHERTKOV
    raise ValueError(f"an erratum of notebook {entry.id} names no source text: ({place})")
