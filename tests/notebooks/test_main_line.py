"""The main line, from the front page to the last case: what it must answer, how long it is, and
that its loops written out and the library's are the same.
"""

import re
from pathlib import Path

import nbformat
import pytest

BOOK = Path(__file__).resolve().parents[2] / "book"
MAIN_LINE = sorted(path for path in BOOK.glob("*.ipynb") if int(path.stem[:2]) <= 16)
AGREES = "agrees"  # tags the cell that holds what is written from scratch against the library
CHAPTERS = range(1, 17)

# Chapters in which a figure tells the result and its table, if there is one, lies folded below.
SHOWING = (1, 2, 3, 4, 5, 6, 7, 8, 10)

# An afternoon's reading.
WORDS = 26_000
PROSE = ("exercise", "solution", "figure", "prf:", "admonition", "note", "tip", "warning")

# What a reader of the front page and of chapters 1 to 4 can answer, and the heading above it.
QUESTIONS = {
    "What is the induced model?": ("01", "A nurse, a doctor and a hundred patients"),
    "Can it prove a model right?": ("01", "An induced model convicts, and does not acquit"),
    "Why not match the large model directly?": (
        "02",
        "A perfect doctor disagrees with a perfect nurse",
    ),
    "And with endless data?": ("03", "With infinite data noising still ends elsewhere"),
    "What does λ do?": ("02", "The weight is a statement of trust in the target"),
    "Which lines do I add?": ("04", "One more line in the objective"),
    "How do I know beforehand whether it can help?": (
        "04",
        "Ask first whether the target is ahead",
    ),
    "Does it beat simpler methods?": (
        "04",
        "Twenty runs: IMM helps, and so does a plainer method",
    ),
    "When should I not use it?": ("intro", "When to use it, and when not"),
    "What did the book fail to reproduce?": ("intro", "Does it help?"),
}


def text(path: Path) -> str:
    """The Markdown of a page."""
    if path.suffix == ".md":
        return path.read_text(encoding="utf-8")
    cells = nbformat.read(path, as_version=4).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def words(markdown: str) -> int:
    """Words of prose: no formulas, code, options of directives or addresses."""
    kept, fence = [], None
    for line in markdown.splitlines():
        opened = re.match(r"(`{3,}|:{3,})(?:\{([^}]*)\}|(\w+))?", line)
        if fence:
            fence = None if line.startswith(fence) else fence
        elif opened:
            kind = opened[2] or opened[3]
            if opened[1][0] == "`" and kind and not kind.startswith(PROSE):
                fence = opened[1]
        elif not re.match(r":\w+:|    ", line):
            kept.append(line)
    prose = "\n".join(kept)
    for gone in (
        r"\$\$.*?\$\$(\s*\([\w-]+\))?",
        r"\$[^$]*\$",
        r"\{[\w:]+\}`[^`]*`",
        r"`[^`\n]*`",
        r"\]\([^)]*\)",
    ):
        prose = re.sub(gone, " ", prose, flags=re.DOTALL)
    return len(re.findall(r"[^\W\d_][\w'’-]*", prose))


def test_words_are_those_of_the_prose():
    page = "Two *words*, [a link](x-y.ipynb) and $x$.\n\n$$\na b c\n$$ (eq-1)\n\n"
    page += (
        "```python\nnot counted\n```\n```{solution} ex-1\n:class: dropdown\n\ncounted `not`\n```"
    )
    assert words(page) == 6


def test_the_main_line_does_not_grow():
    found = sum(words(text(path)) for path in [BOOK / "intro.md", *MAIN_LINE])
    assert found <= WORDS, f"the main line has {found:,} words: shorten it"
    assert found > WORDS - 3000, f"the main line has {found:,} words: lower WORDS"


@pytest.mark.parametrize("number", CHAPTERS)
def test_what_is_written_from_scratch_and_the_library_agree(number):
    (path,) = BOOK.glob(f"{number:02d}-*.ipynb")
    cells = nbformat.read(path, as_version=4).cells
    tagged = [cell for cell in cells if AGREES in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    assert tagged[0].execution_count
    assert re.search(r"^ *assert |assert_close\(", tagged[0].source, re.MULTILINE)


@pytest.mark.parametrize(("page", "heading"), QUESTIONS.values(), ids=QUESTIONS)
def test_the_first_pages_answer_ten_questions(page, heading):
    assert len(QUESTIONS) == 10
    (path,) = [path for path in BOOK.iterdir() if path.stem.split("-")[0] == page]
    assert f"\n## {heading}\n" in text(path)


def figures_and_tables(notebook) -> tuple[int, int]:
    """How many there are: a table is one of Markdown, or four printed lines and more in columns."""
    figures = tables = 0
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            figures += cell.source.count("```{figure}")
            tables += len(re.findall(r"^\|[-| :]+\|$", cell.source, re.MULTILINE))
            tables += cell.source.count("```{include}")
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            slides = "imm-slider" in data.get("text/html", "")
            figures += slides or any(kind.startswith("image/") for kind in data)
            lines = output.get("text", "").splitlines()
            tables += sum(bool(re.search(r"\S {2,}\S", line)) for line in lines) >= 4
    return figures, tables


@pytest.mark.parametrize("number", SHOWING)
def test_a_chapter_has_as_many_figures_as_tables(number):
    (path,) = BOOK.glob(f"{number:02d}-*.ipynb")
    figures, tables = figures_and_tables(nbformat.read(path, as_version=4))
    assert figures >= tables > 0


def test_figures_and_tables_are_told_apart():
    table = "| a | b |\n|---|---|\n| 1 | 2 |\n"
    cells = [nbformat.v4.new_markdown_cell("```{figure} x.svg\n```\n\n" + table)]
    for text in ("n   loss\n1   0.5\n2   0.4\n3   0.3\n", "n   loss\n1   0.5\n", "one\ntwo\n" * 3):
        output = nbformat.v4.new_output("stream", text=text)
        cells.append(nbformat.v4.new_code_cell(outputs=[output]))
    drawn = nbformat.v4.new_output("display_data", {"image/png": ""})
    cells.append(nbformat.v4.new_code_cell(outputs=[drawn]))
    assert figures_and_tables(nbformat.v4.new_notebook(cells=cells)) == (2, 2)
