"""Re-execute chapters in place: ``make rerun``, ``make rerun CHAPTER=05``. A chapter that fails keeps its old file."""

import os
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

BOOK = Path(__file__).resolve().parents[2] / "book"


def execute(path: Path) -> None:
    """Run every cell of the notebook in its own folder and replace the file in one step."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": path.parent}})
    client.execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # timestamps would change in every diff
    notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata["language_info"] = {"name": "python"}
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".", suffix=".partial", delete=False) as partial:
        try:
            nbformat.write(notebook, partial)
            partial.close()
            os.chmod(partial.name, path.stat().st_mode & 0o777)
            os.replace(partial.name, path)
        except BaseException:
            Path(partial.name).unlink(missing_ok=True)
            raise


def main(chapter: str = "") -> str | None:
    """Run the chapters whose file name starts with ``chapter``; returns an error sentence, or None."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as in the gate
    os.environ.pop("MPLBACKEND", None)
    paths = sorted(BOOK.glob(f"{chapter}*.ipynb"))
    if not paths:
        return f"no chapter in book/ starts with {chapter!r}"
    failed = []
    for i, path in enumerate(paths, 1):
        print(f"[{i}/{len(paths)}] {path.name} ...", end=" ", flush=True)
        start = time.perf_counter()
        try:
            execute(path)
        except CellExecutionError as error:
            print("failed; the file is unchanged")
            print(error)
            failed.append(path.name)
        else:
            print(f"{time.perf_counter() - start:.1f} s")
    return f"failed: {', '.join(failed)}" if failed else None


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
