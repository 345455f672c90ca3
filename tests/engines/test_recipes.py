"""The scripts of the recipes: what they print, and how few lines the term adds."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "book" / "_includes"


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_six_lines_turn_a_trainer_script_into_one_with_imm(tmp_path, capsys):
    pytest.importorskip("transformers")
    source = (SCRIPTS / "train_hf.py").read_text(encoding="utf-8")
    assert sum("# IMM" in line for line in source.splitlines()) <= 6
    plain = "".join(line for line in source.splitlines(True) if "# IMM" not in line)
    plain = plain.replace("IMMTrainer", "transformers.Trainer").replace("bigram", "unused")
    assert "imm." not in plain  # nothing of the library is left without these lines
    short = source.replace("num_train_epochs=8", "num_train_epochs=1")
    script = tmp_path / "train_hf.py"
    script.write_text(short, encoding="utf-8")
    runpy.run_path(str(script), run_name="__main__")
    printed = capsys.readouterr().out
    assert 2 < float(re.search(r"held-out loss: ([\d.]+) nats", printed)[1]) < 3.7


def test_torchrun_prints_what_one_process_prints(monkeypatch, capsys):
    script = str(SCRIPTS / "train_lm.py")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "GLOO_SOCKET_IFNAME": "lo",
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(
        [*command, script], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_ADDR", "127.0.0.1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_PORT", "0")
    runpy.run_path(script, run_name="__main__")
    alone = capsys.readouterr().out
    numbers = [list(map(float, re.findall(r"\d\.\d+", text))) for text in (done.stdout, alone)]
    assert numbers[0] == pytest.approx(numbers[1], abs=2e-3) and len(numbers[0]) == 2
