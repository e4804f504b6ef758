"""What README, CONTRIBUTING and "Teach with it" say is so: names, numbers, plans, links."""

import re
import xml.etree.ElementTree as ElementTree
from itertools import pairwise
from pathlib import Path

import networkx as nx
import pytest

from book import prerequisites
from coursekit.course import catalog
from coursekit.course.cli import main

ROOT = Path(__file__).parents[1]
PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "CONTRIBUTING.md", "book/teach.md")}
COURSE = catalog.open_course(ROOT)
MINUTES = {entry.id: entry.minutes for entry in COURSE.entries}
NEEDS = {entry.id: prerequisites.required(entry) for entry in COURSE.entries}
ID = r"\b\d\d_\d\d[a-z]?\b"


@pytest.fixture(params=PAGES)
def text(request):
    return PAGES[request.param]


@pytest.fixture(scope="module")
def executed():
    return [catalog.read_executed(entry) for entry in COURSE.entries]


@pytest.fixture(scope="module")
def outputs(executed):
    return "".join(out.get("text", "") for nb in executed for cell in nb.cells for out in cell.get("outputs", []))


def code(text):
    """What stands in code, inline or displayed."""
    return "\n".join(re.findall(r"```.*?```|`[^`\n]+`", text, re.DOTALL))


def test_notebooks_exist(text):
    assert set(re.findall(ID, text)) <= set(MINUTES)


def test_make_targets_exist(text):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    variables = set(re.findall(r"^([A-Z]+) \?=", makefile, re.MULTILINE))
    for target, rest in re.findall(r"(?m)(?:`|^)make\b(?: +([a-z][a-z-]*))?([^`\n#]*)", code(text)):
        assert not target or target in targets, target
        assert set(re.findall(r"([A-Z]+)=", rest)) <= variables, rest


def test_commands_and_options_exist(text):
    for name, rest in re.findall(r"(?:`|^)coursekit ([a-z]+)([^`\n#]*)", code(text), re.MULTILINE):
        assert name in main.commands, name
        known = {option for parameter in main.commands[name].params for option in parameter.opts}
        assert set(re.findall(r"(?<!\S)--?[a-z][a-z-]*", rest)) <= known, rest


def test_parameters_exist(text):
    for notebook_id, name in re.findall(rf"coursekit run ({ID}) -p (\w+)", text):
        if name != "names":  # stands for one that does not exist
            assert re.search(rf"^{name} = ", COURSE.find(notebook_id).source.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("name", PAGES)
def test_links_and_pictures_lead_somewhere(name):
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)|src=\"([^\"]+)\"", PAGES[name])
    for target in filter(None, (target for pair in targets for target in pair)):
        assert ((ROOT / name).parent / target).is_file(), target


@pytest.mark.parametrize("name", PAGES)
def test_named_files_exist(name):
    # a placeholder has < or capital letters; what make makes need not be there
    for path in re.findall(r"`((?:[a-z_.]+/)+[\w.]*|[\w.]+\.(?:yml|toml|txt|cff))`", PAGES[name]):
        if not path.startswith(("build/", "out/", ".venv", "submitted/")):
            assert (ROOT / path).exists(), path


class TestReadme:
    TEXT = PAGES["README.md"]

    def test_counts(self, executed, outputs):
        texts = [entry.source.read_text(encoding="utf-8") for entry in COURSE.entries]
        true = {
            "claims": outputs.count("✓ "),
            "figures": sum(len(catalog.figures(notebook)) for notebook in executed),
            "so far": sum(len(re.findall(r"^> \*\*Errat", text, re.MULTILINE)) for text in texts),  # errata
        }
        assert f"A course in {len(COURSE.entries)} notebooks" in self.TEXT
        found = re.findall(r"(?i)over (\d[\d ]*) (claims|figures|so far)", self.TEXT)
        stated = {noun: int(number.replace(" ", "")) for number, noun in found}
        assert stated.keys() == true.keys()
        for noun, number in stated.items():
            assert number < true[noun] < 1.1 * number, (noun, true[noun])

    def test_quoted_claims_are_those_of_the_notebook(self, outputs):
        quoted = re.findall(r"^✓ .*$", self.TEXT, re.MULTILINE)
        assert quoted and set(quoted) <= set(outputs.splitlines())

    def test_pictures_are_described(self):
        pictures = re.findall(r"<img [^>]*>", self.TEXT)
        assert pictures and all(re.search(r' alt="[^"]{40,}\."', picture) for picture in pictures)


class TestTeach:
    TEXT = PAGES["book/teach.md"]
    PLANS = re.findall(r"### ([^\n]*classes, \d+ minutes)\n(.*?)(?=\n##)", TEXT, re.DOTALL)

    def test_total(self):
        assert f"The course is {len(MINUTES)} notebooks, {sum(MINUTES.values())} minutes" in self.TEXT

    def test_there_are_plans(self):
        assert len(self.PLANS) >= 3

    @pytest.mark.parametrize(("title", "text"), PLANS, ids=[title.split(":")[0] for title, _ in PLANS])
    def test_plan(self, title, text):
        rows = [(re.findall(ID, ids), int(m)) for ids, m in re.findall(r"^\| \d+ \| (.*) \| (\d+) \|$", text, re.M)]
        done = []
        for ids, minutes in rows:
            assert sum(MINUTES[notebook_id] for notebook_id in ids) == minutes, ids
            for notebook_id in ids:
                assert set(NEEDS[notebook_id]) <= set(done), notebook_id
                done.append(notebook_id)
        assert len(done) == len(set(done))
        assert title.endswith(f": {len(done)} classes, {sum(MINUTES[i] for i in done)} minutes")
        if left_out := re.search(r"All but (.*)", text):
            assert set(re.findall(ID, left_out.group())) == set(MINUTES) - set(done)

    def test_guest_lectures_need_no_other_notebook(self):
        lectures = self.TEXT.partition("### A guest lecture")[2].partition("\n##")[0]
        assert set(re.findall(ID, lectures)) == {i for i, needs in NEEDS.items() if not needs}


class TestPrerequisites:
    def test_every_prerequisite_is_a_notebook_that_comes_before(self):
        order = list(MINUTES)
        for entry in COURSE.entries:
            named = [row for row in entry.prerequisites if re.search(ID, row)]
            assert all(re.fullmatch(rf"notebooks? {ID}(?:(?:, | and ){ID})*", row) for row in named), entry.id
            assert all(order.index(need) < order.index(entry.id) for need in NEEDS[entry.id])

    def test_drawing_shows_every_notebook_and_every_need(self):
        svg = ElementTree.fromstring(prerequisites.drawing(COURSE))
        space = {"": "http://www.w3.org/2000/svg"}
        assert {text.text for text in svg.findall("text[@class='id']", space)} == set(MINUTES)
        arrows = nx.DiGraph((g.get("data-from"), g.get("data-to")) for g in svg.findall("g", space))
        assert all(source in NEEDS[target] for source, target in arrows.edges)
        assert all(nx.has_path(arrows, need, i) for i, needs in NEEDS.items() for need in needs)

    def test_drawing_in_the_checkout_is_in_step(self):
        # positions may differ in the last digit from machine to machine, what is drawn may not
        def drawn(svg):
            return re.findall(r">([^<>\n]+)</text>|data-from=\"(\w+)\" data-to=\"(\w+)\"", svg)

        committed = (ROOT / "book" / "prerequisites.svg").read_text(encoding="utf-8")
        assert drawn(committed) == drawn(prerequisites.drawing(COURSE))

    def test_boxes_do_not_overlap(self):
        split, rows = prerequisites.lanes(prerequisites.graph(COURSE))
        rows = prerequisites.untangle(split, rows)
        where = prerequisites.positions(split, rows)
        for row in rows:
            xs = [where[node][0] for node in row if isinstance(node, str)]
            assert all(right - left > prerequisites.BOX - 1e-6 for left, right in pairwise(xs))
