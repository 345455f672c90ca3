"""Re-execute chapters in place: ``make rerun``, ``make rerun CHAPTER=5``. A chapter that fails
keeps its old file.

Says whether the texts that the cells print are those of before. What each took, in seconds and
bytes, goes to ``book/chapters.json``, for the execution page, with ``make rerun NOTE=1`` only: it
is another one on every machine. On a device other than the CPU (``IMM_DEVICE``) texts are compared
and no file is written. Every chapter begins with the hidden cell that installs the library
where the chapter was opened from the book's launch buttons.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

import nbformat
import surroundings
from adopt import adopted, install
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

from imm_lib import results

BOOK = Path(__file__).resolve().parents[2] / "book"
SPENT = "chapters.json"
INSTALL = install(adopted())
HIDDEN = ["remove-cell", "skip-execution"]
COST = """import json as _json, torch as _torch, imm_lib as _imm
print(_json.dumps(_imm.results.provenance(_torch.device("cpu"))))"""


def prepare(notebook: nbformat.NotebookNode) -> None:
    """Put the installing cell before the first other code cell, once."""
    cells = [cell for cell in notebook.cells if cell.metadata.get("tags") != HIDDEN]
    first = next(i for i, cell in enumerate(cells) if cell.cell_type == "code")
    metadata = nbformat.from_dict({"tags": HIDDEN})
    cells.insert(first, nbformat.v4.new_code_cell(INSTALL, metadata=metadata, id="install"))
    notebook.cells = cells


def texts(notebook: nbformat.NotebookNode) -> dict[int | None, list[str]]:
    """What each executed cell wrote, by its number, without those whose outputs are not
    compared.
    """
    return {
        cell.execution_count: [
            output.get("text") or output.get("data", {}).get("text/plain", "")
            for output in cell.outputs
        ]
        for cell in notebook.cells
        if cell.cell_type == "code" and "nbval-ignore-output" not in cell.metadata.get("tags", [])
    }


def compared(before: dict, after: dict) -> str:
    """Which cells wrote something else than before."""
    other = [str(number) for number in after if number and after[number] != before.get(number)]
    return f"other text in cells {', '.join(other)}" if other else "all text as before"


def strangers(notebook: nbformat.NotebookNode) -> list[str]:
    """Take what cells wrote to stderr out of the outputs, and return it by cell: it is about the
    machine, its folders and versions, and no chapter's text.
    """
    found = []
    for cell in notebook.cells:
        for output in list(cell.get("outputs", [])):
            if output.output_type == "stream" and output.name == "stderr":
                cell.outputs.remove(output)
                found.append(f"cell {cell.execution_count} to stderr: {output.text.strip()}")
    return found


def execute(path: Path, write: bool = True) -> tuple[dict, str]:
    """Run every cell in the notebook's own folder, replace the file in one step.

    Args:
        path: of the chapter.
        write: whether to replace the file.

    Returns:
        The kernel's provenance, and how what the cells wrote compares with before.
    """
    notebook = nbformat.read(path, as_version=4)
    before = texts(notebook)
    prepare(notebook)
    notebook.cells.append(nbformat.v4.new_code_cell(COST))
    where = {"metadata": {"path": path.parent}}
    # what a cell prints is one output, however the messages were cut on their way
    client = NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources=where, coalesce_streams=True
    )
    client.execute()
    for line in strangers(notebook):
        print(f"\n  {line}", end=" ")
    provenance = json.loads(notebook.cells.pop().outputs[0].text)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # timestamps would change in every diff
    notebook.metadata["kernelspec"] = {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    }
    notebook.metadata["language_info"] = {"name": "python"}
    if write:
        text = nbformat.writes(notebook)
        results.write_bytes(path, (text if text.endswith("\n") else text + "\n").encode())
    return provenance, compared(before, texts(notebook))


def spent_before() -> dict:
    """What each chapter took the last time that it was run."""
    return results.read_json(BOOK / SPENT) if (BOOK / SPENT).exists() else {}


def note(name: str, seconds: float, provenance: dict) -> None:
    """Put what a chapter took into the stored table, beside what the others did."""
    known = spent_before()
    known[name] = {
        "seconds": round(seconds, 1),
        **{key: provenance[key] for key in ("peak_memory_bytes", "versions")},
    }
    results.write_json(BOOK / SPENT, dict(sorted(known.items())))


def left(spent: list[float], names: list[str]) -> str:
    """How long the chapters that remain will take, by what they took last time, or the mean of
    those that are done.
    """
    known = spent_before()
    mean = sum(spent) / len(spent) if spent else 30.0
    return f"about {sum(known.get(name, {}).get('seconds', mean) for name in names):.0f} s left"


def main(chapter: str = "", keep: bool = False, dry: bool = False) -> str | None:
    """Run one chapter or all; returns an error sentence, or None.

    Args:
        chapter: how the names of the files start; "5" stands for "05".
        keep: whether to store what they took.
        dry: whether to compare only, and to write no file.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as in the gate
    os.environ.pop("MPLBACKEND", None)
    surroundings.settle(os.environ)
    write = os.environ["IMM_DEVICE"].partition(":")[0] == "cpu"
    if dry:
        write = False
    elif not write:
        print(f"on {os.environ['IMM_DEVICE']}: compared, not written; the book's texts are a CPU's")
    paths = sorted(BOOK.glob(f"{chapter.zfill(2) if chapter else ''}*.ipynb"))
    if not paths:
        return f"no chapter in book/ starts with {chapter!r}"
    failed, spent = [], []
    for i, path in enumerate(paths, 1):
        remaining = left(spent, [other.stem for other in paths[i - 1 :]])
        print(f"[{i}/{len(paths)}, {remaining}] {path.name} ...", end=" ", flush=True)
        start = time.perf_counter()
        try:
            provenance, change = execute(path, write)
        except (CellExecutionError, DeadKernelError) as error:
            print(f"failed; the file is unchanged\n{error}")
            failed.append(path.name)
        else:
            spent.append(time.perf_counter() - start)
            print(f"{spent[-1]:.1f} s, {provenance['peak_memory_bytes'] / 2**20:.0f} MiB, {change}")
            if keep and write:
                note(path.stem, spent[-1], provenance)
    return f"failed: {', '.join(failed)}" if failed else None


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Re-execute chapters in place.")
    parser.add_argument(
        "chapter",
        nargs="?",
        default="",
        help="number or beginning of the file name; all by default",
    )
    parser.add_argument(
        "--note", action="store_true", help="store seconds and bytes for the execution page"
    )
    parser.add_argument("--dry", action="store_true", help="compare only, and write no file")
    given = parser.parse_args()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # a terminal that has no λ
    sys.exit(main(given.chapter, given.note, given.dry))
