"""A Sphinx extension: numpydoc as the kernels write it, and links both ways between kernels and notebooks."""

import json
import re
from collections.abc import Callable
from pathlib import Path

from sphinx.application import Sphinx

from book.uses import full_name

_NOTEBOOK = re.compile(r"\b\d\d_\d\d[a-z]?\b")
# ``optim.adam`` as Pygments marks it up, but not in ``self.optim.adam``
_SPAN, _DOT = '<span class="n">{}</span>', '<span class="o">.</span>'
_CHAIN = re.compile(
    r'(?<!<span class="o">\.</span>)<span class="n">\w+</span>(?:<span class="o">\.</span><span class="n">\w+</span>)*'
)
MANY = 6  # above this many notebooks only ids are listed


def escape(line: str) -> str:
    """Formulas in docstrings are plain text: *, | and a trailing _ are no marks in them."""
    pieces = re.split(r"(``.*?``|`[^`]*`)", line)
    pieces[::2] = [re.sub(r"[\\*|]|_(?!\w)", r"\\\g<0>", piece) for piece in pieces[::2]]
    return "".join(pieces)


def is_header(lines: list[str], index: int) -> bool:
    return index + 1 < len(lines) and bool(re.fullmatch(r"-{3,}", lines[index + 1])) and bool(lines[index].strip())


def split_provenance(text: str) -> tuple[str, dict[str, str]]:
    """The docstring without its ``Source: …`` and ``Taught in: …``, and these two texts."""
    found = {}
    for name in ("Source", "Taught in"):
        if match := re.search(rf"(?:^|(?<=\s)){name}: (.*?)(?=\s+Taught in: |\n\s*\n|\Z)", text, re.DOTALL):
            found[name] = " ".join(match[1].split()).rstrip(".")
            text = (text[: match.start()].rstrip(" ") + text[match.end() :]).rstrip()
    return text, found


def end_sections(lines: list[str]) -> list[str]:
    """Two empty lines end a numpydoc section; the kernels end theirs by one and an unindented sentence."""
    result, in_section = [], False
    for index, line in enumerate(lines):
        if is_header(lines, index):
            in_section = True
        elif in_section and line and not line[0].isspace() and not lines[index - 1].strip():
            result.append("")
            in_section = False
        result.append(line)
    return result


def link_code(body: str, resolve: Callable[[str], str | None]) -> str:
    """Make names in a page's highlighted code links, where `resolve` gives the address of ``optim.adam`` or so."""

    def link(match: re.Match) -> str:
        spans = re.findall(r'<span class="n">(\w+)</span>', match.group())
        for k in range(len(spans), 0, -1):
            if address := resolve(".".join(spans[:k])):
                linked, rest = _DOT.join(map(_SPAN.format, spans[:k])), map(_SPAN.format, spans[k:])
                return _DOT.join([f'<a class="kernel" href="{address}">{linked}</a>', *rest])
        return match.group()

    return _CHAIN.sub(link, body)


class Links:
    """What staging found out about kernels and notebooks."""

    def __init__(self, table: Path) -> None:
        data = json.loads(table.read_text(encoding="utf-8"))
        self.table = table
        self.documents: dict[str, str] = data["documents"]
        self.used_in: dict[str, list[dict[str, str]]] = data["used_in"]
        self.names: dict[str, dict[str, str]] = data["names"]
        self.exported: dict[str, str] = data["exported"]

    def ids(self, text: str) -> str:
        """Each notebook id in a text as a link to its page."""

        def link(match: re.Match) -> str:
            document = self.documents.get(match.group())
            return f":doc:`{match.group()} </{document}>`" if document else match.group()

        return _NOTEBOOK.sub(link, text)

    def uses(self, name: str) -> str:
        """The notebooks that use a kernel, each a link to the section of its first use."""
        places = self.used_in.get(name, [])
        links = []
        for place in places:
            text = place["id"] if len(places) > MANY else f"{place['id']} {place['section']}"
            text = re.sub(r"[<`$]", "", text)
            links.append(f":ref:`{text} <{place['label']}>`")
        return ", ".join(links)

    def docstring(self, app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
        text, fields = split_provenance("\n".join(lines).strip())
        prepared = end_sections(text.split("\n"))
        prepared = [line if is_header(prepared, k) else escape(line) for k, line in enumerate(prepared)]
        fields = {key: self.ids(escape(value)) for key, value in fields.items()}
        if uses := self.uses(name):
            fields["Used in"] = uses
            app.env.note_dependency(str(self.table))
        lines[:] = [*prepared, "", "", *(f":{key}: {value}" for key, value in fields.items()), ""]

    def code(self, app: Sphinx, pagename: str, templatename: str, context: dict, doctree: object) -> None:
        if pagename not in self.names:
            return
        objects = app.env.get_domain("py").objects
        names = self.names[pagename]

        def resolve(dotted: str) -> str | None:
            entry = objects.get(full_name(dotted, names, self.exported) or "")
            if entry is None or entry.objtype == "module":
                return None
            return f"{app.builder.get_relative_uri(pagename, entry.docname)}#{entry.node_id}"

        context["body"] = link_code(context["body"], resolve)


def setup(app: Sphinx) -> dict:
    """Docstrings ahead of napoleon, whose priority is the default 500."""

    def connect(app: Sphinx) -> None:
        links = Links(app.srcdir / "uses.json")
        app.connect("autodoc-process-docstring", links.docstring, priority=400)
        app.connect("html-page-context", links.code)

    app.connect("builder-inited", connect)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
