"""The rendered pages as a browser meets them: links lead somewhere, pictures are described, nothing
is external.
"""

from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import adopt
import nbformat
import pytest
import yaml
from bs4 import BeautifulSoup

ROOT = Path(__file__).resolve().parents[2]
HTML = ROOT / "_build" / "html"


def documents() -> list[str]:
    """Every page that _toc.yml names, without suffix."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    return [toc["root"], *(c["file"] for part in toc.get("parts", [toc]) for c in part["chapters"])]


DOCUMENTS = documents()


@cache
def soup(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


@cache
def anchors(path: Path) -> frozenset[str]:
    return frozenset(tag["id"] for tag in soup(path).find_all(id=True)) | {
        tag["name"] for tag in soup(path).find_all("a", attrs={"name": True})
    }


def external(url: str) -> bool:
    return urlsplit(url).scheme not in ("", "data") or url.startswith("//")


def broken_links(path: Path) -> list[str]:
    """Internal links of a page whose file or anchor does not exist."""
    broken = []
    for tag in soup(path).find_all("a", href=True):
        parts = urlsplit(tag["href"])
        if external(tag["href"]):
            continue
        goal = (path.parent / unquote(parts.path)).resolve() if parts.path else path
        goal = goal / "index.html" if goal.is_dir() else goal
        fragment = unquote(parts.fragment) if goal.suffix == ".html" else ""
        if not goal.is_file() or (fragment and fragment not in anchors(goal)):
            broken.append(tag["href"])
    return broken


def missing_assets(path: Path) -> list[str]:
    """Scripts, styles, fonts and pictures that would be fetched from another host, or that are not
    there.
    """
    tags = [
        (t, t["src"])
        for t in soup(path).find_all(["script", "img", "iframe", "source", "video"], src=True)
    ]
    inline = [
        script.get_text()[:120]
        for script in soup(path).find_all("script", src=False)
        if "//" in script.get_text()
    ]
    wanted = {"stylesheet", "preload", "icon", "preconnect", "dns-prefetch", "modulepreload"}
    tags += [
        (t, t["href"])
        for t in soup(path).find_all("link", href=True)
        if wanted & set(t.get("rel", []))
    ]
    return inline + [
        url
        for _, url in tags
        if external(url)
        or (
            not url.startswith("data:")
            and not (path.parent / unquote(urlsplit(url).path)).resolve().is_file()
        )
    ]


def undescribed(path: Path) -> list[str]:
    return [str(img)[:120] for img in soup(path).find_all("img") if not img.get("alt", "").strip()]


def unrendered(path: Path) -> list[str]:
    """Traces of markup that Sphinx did not understand, or of an error."""
    article = soup(path).find("article")
    words = "".join(
        text
        for text in article.find_all(string=True)
        if not any(
            p.name == "code" or "highlight" in p.get("class", [])
            for p in text.parents
            if hasattr(p, "get")
        )
    )
    marks = ("{numref}", "{eq}", "{ref}", "{cite", "{prf:", "{doc}", "{math}", "```", ":::", "](#")
    found = [mark for mark in marks if mark in words]
    outputs = "".join(tag.get_text() for tag in article.select(".cell_output"))
    return found + [
        mark for mark in ("Traceback (most recent call last)",) if mark in words + outputs
    ]


def uncaptioned(path: Path) -> list[str]:
    """Pictures drawn by code that stand outside a captioned figure."""
    return [
        str(img)[:120]
        for img in soup(path).select(".cell_output img")
        if not (img.find_parent("figure") and img.find_parent("figure").find("figcaption"))
    ]


@pytest.fixture(params=DOCUMENTS)
def page(request) -> Path:
    if not HTML.is_dir():
        pytest.skip("the book is not rendered: run make book first")
    return HTML / f"{request.param}.html"


def test_the_page_exists_and_has_a_title(page):
    assert page.is_file()
    assert soup(page).find("title").get_text(strip=True)
    assert len(soup(page).find("article").find_all("h1")) == 1


def test_every_picture_is_described(page):
    assert undescribed(page) == []


def test_every_picture_drawn_by_code_has_a_caption(page):
    assert uncaptioned(page) == []


def test_every_internal_link_leads_somewhere(page):
    assert broken_links(page) == []


def test_nothing_is_fetched_from_elsewhere(page):
    assert missing_assets(page) == []


def test_buttons_and_cards_lead_to_the_adopted_address_or_are_not_there(page):
    address = adopt.adopted()
    buttons = soup(page).select(".header-article a[href], .header-article-items a[href]")
    goals = [button["href"] for button in buttons if external(button["href"])]
    cards = soup(page).find_all("meta", property=lambda name: name and name.startswith("og:"))
    assert bool(goals) == bool(adopt.block("_config.yml", "buttons", address))
    assert all(urlsplit(address).path[1:] in unquote(goal) for goal in goals)
    assert bool(cards) == bool(adopt.block("_config.yml", "cards", address))
    assert all(
        card["content"].startswith(adopt.pages(address))
        for card in cards
        if external(card["content"])
    )


def test_all_markup_was_understood(page):
    assert unrendered(page) == []


def test_math_is_drawn_by_the_vendored_mathjax(page):
    if soup(page).select(".math"):
        assert any(
            "_static/mathjax/" in script["src"]
            for script in soup(page).find_all("script", src=True)
        )


def test_style_sheets_fetch_nothing(page):
    for link in soup(page).find_all("link", rel="stylesheet", href=True):
        css = (
            (page.parent / unquote(urlsplit(link["href"]).path))
            .resolve()
            .read_text(encoding="utf-8")
        )
        assert "url(http" not in css.replace('"', "").replace("'", "")
        assert "url(//" not in css.replace('"', "").replace("'", "")


def test_every_chapter_is_in_the_contents_and_pages_serves_all_files():
    chapters = {
        f"book/{path.stem}"
        for pattern in ("*.ipynb", "*.md")
        for path in (ROOT / "book").glob(pattern)
    }
    assert chapters == set(DOCUMENTS)
    assert (HTML / ".nojekyll").is_file()
    assert (HTML / "index.html").is_file()


def test_the_code_on_a_page_is_the_code_that_ran():
    for path in sorted((ROOT / "book").glob("*.ipynb")):
        shown = soup(HTML / "book" / f"{path.stem}.html").select(".cell_input")
        hidden = {"remove-cell", "remove-input"}
        cells = [
            c
            for c in nbformat.read(path, as_version=4).cells
            if c.cell_type == "code" and c.source.strip()
        ]
        assert len(shown) == sum(not hidden & set(c.metadata.get("tags", [])) for c in cells), (
            path.name
        )


@pytest.mark.parametrize(
    ("body", "check"),
    [
        ('<img src="data:,">', undescribed),
        ('<div class="cell_output"><img src="data:," alt="x"></div>', uncaptioned),
        ('<a href="nowhere.html">x</a>', broken_links),
        ('<a href="#nowhere">x</a>', broken_links),
        ('<a href="other.html#nowhere">x</a>', broken_links),
        ('<script src="https://example.org/x.js"></script>', missing_assets),
        ('<link rel="stylesheet" href="//example.org/x.css">', missing_assets),
        ('<img alt="x" src="absent.png">', missing_assets),
        ("<p>see {numref}`x`</p>", unrendered),
        (
            '<div class="cell_output"><pre>Traceback (most recent call last):</pre></div>',
            unrendered,
        ),
    ],
)
def test_the_checks_notice_damage(tmp_path, body, check):
    (tmp_path / "other.html").write_text("<article></article>", encoding="utf-8")
    page = tmp_path / "page.html"
    page.write_text(f"<html><body><article>{body}</article></body></html>", encoding="utf-8")
    assert check(page)
