"""One PDF of the book's main line: ``make pdf``, after the pages are rendered.

The articles of the rendered pages are put one after another into one page, links between them
become links within it, and headless Chromium prints it. No LaTeX is needed.
"""

import shutil
import sys
from pathlib import Path
from urllib.parse import urlsplit

import yaml
from bs4 import BeautifulSoup

ROOT = Path(__file__).resolve().parents[3]
HTML = ROOT / "_build" / "html"
PDF = ROOT / "_build" / "induced-model-matching.pdf"
ASIDE = {"Lab notes", "Reference"}
"""Parts of the contents that do not belong to the main line."""
BROWSERS = "chromium", "chromium-browser", "google-chrome"
FOOT = (
    '<div style="width:100%;font-size:8px;text-align:center"><span class="pageNumber"></span></div>'
)
STYLE = """
html { font-size: 13px; }
.whole > article { break-before: page; padding: 0; }
.whole > article:first-child { break-before: auto; }
.headerlink, .copybtn { display: none !important; }
.whole .toggle-hidden { visibility: visible !important; opacity: 1; height: auto; }
"""


def chapters() -> list[str]:
    """The main line's documents, as _toc.yml orders them, without folder and suffix."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    parts = [part for part in toc["parts"] if part["caption"] not in ASIDE]
    files = [toc["root"], *(chapter["file"] for part in parts for chapter in part["chapters"])]
    return [Path(file).name for file in files]


def _relink(article, name: str, names: list[str]) -> None:
    """Make the ids of an article unique, and its links into the given pages links within one."""
    for tag in article.find_all(id=True):
        tag["id"] = f"{name}--{tag['id']}"
    for tag in article.find_all("a", href=True):
        parts = urlsplit(tag["href"])
        page = Path(parts.path).stem if parts.path.endswith(".html") else name
        if parts.scheme or parts.netloc or (parts.path and page not in names):
            continue
        if not parts.path or parts.path.endswith(".html"):
            tag["href"] = f"#{page}--{parts.fragment}" if parts.fragment else f"#{page}"


def compose(names: list[str], folder: Path = HTML / "book") -> str:
    """The rendered pages of these names as one page, to be read from the same folder.

    Raises FileNotFoundError if a page is not rendered.
    """
    texts = {name: (folder / f"{name}.html").read_text(encoding="utf-8") for name in names}
    # the head of a page with formulas, for only those load what draws them
    first = next((text for text in texts.values() if "mathjax/" in text), texts[names[0]])
    whole = BeautifulSoup(first, "html.parser")
    body = whole.new_tag("main", attrs={"class": "whole bd-article-container"})
    for name, text in texts.items():
        article = BeautifulSoup(text, "html.parser").find("article")
        _relink(article, name, names)
        article["id"] = name
        for fold in article.find_all("details", class_="sd-sphinx-override"):
            fold["open"] = ""
        body.append(article)
    for script in whole.find_all("script") + body.find_all("script"):
        if not any(word in str(script) for word in ("MathJax", "mathjax/", "fit.js")):
            script.decompose()
    whole.body.clear()
    whole.body.append(body)
    style = whole.new_tag("style")
    style.string = STYLE
    whole.head.append(style)
    whole.title.string = "Induced Model Matching"
    return str(whole)


def write(names: list[str] | None = None, file: Path = PDF) -> Path:
    """Print the pages of these names, by default the main line, into one PDF.

    Raises FileNotFoundError if a page is not rendered or there is no Chromium.
    """
    from playwright.sync_api import sync_playwright

    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise FileNotFoundError("a PDF needs Chromium on the path, e.g. apt-get install chromium")
    page_file = HTML / "book" / "_whole.html"
    page_file.write_text(compose(names or chapters()), encoding="utf-8")
    try:
        with sync_playwright() as playwright:
            chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
            page = chromium.new_page(viewport={"width": 900, "height": 1200})
            page.goto(page_file.as_uri(), timeout=120_000)
            page.wait_for_function("window.MathJax && MathJax.startup && MathJax.startup.promise")
            page.evaluate(
                "async () => { await MathJax.startup.promise; await document.fonts.ready }"
            )
            page.evaluate("() => { document.documentElement.dataset.theme = 'light' }")
            margin = {"top": "16mm", "bottom": "16mm", "left": "16mm", "right": "16mm"}
            page.pdf(
                path=file,
                format="A4",
                margin=margin,
                display_header_footer=True,
                header_template="<span></span>",
                footer_template=FOOT,
                outline=True,
                tagged=True,
            )
            chromium.close()
    finally:
        page_file.unlink()
    return file


if __name__ == "__main__":
    try:
        print(f"The book as one PDF: {write()}")
    except FileNotFoundError as error:
        sys.exit(f"make pdf: {error}")
