"""The committed chapters: executed, clean, described in words, and of the size a reader can take
in.
"""

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import rerun

BOOK = Path(__file__).resolve().parents[2] / "book"
CHAPTERS = sorted(BOOK.glob("*.ipynb"))
MAX_CELL_LINES = 25
WIDTH, OUTPUT_WIDTH = 78, 80
SKELETON = ("## What can go wrong", "## Summary", "## Exercises")
FOLDED = {"hide-cell", "hide-input"}


def code_cells(notebook):
    """All but the hidden one that installs the library."""
    return [
        cell for cell in notebook.cells if cell.cell_type == "code" and tags(cell) != rerun.HIDDEN
    ]


def tags(cell):
    return cell.metadata.get("tags", [])


def problems(notebook) -> list[str]:
    """Everything that keeps a chapter from being committed."""
    found = []
    expected = 1
    for i, cell in enumerate(code_cells(notebook)):
        if "nbval-skip" in tags(cell):
            if cell.execution_count is not None:
                expected = cell.execution_count + 1
            continue
        if cell.execution_count is None:
            found.append(f"code cell {i} was never executed")
        elif cell.execution_count != expected:
            found.append(
                f"code cell {i} was run out of order: In [{cell.execution_count}], expected In "
                f"[{expected}]"
            )
        expected = (cell.execution_count or expected) + 1
        if "execution" in cell.metadata:
            found.append(f"code cell {i} carries execution timestamps: run make rerun")
        for output in cell.outputs:
            if output.output_type == "error" and "raises-exception" not in tags(cell):
                found.append(f"code cell {i} holds an error: {output.ename}: {output.evalue}")
            if output.output_type == "stream" and output.name == "stderr":
                found.append(f"code cell {i} wrote to stderr: {output.text[:80]!r}")
        if any(
            kind.startswith("image/") for output in cell.outputs for kind in output.get("data", {})
        ):
            render = cell.metadata.get("mystnb", {})
            if not render.get("image", {}).get("alt", "").strip():
                found.append(f"code cell {i} draws a figure without alt text")
            if not render.get("figure", {}).get("caption", "").strip() or not render["figure"].get(
                "name"
            ):
                found.append(f"code cell {i} draws a figure without caption and name")
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        found.append("the kernel is not python3")
    first = notebook.cells[0]
    if first.cell_type != "markdown" or not first.source.lstrip().startswith("# "):
        found.append("the first cell is not a markdown title")
    hidden = [cell.source for cell in notebook.cells if tags(cell) == rerun.HIDDEN]
    begins = next(cell for cell in notebook.cells if cell.cell_type == "code")
    if hidden != [rerun.INSTALL] or begins.source != rerun.INSTALL:
        found.append("the first code cell is not the one that installs the library: run make rerun")
    ids = [cell.get("id") for cell in notebook.cells]
    if None in ids or len(set(ids)) != len(ids):
        found.append("cell ids are missing or repeated")
    return found


def unreadable(notebook) -> list[str]:
    """Everything that keeps a chapter from being read: wide or long cells, checks and plotting in
    the way, missing parts.
    """
    found = []
    for cell in code_cells(notebook):
        lines = cell.source.splitlines()
        if len(lines) > MAX_CELL_LINES:
            found.append(f"{cell.id} has {len(lines)} lines, more than {MAX_CELL_LINES}")
        if any(len(line) > WIDTH for line in lines):
            found.append(f"{cell.id} is wider than {WIDTH} columns")
        printed = [line for o in cell.outputs for line in o.get("text", "").splitlines()]
        if any(len(line) > OUTPUT_WIDTH for line in printed):
            found.append(f"{cell.id} prints more than {OUTPUT_WIDTH} columns")
        folded = FOLDED & set(tags(cell))
        drawn = any(kind.startswith("image/") for o in cell.outputs for kind in o.get("data", {}))
        if drawn and not folded:
            found.append(f"{cell.id} draws a figure and is not folded")
        if not folded and any(line.startswith("assert ") for line in lines) and not solves(cell):
            found.append(f"{cell.id} checks in view of the reader")
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    found += [f"no part {part!r}" for part in SKELETON if part not in text]
    if "**What you will know afterwards**" not in notebook.cells[0].source:
        found.append("the first cell does not say what the reader will know")
    if unformatted(notebook):
        found.append("a code cell is not as ruff format writes it")
    return found


def solves(cell) -> bool:
    """Whether a code cell is part of an exercise's folded solution."""
    return "-ex" in cell.id


def unformatted(notebook) -> bool:
    """Whether ruff would write a code cell in another way at the page's width."""
    cells = [nbformat.v4.new_code_cell(cell.source, id=cell.id) for cell in code_cells(notebook)]
    language = {"language_info": {"name": "python"}}
    text = nbformat.writes(nbformat.v4.new_notebook(cells=cells, metadata=language))
    command = [sys.executable, "-m", "ruff", "format", "--isolated", "--stdin-filename", "x.ipynb"]
    options = ["--line-length", str(WIDTH), "--target-version", "py311", "--check", "-"]
    done = subprocess.run([*command, *options], input=text, text=True, capture_output=True)
    assert done.returncode in (0, 1), done.stderr
    return done.returncode == 1


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_the_chapter_reads_well(path):
    assert unreadable(nbformat.read(path, as_version=4)) == []


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_the_chapter_is_executed_and_clean(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert problems(notebook) == []


def good_chapter():
    notebook = nbformat.v4.new_notebook(
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    )
    notebook.cells = [nbformat.v4.new_markdown_cell("# Title")]
    notebook.cells += [nbformat.v4.new_code_cell("1", execution_count=i) for i in range(1, 9)]
    rerun.prepare(notebook)
    return notebook


def picture(cell, alt, caption):
    cell.outputs = [nbformat.v4.new_output("display_data", {"image/png": ""})]
    cell.metadata["mystnb"] = {
        "image": {"alt": alt},
        "figure": {"name": "fig-x", "caption": caption},
    }


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda c: c.update(execution_count=None), "code cell 2 was never executed"),
        (lambda c: c.update(execution_count=7), "out of order"),
        (lambda c: c.metadata.update(execution={}), "timestamps"),
        (
            lambda c: c.update(outputs=[nbformat.v4.new_output("error", ename="E", evalue="v")]),
            "holds an error",
        ),
        (
            lambda c: c.update(outputs=[nbformat.v4.new_output("stream", name="stderr", text="x")]),
            "stderr",
        ),
        (lambda c: picture(c, "", "A caption"), "without alt text"),
        (lambda c: picture(c, "A picture", ""), "without caption"),
    ],
)
def test_each_kind_of_damage_is_noticed(damage, complaint):
    notebook = good_chapter()
    assert problems(notebook) == []
    damage(notebook.cells[4])
    assert any(complaint in problem for problem in problems(notebook))


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda c: c.update(source="x\n" * 26), "26 lines"),
        (lambda c: c.update(source="x = " + "1 + " * 20 + "1"), "wider than 78"),
        (
            lambda c: c.update(outputs=[nbformat.v4.new_output("stream", text="x" * 81)]),
            "more than 80",
        ),
        (lambda c: picture(c, "A picture", "A caption"), "is not folded"),
        (lambda c: c.update(source="assert True"), "in view"),
        (lambda c: c.update(source="x=1"), "ruff format"),
    ],
)
def test_what_makes_a_chapter_unreadable_is_noticed(damage, complaint):
    notebook = good_chapter()
    notebook.cells[0].source += "\n\n**What you will know afterwards**"
    notebook.cells.append(nbformat.v4.new_markdown_cell("\n".join(SKELETON)))
    assert unreadable(notebook) == []
    damage(notebook.cells[4])
    assert any(complaint in problem for problem in unreadable(notebook))
    notebook.cells.pop()
    assert "no part '## Summary'" in unreadable(notebook)


def test_repeated_ids_and_a_wrong_kernel_are_noticed():
    notebook = good_chapter()
    notebook.metadata.kernelspec.name = "other"
    notebook.cells = notebook.cells[:3] + notebook.cells[2:3]
    assert {"the kernel is not python3", "cell ids are missing or repeated"} < set(
        problems(notebook)
    )


def test_the_installing_cell_is_there_once_and_first():
    notebook = good_chapter()
    rerun.prepare(notebook)
    assert problems(notebook) == []
    notebook.cells[1:3] = notebook.cells[2:0:-1]
    assert any("installs the library" in problem for problem in problems(notebook))


def test_the_installing_cell_is_python_and_passes_by_where_the_library_is():
    from IPython.core.inputtransformer2 import TransformerManager

    source = TransformerManager().transform_cell(rerun.INSTALL)
    path = list(sys.path)
    exec(compile(source, "install", "exec"), {})  # would fail: there is no get_ipython here
    assert sys.path == path
    assert source.count("get_ipython") == 3
