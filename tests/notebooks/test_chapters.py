"""The committed chapters: executed, clean, described in words, and of the size a reader can take
in.
"""

import sys
from pathlib import Path

import nbformat
import pytest
import rerun

BOOK = Path(__file__).resolve().parents[2] / "book"
CHAPTERS = sorted(BOOK.glob("*.ipynb"))
MAX_CELL_LINES, MAX_LINES, CODE_CELLS = 30, 120, range(8, 16)


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
                f"code cell {i} was run out of order: In [{cell.execution_count}], expected In [{expected}]"
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
        if len(cell.source.splitlines()) > MAX_CELL_LINES:
            found.append(f"code cell {i} has more than {MAX_CELL_LINES} lines")
    lines = [
        line for cell in code_cells(notebook) for line in cell.source.splitlines() if line.strip()
    ]
    if len(lines) > MAX_LINES:
        found.append(f"{len(lines)} lines of code, more than {MAX_LINES}")
    if len(code_cells(notebook)) not in CODE_CELLS:
        found.append(
            f"{len(code_cells(notebook))} code cells, not {CODE_CELLS[0]} to {CODE_CELLS[-1]}"
        )
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
        (lambda c: c.update(source="x\n" * 31), "more than 30 lines"),
        (lambda c: c.update(source="x\n" * 120), "more than 120"),
    ],
)
def test_each_kind_of_damage_is_noticed(damage, complaint):
    notebook = good_chapter()
    assert problems(notebook) == []
    damage(notebook.cells[4])
    assert any(complaint in problem for problem in problems(notebook))


def test_repeated_ids_a_wrong_kernel_and_too_few_cells_are_noticed():
    notebook = good_chapter()
    notebook.metadata.kernelspec.name = "other"
    notebook.cells = notebook.cells[:3] + notebook.cells[2:3]
    assert {"the kernel is not python3", "cell ids are missing or repeated"} < set(
        problems(notebook)
    )
    assert any("2 code cells" in problem for problem in problems(notebook))


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
    assert "https://github.com/imm-book/imm-book" in source and source.count("get_ipython") == 3
