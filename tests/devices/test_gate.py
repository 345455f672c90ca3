"""What the gate does on another device than the CPU: the device is handed down, and texts are
compared by nbval but for their numbers.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
GATE = (ROOT / "tests" / "gate.sh").read_text(encoding="utf-8")
LOOSE = ROOT / "tests" / "notebooks" / "other-device.cfg"


COMMITTED = "n = 10: gain +2.31 ± 0.5, best λ 3.0, 980 words"
SAME = [
    "n =  9: gain -1.02 ± 0.4, best λ 10.0, 1,204 words",
    "n = 10: gain +12.31 ± nan, best λ 3e-05, 98 words",
]
OTHER = [
    "n = 10: loss +2.31 ± 0.5, best λ 3.0, 980 words",
    "n = 10: gain +2.31, best λ 3.0, 980 words",
]


def test_numbers_may_differ_and_words_may_not(tmp_path):
    """A notebook whose cells print something else than is committed."""
    cells = []
    for number, printed in enumerate([*SAME, *OTHER], 1):
        cell = nbformat.v4.new_code_cell(f"print({printed!r})", execution_count=number)
        cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=COMMITTED + "\n")]
        cells.append(cell)
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "chapter.ipynb")
    command = [sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider", "-c", os.devnull]
    command += ["--nbval", "--nbval-current-env", "--nbval-sanitize-with", str(LOOSE), "."]
    told = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False).stdout
    for number in range(4):
        word = "PASSED" if number < len(SAME) else "FAILED"
        assert f"{word} chapter.ipynb::Cell {number}" in told, told


def test_the_gate_asks_for_the_loose_comparison_on_another_device_only():
    lines = [line for line in GATE.splitlines() if "loosely" in line]
    assert lines[-1].lstrip().startswith("${loosely[@]+")
    start = GATE.index("export IMM_DEVICE")
    script = GATE[start : GATE.index("fi\n", start) + 3] + 'echo "$IMM_DEVICE ${loosely[*]-}"'
    told = {}
    for device in (None, "cpu", "cuda", "cuda:1"):
        environment = {key: value for key, value in os.environ.items() if key != "IMM_DEVICE"}
        environment |= {} if device is None else {"IMM_DEVICE": device}
        command = ["bash", "-euo", "pipefail", "-c", script]
        found = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
        told[device] = found.stdout.split()
    option = ["--nbval-sanitize-with", "tests/notebooks/other-device.cfg"]
    assert told == {
        None: ["cpu"],
        "cpu": ["cpu"],
        "cuda": ["cuda", *option],
        "cuda:1": ["cuda:1", *option],
    }


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")
def test_make_hands_the_device_down(tmp_path):
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    (tmp_path / "Makefile").write_text(text, encoding="utf-8")
    for name in ("pyproject.toml", "requirements.lock"):
        (tmp_path / name).touch()
    for folder in (".venv/bin", "tests"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / ".venv" / ".installed").touch()
    (tmp_path / "tests" / "gate.sh").write_text('echo "device: $IMM_DEVICE"', encoding="utf-8")
    command = ["make", "test", "IMM_DEVICE=cuda:1"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "device: cuda:1" in found.stdout
