"""Sphinx configuration of the web edition; `make book` calls it."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "book"
sys.path.insert(0, str(ROOT))

project = "coursekit"
author = "The coursekit authors"
copyright = "the coursekit authors, MIT licence"
html_title = "The mathematics of generative AI"
html_short_title = "coursekit"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "book.library",
]
nitpicky = False
default_role = "py:obj"
templates_path = ["templates"]

# Notebooks are shown as they were executed
nb_execution_mode = "off"
nb_ipywidgets_js = {}
nb_render_markdown_format = "myst"
myst_enable_extensions = ["dollarmath", "colon_fence", "fieldlist", "attrs_block", "attrs_inline"]
myst_heading_anchors = 3
myst_dmath_double_inline = True

# MathJax from the site itself, and of it only what typesets: no menu, no speech, nothing fetched on demand from outside
mathjax_path = "mathjax/startup.js"
mathjax4_config = {
    "loader": {"load": ["core", "input/tex", "output/chtml"], "paths": {"fonts": "[mathjax]/fonts"}},
    "output": {"font": "mathjax-newcm"},
    "chtml": {"displayOverflow": "scroll"},
}

autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_google_docstring = False
napoleon_use_param = False  # types are words, "(m, n) array", in which Sphinx would look for names to link
napoleon_use_rtype = False
python_maximum_signature_line_length = 88

html_theme = "sphinx_book_theme"
html_context = {"default_mode": "auto"}
html_theme_options = {
    "logo": {"text": "coursekit"},
    "use_download_button": False,
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "home_page_in_toc": False,
    "navbar_persistent": "",
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
html_static_path = ["static", str(BUILD / "static")]
html_extra_path = [str(BUILD / "extra")]
html_css_files = ["course.css", "icons.css"]
html_favicon = "static/favicon.svg"
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
