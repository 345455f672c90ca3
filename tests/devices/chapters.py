"""Runs a chapter's cells in this process, as small as its device path allows."""

import ast
import contextlib
import warnings
from pathlib import Path

import matplotlib
import nbformat
from second import SecondDevice, second_device

BOOK = Path(__file__).resolve().parents[2] / "book"
LINE = "device = imm.device()"


def numbers() -> list[str]:
    """Of the chapters that ask for a device."""
    return [path.name[:2] for path in sorted(BOOK.glob("[0-9]*.ipynb")) if LINE in source(path)]


def source(path: Path) -> str:
    return "\n".join(cell.source for cell in cells(path))


def cells(path: Path) -> list[nbformat.NotebookNode]:
    """The code cells but the hidden one that installs the library."""
    notebook = nbformat.read(path, as_version=4)
    return [
        cell
        for cell in notebook.cells
        if cell.cell_type == "code" and "skip-execution" not in cell.metadata.get("tags", [])
    ]


class _NoClaims(ast.NodeTransformer):
    """Without assertions: what they claim holds at the chapter's own sizes."""

    def visit_Assert(self, node):
        return ast.copy_location(ast.Pass(), node)


def changed(texts: list[str], changes: list[tuple[str, str]], number: str) -> list[str]:
    """The cells with each of the changes made once; raises AssertionError for one that is not."""
    for old, new in changes:
        places = [i for i, text in enumerate(texts) if old in text]
        assert len(places) == 1, (
            f"chapter {number} must have {old!r} in one cell, found in {len(places)}: "
            "adapt SMALL in tests/devices/test_chapters.py"
        )
        texts = list(texts)
        texts[places[0]] = texts[places[0]].replace(old, new)
    return texts


class Failed(Exception):
    """A cell failed; the message names it and has the error's first line."""


def run(number: str, changes: list[tuple[str, str]] = (), claims: bool = False) -> SecondDevice:
    """Run a chapter, on the second device from the cell on that asks for it; returns what counted.

    Args:
        number: two digits.
        changes: pairs of old and new text.
        claims: keep the assertions.

    Raises:
        Failed: a cell did.
    """
    from matplotlib import pyplot

    matplotlib.use("Agg")
    (path,) = BOOK.glob(f"{number}-*.ipynb")
    texts = changed([cell.source for cell in cells(path)], list(changes), number)
    space, mode, there = {"__name__": "__main__"}, None, contextlib.ExitStack()
    try:
        for cell, text in zip(cells(path), texts, strict=True):
            if LINE in text:
                mode = there.enter_context(second_device())
            tree = ast.parse(text)
            if not claims:
                tree = ast.fix_missing_locations(_NoClaims().visit(tree))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    exec(compile(tree, f"chapter {number}, cell {cell.id}", "exec"), space)
                except Exception as error:
                    first = str(error).splitlines()[0] if str(error) else ""
                    name = type(error).__name__
                    raise Failed(f"chapter {number}, cell {cell.id}: {name}: {first}") from error
            pyplot.close("all")
    finally:
        there.close()
        matplotlib.rcdefaults()
    return mode
