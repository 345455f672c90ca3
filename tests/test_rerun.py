"""Re-executing a chapter in odd surroundings: another encoding, no home folder, another device."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
ODD = """import sys
import matplotlib.pyplot
print("λ", open("text").read())
print("about this machine", file=sys.stderr)"""
RERUN = """
import sys
from pathlib import Path
sys.path.insert(0, {tools!r})
import rerun
rerun.BOOK = Path({book!r})
sys.exit(rerun.main())
"""


def chapter(folder: Path, source: str) -> Path:
    path = folder / "01-odd.ipynb"
    cells = [nbformat.v4.new_code_cell(source)]
    path.write_text(nbformat.writes(nbformat.v4.new_notebook(cells=cells)), encoding="utf-8")
    return path


def again(folder: Path, **environment: str) -> str:
    code = RERUN.format(tools=str(ROOT / "tests" / "tools"), book=str(folder))
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode("ascii")


def test_neither_encoding_nor_home_nor_stderr_come_into_a_chapter(tmp_path):
    path = chapter(tmp_path, ODD)
    path.chmod(0o640)
    (tmp_path / "text").write_text("ρ", encoding="utf-8")
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    nobody = str(tmp_path / "text" / "home")
    said = again(tmp_path, HOME=nobody, **plain)
    _, cell = nbformat.reads(path.read_bytes().decode("utf-8"), as_version=4).cells
    assert [(output.name, output.text) for output in cell.outputs] == [("stdout", "λ ρ\n")]
    assert "cell 1 to stderr: about this machine" in said and nobody not in said
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert sorted(p.name for p in tmp_path.iterdir()) == ["01-odd.ipynb", "text"]


def test_on_another_device_texts_are_compared_and_nothing_is_written(tmp_path):
    path = chapter(tmp_path, "import os\nprint(os.environ['IMM_DEVICE'])")
    before = path.read_bytes()
    said = again(tmp_path, IMM_DEVICE="cuda")
    assert "on cuda: compared, not written" in said and "other text in cells 1" in said
    assert path.read_bytes() == before
