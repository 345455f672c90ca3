"""Every page in a real browser, at a desk and on a phone, in the light and in the dark theme.

Chromium is driven by Playwright, with the system's own browser; `.ci/run` installs it. Without one
these checks are skipped, and those of the HTML in test_pages.py remain.
"""

import functools
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from test_pages import DOCUMENTS, HTML

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="needs Chromium on the path, e.g. apt-get install chromium"
)

DESK, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
PAGES = [f"{name}.html" for name in DOCUMENTS] + ["search.html", "genindex.html"]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def address():
    """The rendered book, served on this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=HTML))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def axe():
    import axe_playwright_python

    return (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8")


@pytest.fixture
def page(browser):
    """A fresh page that notes what goes wrong in it, as ``page.problems``."""
    page = browser.new_page(viewport=DESK)
    page.problems = []
    page.on(
        "console",
        lambda m: page.problems.append(f"console: {m.text}") if m.type == "error" else None,
    )
    page.on("pageerror", lambda error: page.problems.append(f"script: {error}"))
    page.on(
        "requestfailed",
        lambda request: page.problems.append(f"failed: {request.url} {request.failure}"),
    )
    page.on(
        "response",
        lambda r: page.problems.append(f"{r.status}: {r.url}") if r.status >= 400 else None,
    )
    yield page
    page.close()


def settle(page):
    """Wait for scripts, fonts and formulas."""
    page.wait_for_load_state("networkidle")
    page.evaluate(
        "async () => { await document.fonts.ready; if (window.MathJax) await MathJax.startup.promise }"
    )


CONTRAST = """async theme => {
  document.documentElement.dataset.theme = theme
  const found = await axe.run(document, {runOnly: ["color-contrast"], resultTypes: ["violations"]})
  return found.violations.flatMap(v => v.nodes.map(n => `${theme}: ${n.target} ${n.any[0]?.message}`))
}"""

WIDE = """() => {
  const width = document.documentElement.clientWidth
  if (document.documentElement.scrollWidth <= width) return []
  return [...document.querySelectorAll("main *")].filter(e => e.getBoundingClientRect().right > width + 1)
    .slice(0, 5).map(e => `${e.tagName} ${e.className} ${Math.round(e.getBoundingClientRect().right)}`)
    .concat(`page ${document.documentElement.scrollWidth}`)
}"""

UNRENDERED = """() => [...document.querySelectorAll("mjx-merror")].map(e => e.textContent).concat(
  [...document.querySelectorAll(".math")].filter(e => !e.querySelector("mjx-container")).map(e => e.textContent))"""

PICTURES = """() =>
  [...document.images].filter(i => !(i.naturalWidth > 0) || !i.alt.trim()).map(i => i.src.slice(0, 100))"""


# every position of a slider shows the frame of its own, with its label in words
MOVED = """slider => {
  const input = slider.querySelector("input"), wrong = []
  for (let i = Number(input.max); i >= 0; i--) {
    input.value = i
    input.dispatchEvent(new Event("input"))
    const shown = [...slider.querySelectorAll("img")].filter(frame => frame.checkVisibility())
    const label = slider.querySelector("output").value
    if (shown.length !== 1 || shown[0].dataset.label !== label || input.ariaValueText !== label) wrong.push(i)
  }
  return wrong
}"""


@pytest.mark.parametrize("name", PAGES)
def test_page(name, page, address, axe):
    page.goto(f"{address}/{name}")
    settle(page)
    assert page.problems == []
    assert page.evaluate(UNRENDERED) == []
    assert page.evaluate(PICTURES) == []
    page.evaluate(axe)
    assert [
        problem for theme in ("light", "dark") for problem in page.evaluate(CONTRAST, theme)
    ] == []
    for slider in page.query_selector_all(".imm-slider"):
        assert page.evaluate(MOVED, slider) == []
    page.set_viewport_size(PHONE)
    assert page.evaluate(WIDE) == []
    assert page.problems == []


def test_search_finds(page, address):
    page.goto(f"{address}/search.html?q=crosstalk")
    page.wait_for_selector("#search-results li")
    assert "The IMM risk" in page.inner_text("#search-results")
    assert page.problems == []


def test_a_chapter_prints(page, address):
    """On paper: no sidebar, and no line of code that is cut off."""
    page.goto(f"{address}/book/03-noising-counterexample.html")
    settle(page)
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 720, "height": 1000})
    assert not page.is_visible(".bd-sidebar-primary")
    cut = (
        "() => [...document.querySelectorAll('.bd-article pre')]"
        ".filter(e => e.scrollWidth > e.clientWidth + 1).length"
    )
    assert page.evaluate(cut) == 0
