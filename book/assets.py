"""What the pages load besides the theme: ``python -m book.assets`` fills build/book/static.

MathJax comes from the npm package, of which only what typesets is served. Of Font Awesome the theme would load all of
its 1.5 MB; the icons in use are taken out of it into a style sheet.
"""

import re
import shutil
from pathlib import Path

import pydata_sphinx_theme

BUILD = Path(__file__).parents[1] / "build" / "book"
MATHJAX = ("startup.js", "core.js", "loader.js", "input/tex.js", "input/tex/extensions", "output/chtml.js")
FONT = ("chtml.js", "chtml")
ICONS = (
    "angle-left",
    "angle-right",
    "arrow-up",
    "bars",
    "chevron-down",
    "circle-half-stroke",
    "download",
    "expand",
    "list",
    "magnifying-glass",
    "moon",
    "outdent",
    "sun",
)


def icon_style(script: str, icons: tuple[str, ...]) -> str:
    """Style rules that draw Font Awesome's solid icons as masks, from the paths in its script."""
    rules = [
        "[class*='fa-']::before { content: none; }",
        "i[class*='fa-'], span[class*='fa-'] { display: inline-block; width: 1em; height: 1em; "
        " vertical-align: -0.125em; background: currentColor; mask: var(--icon) center / contain no-repeat; }",
    ]
    for icon in icons:
        # "moon":[384,512,[aliases],"f186","M…"]; of several styles the solid one stands last
        found = re.findall(rf'[{{{{,]"?{icon}"?:\[(\d+),(\d+),\[[^\]]*\],"[0-9a-f]+","([^"]+)"\]', script)
        if not found:
            raise ValueError(f"the theme's Font Awesome has no icon {icon!r}")
        width, height, path = found[-1]
        svg = f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}'><path d='{path}'/></svg>"
        svg = svg.replace("<", "%3C").replace(">", "%3E")
        rules.append(f'.fa-{icon} {{ --icon: url("data:image/svg+xml,{svg}"); }}')
    return "\n".join(rules) + "\n"


def copy(origin: Path, target: Path, parts: tuple[str, ...]) -> None:
    for part in parts:
        (target / part).parent.mkdir(parents=True, exist_ok=True)
        if (origin / part).is_dir():
            shutil.copytree(origin / part, target / part, dirs_exist_ok=True)
        else:
            shutil.copyfile(origin / part, target / part)


if __name__ == "__main__":
    static = BUILD / "static"
    shutil.rmtree(static, ignore_errors=True)
    packages = BUILD / "npm" / "node_modules"
    copy(packages / "mathjax", static / "mathjax", MATHJAX)
    copy(packages / "@mathjax" / "mathjax-newcm-font", static / "mathjax" / "fonts" / "mathjax-newcm-font", FONT)
    theme = Path(pydata_sphinx_theme.__file__).parent / "theme" / "pydata_sphinx_theme" / "static"
    script = (theme / "scripts" / "fontawesome.js").read_text(encoding="utf-8")
    (static / "icons.css").write_text(icon_style(script, ICONS), encoding="utf-8")
