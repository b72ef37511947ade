"""Draw the picture of the server's page from a real server: page.png in this folder.

It needs Chromium, and the libraries of the tests: pip install '.[dev]' && python docs/images/draw_page.py
"""

import sys
import tempfile
from pathlib import Path

import mlx_transformer as mt

IMAGES = Path(__file__).resolve().parent
sys.path.append(str(IMAGES.parent.parent / "tests"))

from support.browser import Browser, open_browser  # noqa: E402
from support.http_server import serve  # noqa: E402

SIZE = (960, 480)
TEXT = "Good morning!\nI am very tired today."
WORD = "[...document.querySelectorAll('#target [role=button]')].find(word => word.textContent == 'très')"


def draw(browser: Browser, url: str, path: Path) -> None:
    """Write a screenshot of the page at an address, with a text, its translation, and the alternatives of a word."""
    browser.open(url, *SIZE)
    browser.wait("!document.querySelector('.stale')")
    browser.type(TEXT)
    browser.wait(f"!document.querySelector('.stale') && !!{WORD}")
    browser.point(WORD, click=True)
    browser.wait("!alternatives.hidden")
    path.write_bytes(browser.screenshot())


def main() -> None:
    """Serve the bundled model and write the picture."""
    bundled = mt.load()
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,  # Chromium may still write
        serve(lambda name: bundled) as client,
        open_browser(folder) as browser,
    ):
        draw(browser, f"{client.url}/", IMAGES / "page.png")


if __name__ == "__main__":
    main()
