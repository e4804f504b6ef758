"""Draw which notebook builds on which: ``python -m book.prerequisites FOLDER`` writes FOLDER/prerequisites.svg."""

import re
import sys
import textwrap
from html import escape
from itertools import pairwise
from pathlib import Path
from statistics import mean

import networkx as nx
import numpy as np
from scipy.optimize import isotonic_regression

from coursekit.course import catalog
from coursekit.course.catalog import Course, Entry

BOX, LANE, ROW, HEIGHT = 110, 20, 108, 66  # widths of a box and of a passing arrow, distance of rows, height of a box
# one colour a chapter, light enough for black text, distinct for colour-blind readers too
COLOURS = {
    "01": "#e8e8e8",
    "02": "#fbe3b5",
    "03": "#f9cfb0",
    "04": "#cfe6f7",
    "05": "#cdebd9",
    "06": "#f5f0b8",
    "07": "#dcd3f0",
    "09": "#f6cfe0",
}
STYLE = """text { font: 12px system-ui, sans-serif; text-anchor: middle; fill: #111 }
text.id { font-weight: bold }
path { fill: none; stroke: #666; stroke-width: 1.2 }
path.head { fill: #666; stroke: none }"""


def required(entry: Entry) -> list[str]:
    """Ids of the notebooks among its prerequisites."""
    rows = [row for row in entry.prerequisites if row.startswith("notebook")]
    return re.findall(r"\d\d_\d\d[a-z]?", " ".join(rows))


def graph(course: Course) -> nx.DiGraph:
    """An arrow from each notebook to those that build on it; what follows from others is left out."""
    full = nx.DiGraph()
    full.add_nodes_from(entry.id for entry in course.entries)
    full.add_edges_from((need, entry.id) for entry in course.entries for need in required(entry))
    return nx.transitive_reduction(full)


def lanes(arrows: nx.DiGraph) -> tuple[nx.DiGraph, list[list]]:
    """The graph with a place in every row that an arrow crosses, (source, target, row), and the places by row."""
    generations = [sorted(row) for row in nx.topological_generations(arrows)]
    depth = {node: i for i, row in enumerate(generations) for node in row}
    crowd = [len(row) for row in generations]
    for leaf in sorted(node for node in arrows if not arrows[node]):  # where nothing follows, lower rows have room
        crowd[depth[leaf]] -= 1
        depth[leaf] = min(range(depth[leaf], len(crowd)), key=lambda i: crowd[i] + i)
        crowd[depth[leaf]] += 1
    split = nx.DiGraph()
    split.add_nodes_from(sorted(arrows))
    for source, target in sorted(arrows.edges):
        between = [(source, target, i) for i in range(depth[source] + 1, depth[target])]
        nx.add_path(split, [source, *between, target])
    rows: list[list] = [[] for _ in generations]
    for node in split:
        rows[depth[node] if isinstance(node, str) else node[2]].append(node)
    return split, rows


def crossings(split: nx.DiGraph, rows: list[list]) -> int:
    total = 0
    for upper, lower in pairwise(rows):
        ends = [(i, lower.index(target)) for i, node in enumerate(upper) for target in split[node]]
        total += sum((a - c) * (b - d) < 0 for i, (a, b) in enumerate(ends) for c, d in ends[:i])
    return total


def untangle(split: nx.DiGraph, rows: list[list]) -> list[list]:
    """Order each row by the mean place of its neighbours, down and up in turn; the best order found."""
    best = rows
    for sweep in range(24):
        down = sweep % 2 == 0
        rows = [list(row) for row in rows]
        for fixed, row in pairwise(rows if down else rows[::-1]):
            place = {node: i / len(fixed) for i, node in enumerate(fixed)}
            here = {node: i / len(row) for i, node in enumerate(row)}
            near = split.predecessors if down else split.successors
            row.sort(key=lambda node: mean([place[n] for n in near(node)] or [here[node]]))
        if crossings(split, rows) < crossings(split, best):
            best = rows
    return best


def width(place: str | tuple) -> int:
    return BOX if isinstance(place, str) else LANE


def positions(split: nx.DiGraph, rows: list[list]) -> dict:
    """The centre of each place: as near to its neighbours as the order and the width of the boxes allow."""
    widths = [np.array([width(node) for node in row]) for row in rows]
    offsets = [np.cumsum(w) - w / 2 for w in widths]
    room = max(w.sum() for w in widths)
    xs = {node: x for row, offset in zip(rows, offsets, strict=True) for node, x in zip(row, offset, strict=True)}
    for _ in range(100):
        for row, w, offset in zip(rows, widths, offsets, strict=True):
            near = [[xs[n] for n in nx.all_neighbors(split, node)] or [xs[node]] for node in row]
            stiff = [1 if isinstance(node, str) else 4 for node in row]  # a long arrow runs straight
            shift = isotonic_regression([mean(places) for places in near] - offset, weights=stiff).x
            xs |= zip(row, np.clip(shift, 0, room - w.sum()) + offset, strict=True)
    return {node: (xs[node], i * ROW + HEIGHT / 2 + 10) for i, row in enumerate(rows) for node in row}


def arrow(points: list[tuple[float, float]]) -> str:
    """A line from box to box with a head, upright where it passes between boxes."""
    (x, y), *rest = points
    path = ""
    for next_x, next_y in rest:
        leave, reach = y + HEIGHT / 2, next_y - HEIGHT / 2 - 5
        half = (leave + reach) / 2
        path += f"{'L' if path else 'M'}{x:.0f} {leave:.0f} C{x:.0f} {half:.0f} {next_x:.0f} {half:.0f} "
        path += f"{next_x:.0f} {reach:.0f} "
        x, y = next_x, next_y
    return f'<path d="{path.rstrip()}"/><path class="head" d="M{x - 4:.0f} {y - HEIGHT / 2 - 6:.0f} h8 l-4 6 z"/>'


def box(entry: Entry, x: float, y: float) -> str:
    name = re.sub(r" (?=[IV]+$)", "\N{NO-BREAK SPACE}", entry.title.partition(":")[0])
    title = textwrap.wrap(name, 16)
    top = y - 14 * len(title) / 2 + 4
    lines = "".join(f'<text x="{x:.0f}" y="{top + 14 * (i + 1):.0f}">{escape(t)}</text>' for i, t in enumerate(title))
    corner = f'x="{x - BOX / 2 + 3:.0f}" y="{y - HEIGHT / 2:.0f}"'
    rectangle = f'<rect {corner} width="{BOX - 6}" height="{HEIGHT}" rx="6" fill="{COLOURS[entry.id[:2]]}"/>'
    return f'{rectangle}<text class="id" x="{x:.0f}" y="{top:.0f}">{entry.id}</text>{lines}'


def drawing(course: Course) -> str:
    """The prerequisites as SVG."""
    arrows = graph(course)
    split, rows = lanes(arrows)
    where = positions(split, untangle(split, rows))
    right = max(x + width(node) / 2 for node, (x, _) in where.items()) + 10
    height = ROW * (len(rows) - 1) + HEIGHT + 20
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {right:.0f} {height:.0f}" width="{right:.0f}">',
        f"<style>{STYLE}</style>",
        '<rect width="100%" height="100%" fill="#fff"/>',
    ]
    for source, target in sorted(arrows.edges):
        between = [node for node in split if node[:2] == (source, target)]
        line = arrow([where[node] for node in (source, *between, target)])
        lines.append(f'<g data-from="{source}" data-to="{target}">{line}</g>')
    lines += [box(entry, *where[entry.id]) for entry in course.entries]
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    (Path(sys.argv[1]) / "prerequisites.svg").write_text(drawing(catalog.open_course()), encoding="utf-8")
