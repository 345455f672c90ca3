"""Every page in a real browser, at a desk and on a phone, in the light and in the dark theme.

Chromium is driven by Playwright, with the system's own browser; `.ci/run` installs it. Without one
these checks are skipped, and those of the HTML in test_pages.py remain.
"""

import functools
import json
import math
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from pages import pictures
from test_pages import DOCUMENTS, HTML

import imm_lib as imm
from imm_lib.experiments import logistic

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
    page.set_default_timeout(180_000)  # a busy machine is slow, not wrong
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
        "async () => { await document.fonts.ready;"
        " if (window.MathJax) await MathJax.startup.promise }"
    )


CONTRAST = """async theme => {
  document.documentElement.dataset.theme = theme
  const found = await axe.run(document, {runOnly: ["color-contrast"], resultTypes: ["violations"]})
  const nodes = found.violations.flatMap(v => v.nodes)
  return nodes.map(n => `${theme}: ${n.target} ${n.any[0]?.message}`)
}"""

WIDE = """() => {
  const width = document.documentElement.clientWidth
  if (document.documentElement.scrollWidth <= width) return []
  const right = e => e.getBoundingClientRect().right
  return [...document.querySelectorAll("main *")].filter(e => right(e) > width + 1)
    .slice(0, 5).map(e => `${e.tagName} ${e.className} ${Math.round(right(e))}`)
    .concat(`page ${document.documentElement.scrollWidth}`)
}"""

UNRENDERED = """() => [...document.querySelectorAll("mjx-merror")].map(e => e.textContent).concat(
  [...document.querySelectorAll(".math")].filter(e => !e.querySelector("mjx-container"))
    .map(e => e.textContent))"""

PICTURES = """() =>
  [...document.images].filter(i => !(i.naturalWidth > 0) || !i.alt.trim())
    .map(i => i.src.slice(0, 100))"""


# formulas that are wider than the room they have, or that lie on their number
CUT = """async () => {
  await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))
  const cut = []
  for (const formula of document.querySelectorAll(".bd-article mjx-container")) {
    if (!formula.checkVisibility()) continue
    if (formula.closest("table, .cell_output, mjx-assistive-mml")) continue
    const box = formula.querySelector("mjx-math").getBoundingClientRect()
    const number = formula.parentElement.querySelector(".eqno")?.getBoundingClientRect()
    const level = number && box.bottom > number.top && box.top < number.bottom
    const over = level && box.right > number.left
    const room = document.querySelector(".bd-article").getBoundingClientRect()
    if (over || box.right > room.right + 1) cut.push(formula.textContent.slice(0, 60))
  }
  return cut
}"""


# words in the cells of tables that go on in a second line
BROKEN = r"""() => {
  const broken = []
  for (const cell of document.querySelectorAll(".bd-article table.table :is(th, td)")) {
    const texts = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT)
    while (texts.nextNode()) {
      if (texts.currentNode.parentElement.closest("mjx-container")) continue
      for (const word of texts.currentNode.data.matchAll(/[\p{L}\p{N}_.]+/gu)) {
        const range = document.createRange()
        range.setStart(texts.currentNode, word.index)
        range.setEnd(texts.currentNode, word.index + word[0].length)
        const lines = new Set([...range.getClientRects()].map(box => Math.round(box.top)))
        if (lines.size > 1) broken.push(word[0])
      }
    }
  }
  return broken
}"""


# every position of a slider shows the frame of its own, with its label in words
MOVED = """slider => {
  const input = slider.querySelector("input"), wrong = []
  for (let i = Number(input.max); i >= 0; i--) {
    input.value = i
    input.dispatchEvent(new Event("input"))
    const shown = [...slider.querySelectorAll("img")].filter(frame => frame.checkVisibility())
    const label = slider.querySelector("output").value
    const named = input.ariaValueText === label
    if (shown.length !== 1 || shown[0].dataset.label !== label || !named) wrong.push(i)
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
    assert page.evaluate(CUT) == []
    page.set_viewport_size(PHONE)
    assert page.evaluate(WIDE) == []
    assert page.evaluate(BROKEN) == []
    assert page.evaluate(CUT) == []
    assert page.problems == []


# the page of the see-saw, and the scene that it begins with
SEE_SAWS = [("intro", 2), ("01-induced-models", 2), ("03-noising-counterexample", 2)]


def state(page) -> dict:
    return json.loads(page.evaluate("document.querySelector('.see-saw').dataset.state"))


def slide(page, which: int, position: int) -> None:
    """Move a slider of the see-saw: 0 is the weight, 1 the number of labels."""
    page.evaluate(
        "([which, at]) => {"
        " const i = document.querySelectorAll('.see-saw input[type=range]')[which];"
        " i.value = at; i.dispatchEvent(new Event('input')) }",
        [which, position],
    )


def agrees(found: dict) -> None:
    """What the page shows is what the library's risks have their minimum at."""
    weights, truth, said, model = (
        torch.tensor(found[k], dtype=torch.float64) for k in ("weights", "truth", "labels", "model")
    )
    ours = pictures.train(found["mode"], said, weights, found["nurse"], found["lambda"])
    torch.testing.assert_close(model, ours, rtol=0, atol=2e-5)
    joint = weights.view(1, -1, 1) * torch.stack([truth, 1 - truth], -1)
    world = imm.TabularWorld(joint)
    log_q = torch.stack([model, 1 - model], -1).log().unsqueeze(0)
    assert world.induced[0, 0].item() == pytest.approx(found["nurse"])
    assert world.induce(log_q)[0, 0].exp().item() == pytest.approx(found["mean"])
    assert world.kl(log_q).item() == pytest.approx(found["divergence"], abs=1e-9)
    if found["mode"] == "direct" and torch.equal(said, truth):
        minimiser = world.noising_minimiser(found["lambda"])[0, :, 0]
        torch.testing.assert_close(model, minimiser, rtol=0, atol=1e-12)
    if found["mode"] == "average" and torch.equal(said, truth):
        torch.testing.assert_close(model, truth, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("name", "kinds"), SEE_SAWS)
def test_the_see_saw_shows_the_librarys_numbers(name, kinds, page, address):
    page.goto(f"{address}/book/{name}.html")
    settle(page)
    assert page.locator(".see-saw").count() == 1
    for press in (None, "Many kinds"):
        if press:
            page.get_by_role("button", name=press).click()
        assert len(state(page)["model"]) == (7 if press else kinds)
        for mode in ("alone", "direct", "average"):
            page.check(f".see-saw input[value={mode}]")
            for position in (0, 2, 4, 7):
                slide(page, 0, position)
                for labels in (0, 2, 5):
                    slide(page, 1, labels)
                    agrees(state(page))
    assert page.problems == []


def test_the_see_saw_is_moved_by_keys_mouse_and_finger(page, address):
    page.goto(f"{address}/book/intro.html")
    settle(page)
    before = state(page)["labels"]
    disc = page.locator(".see-saw .disc").first
    disc.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("PageUp")
    moved = state(page)["labels"]
    assert moved == pytest.approx([before[0] + 0.11, before[1]])
    assert f"labels say {moved[0]:.2f}" in disc.get_attribute("aria-valuetext")
    page.emulate_media(reduced_motion="reduce")
    page.get_by_role("button", name="Start again").click()
    page.wait_for_timeout(100)
    assert state(page)["labels"] == before
    box = page.locator(".see-saw .disc .hit").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 60, y)
    page.mouse.up()
    moved = state(page)["labels"][0]
    assert before[0] < moved
    page.evaluate(
        """([x, y]) => {
          const disc = document.elementFromPoint(x, y)
          const id = {pointerId: 1, pointerType: "touch", bubbles: true}
          disc.closest(".disc").setPointerCapture = () => {}
          disc.dispatchEvent(new PointerEvent("pointerdown", {...id, clientX: x, clientY: y}))
          disc.dispatchEvent(new PointerEvent("pointermove", {...id, clientX: x - 30, clientY: y}))
        }""",
        [x + 60, y],
    )
    assert before[0] < state(page)["labels"][0] < moved
    assert (
        page.evaluate("getComputedStyle(document.querySelector('.see-saw .disc')).touchAction")
        == "none"
    )
    assert page.problems == []


def test_the_see_saw_is_a_picture_on_paper_and_without_a_script(page, browser, address):
    page.goto(f"{address}/book/intro.html")
    settle(page)
    shown = [page.is_visible(".see-saw"), page.is_visible("figure.imm-see-saw img")]
    page.emulate_media(media="print")
    shown += [page.is_visible(".see-saw"), page.is_visible("figure.imm-see-saw img")]
    assert shown == [True, False, False, True]
    context = browser.new_context(java_script_enabled=False)
    plain = context.new_page()
    plain.goto(f"{address}/book/intro.html")
    assert plain.is_visible("figure.imm-see-saw img")
    context.close()
    assert len((HTML / "_static" / "see-saw.js").read_bytes()) <= 40_000


def test_a_slider_plays_to_its_end_and_stops(page, address):
    page.goto(f"{address}/book/03-noising-counterexample.html")
    settle(page)
    slider = page.locator(".imm-slider").first
    last = int(slider.locator("input").get_attribute("max"))
    slider.locator("input").evaluate(f"e => {{ e.value = {last - 2} }}")
    slider.get_by_role("button").click()
    assert slider.get_by_role("button").inner_text() == "Stop"
    page.wait_for_timeout(2500)
    assert slider.get_by_role("button").inner_text() == "Play"
    assert int(slider.locator("input").input_value()) == last
    assert page.problems == []


def test_the_separating_plane_shows_the_librarys_numbers(page, address):
    """Chapter 11's animation: its frames are named after the errors of the plane's tilt, and the
    arrow keys step through them.
    """
    page.goto(f"{address}/book/11-logistic-regression.html")
    settle(page)
    slider = page.locator(".imm-slider")
    said = slider.locator("img").evaluate_all("all => all.map(frame => frame.dataset.label)")
    plane = logistic.Plane((1.0, 1.0, 1.0), offset=-1.5)
    data = plane.draw(100, 50, torch.Generator().manual_seed(0))
    right = math.acos(3**-0.5)  # between (1, 1, 1) and the x1 axis
    for n in (6, 20):
        off = []
        for method in ("baseline", "IMM exact"):
            w = logistic.train(data.first(n), method, logistic.schedule(n))[:3]
            tilt = torch.atan2(w[1:].norm(dim=0), w[0])
            off.append(math.degrees((tilt - right).square().mean().sqrt()))
        words = "n = {}: tilt off by {:.1f}° without IMM, {:.1f}° with"
        assert words.format(n, *off) in said
    control, shown = slider.locator("input"), slider.locator("output")
    at = said.index(shown.inner_text())
    control.press("ArrowRight")
    assert shown.inner_text() == said[at + 1]
    control.press("ArrowLeft")
    assert shown.inner_text() == said[at]
    assert page.problems == []


def test_a_desk_has_room_for_80_columns_of_code(page, address):
    page.goto(f"{address}/book/03-noising-counterexample.html")
    settle(page)
    columns = page.evaluate(
        """() => {
          const pre = document.querySelector(".cell_input pre"), style = getComputedStyle(pre)
          const probe = document.createElement("span")
          probe.textContent = "x".repeat(100)
          pre.append(probe)
          const padding = parseFloat(style.paddingLeft) + parseFloat(style.paddingRight)
          const room = pre.clientWidth - padding
          return room / (probe.getBoundingClientRect().width / 100)
        }"""
    )
    assert columns >= 80


def test_the_verdicts_are_on_the_screen_of_a_phone(page, address):
    page.set_viewport_size(PHONE)
    page.goto(f"{address}/book/reproduction.html")
    settle(page)
    edges = page.evaluate(
        """() => [...document.querySelectorAll("td:nth-child(2)")].filter(e => e.checkVisibility())
          .map(e => e.getBoundingClientRect().right)"""
    )
    assert len(edges) > 50 and max(edges) <= PHONE["width"]


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
