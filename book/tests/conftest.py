"""The built pages, served on the loopback address, and a browser that can reach nothing else."""

import functools
import os
import shutil
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

BUILD = Path(__file__).parents[2] / "build" / "book"
HTML = BUILD / "html"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="session")
def base_url() -> Iterator[str]:
    """Where pytest-playwright's `page` finds the pages."""
    if not (HTML / "index.html").is_file():
        pytest.exit(f"there are no pages in {HTML}: make book")
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=HTML))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="session")
def browser_type_launch_args() -> dict:
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if chromium is None:
        pytest.exit("there is no chromium: install it (on Debian: apt install chromium), or name one in CHROMIUM")
    quiet = ("background-networking", "component-update", "sync", "gpu")
    return {
        "executable_path": chromium,
        "args": ["--no-sandbox", "--no-first-run", *(f"--disable-{what}" for what in quiet)],
    }
