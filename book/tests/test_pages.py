"""Every page of the web edition as a reader's browser shows it."""

import html
import json
import re
from pathlib import Path
from urllib.parse import unquote, urljoin

import pytest
from playwright.sync_api import Page, Request, expect

from book.tests.conftest import BUILD, HTML

ROOT = BUILD.parents[1]
PAGES = sorted(path.relative_to(HTML).as_posix() for path in HTML.rglob("*.html") if "_static" not in path.parts)
SIZES = {"desktop": {"width": 1280, "height": 900}, "phone": {"width": 375, "height": 812}}
SCREENSHOTS = {
    "index.html",
    "gallery.html",
    "errata.html",
    "teach.html",
    "api/diffusion.html",
    "notebooks/05_probability/02_transformations.html",
    "notebooks/06_information/03_wasserstein.html",
    "notebooks/09_synthesis/01d_digits.html",
}
WASSERSTEIN = "notebooks/06_information/03_wasserstein"


def limit(page_name: str) -> float:
    """Bytes that a page may transfer, read to its end; the gallery has all figures."""
    return {"index.html": 1e6, "gallery.html": 8e6}.get(page_name, 2e6)


# A formula that was not typeset leaves its marks in the text; code may have any, and $NAMES are of the environment
RAW_MATHEMATICS = r"""() => {
  const walker = document.createTreeWalker(document.querySelector('main'), NodeFilter.SHOW_TEXT);
  const found = [];
  while (walker.nextNode()) {
    const node = walker.currentNode;
    const verbatim = node.parentElement.closest('pre, code, script, style, mjx-container');
    if (!verbatim && /\$(?![A-Z]{3})|\\\(|\\\[/.test(node.data))
      found.push(node.data.trim().slice(0, 80));
  }
  return found;
}"""
UNTYPESET = """() => [...document.querySelectorAll('.math')].filter(math =>
  !math.querySelector('mjx-container') || math.querySelector('mjx-merror, merror, [data-mjx-error]')
).map(math => math.textContent.slice(0, 80))"""
LOAD_IMAGES = """() => Promise.all([...document.images].map(image => {
  image.loading = 'eager';
  return image.decode().catch(() => null);
}))"""
BAD_IMAGES = """() => [...document.images].filter(image => {
  const style = getComputedStyle(image);
  const width = image.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
  const height = image.clientHeight - parseFloat(style.paddingTop) - parseFloat(style.paddingBottom);
  const shown = image.checkVisibility();
  return !image.complete || !image.naturalWidth || !image.alt.trim()
    || shown && Math.abs(width / height * image.naturalHeight / image.naturalWidth - 1) > Math.max(0.01, 1 / height);
}).map(image => image.src)"""
MISSING_ICONS = """() => [...document.querySelectorAll('i[class*="fa-"], span[class*="fa-"]')].filter(icon =>
  !getComputedStyle(icon).maskImage.startsWith('url(')).map(icon => icon.className)"""
TOO_WIDE = "() => document.scrollingElement.scrollWidth - window.innerWidth"


class Traffic:
    """What a page asked for, and what went wrong."""

    def __init__(self, page: Page, base_url: str) -> None:
        self.size = 0
        self.problems: list[str] = []
        self.base_url = base_url
        page.on("console", lambda message: self._note(message.type, message.text))
        page.on("pageerror", lambda error: self.problems.append(f"error: {error}"))
        page.on("requestfailed", lambda request: self.problems.append(f"failed: {request.url}"))
        page.on("requestfinished", self._count)
        page.route(lambda url: not url.startswith((base_url, "data:", "blob:")), lambda route: self._refuse(route))

    def _note(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.problems.append(f"console: {text}")

    def _count(self, request: Request) -> None:
        response = request.response()
        if response is not None and response.status >= 400:
            self.problems.append(f"{response.status}: {request.url}")
        self.size += request.sizes()["responseBodySize"]

    def _refuse(self, route) -> None:
        self.problems.append(f"another host: {route.request.url}")
        route.abort()


def open_page(page: Page, name: str) -> None:
    page.goto(f"/{name}", wait_until="load")
    page.evaluate("() => window.MathJax?.startup?.promise")
    page.evaluate(LOAD_IMAGES)
    page.wait_for_load_state("networkidle")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", PAGES)
def test_page(page: Page, base_url: str, name: str, size: str) -> None:
    page.set_viewport_size(SIZES[size])
    traffic = Traffic(page, base_url)
    open_page(page, name)
    assert traffic.problems == []
    assert page.evaluate(UNTYPESET) == []
    assert page.evaluate(RAW_MATHEMATICS) == []
    assert page.evaluate(BAD_IMAGES) == []
    assert page.evaluate(MISSING_ICONS) == []
    assert page.evaluate(TOO_WIDE) <= 0
    assert page.locator("h1").count() == 1
    assert traffic.size < limit(name)
    if name in SCREENSHOTS:
        (BUILD / "screenshots").mkdir(exist_ok=True)
        page.screenshot(path=BUILD / "screenshots" / f"{Path(name).stem}_{size}.png")


def test_links_within_the_site_lead_somewhere() -> None:
    texts = {name: (HTML / name).read_text(encoding="utf-8") for name in PAGES}
    anchors = {name: set(map(html.unescape, re.findall(r'\bid="([^"]+)"', text))) for name, text in texts.items()}
    dead = []
    for name, text in texts.items():
        for address in set(re.findall(r'<a\b[^>]*?\bhref="([^"]+)"', text)):
            if re.match(r"[a-z]+:", address):
                continue
            target, _, anchor = urljoin(f"/{name}", html.unescape(address)).removeprefix("/").partition("#")
            if not (HTML / unquote(target)).is_file() or (
                anchor and target in anchors and unquote(anchor) not in anchors[target]
            ):
                dead.append(f"{name}: {address}")
    assert dead == []


def test_search_finds_the_notebook_on_wasserstein_distances(page: Page) -> None:
    page.goto("/index.html")
    page.keyboard.press("Control+k")
    page.keyboard.type("Wasserstein")
    page.keyboard.press("Enter")
    expect(page.locator(f'#search-results a[href*="{WASSERSTEIN}.html"]').first).to_be_visible()
    page.screenshot(path=BUILD / "screenshots" / "search_desktop.png")


def test_keyboard_reaches_the_content(page: Page) -> None:
    page.goto(f"/{WASSERSTEIN}.html")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to main content"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('#main-content') !== null")


def test_the_dark_mode_stays_and_figures_stay_on_white(page: Page) -> None:
    page.emulate_media(color_scheme="light")
    page.goto(f"/{WASSERSTEIN}.html")
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    page.get_by_role("button", name="Color mode").click()
    page.get_by_role("button", name="Dark").click()
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    assert page.evaluate(background) != light
    page.goto("/gallery.html")
    assert page.locator("html").get_attribute("data-theme") == "dark"
    figure = "getComputedStyle(document.querySelector('a.thumbnail img')).backgroundColor"
    assert page.evaluate(figure) == "rgb(255, 255, 255)"


def test_the_notebook_itself_can_be_downloaded(page: Page) -> None:
    page.goto(f"/{WASSERSTEIN}.html")
    with page.expect_download() as download:
        page.locator(".facts a[download]").click()
    text = Path(download.value.path()).read_text(encoding="utf-8")
    assert json.loads(text)["nbformat"] == 4
    assert text == (ROOT / f"{WASSERSTEIN}.ipynb").read_text(encoding="utf-8")


def test_solutions_are_folded_and_typeset(page: Page) -> None:
    page.goto("/notebooks/05_probability/03_normalizing_flows.html")
    page.evaluate("() => MathJax.startup.promise")
    solution = page.locator("details", has=page.locator("mjx-container")).first
    expect(solution.locator("mjx-container").first).to_be_hidden()
    solution.locator("summary").click()
    expect(solution.locator("mjx-container").first).to_be_visible()


def test_kernels_and_notebooks_link_both_ways(page: Page) -> None:
    page.goto(f"/{WASSERSTEIN}.html")
    page.locator("a.kernel", has_text="wasserstein_1d").first.click()
    expect(page).to_have_url(re.compile(r"/api/transport\.html#coursekit\.transport\.wasserstein_1d$"))
    entry = page.locator("dl.py", has=page.locator(r"#coursekit\.transport\.wasserstein_1d"))
    entry.get_by_role("link", name=re.compile("^06_03 ")).click()
    expect(page).to_have_url(re.compile(rf"/{WASSERSTEIN}\.html#nb-06-03-\d+$"))
