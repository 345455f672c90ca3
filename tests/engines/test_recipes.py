"""The scripts of the recipes: what they print, and how few lines the term adds."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "book" / "_includes"


def printed(command, folder):
    """What a script prints when it is run as a user would, from another folder; no warning."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "GLOO_SOCKET_IFNAME": "lo",
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(
        [sys.executable, *command],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, done.stderr
    return done.stdout


def test_six_lines_turn_a_trainer_script_into_one_with_imm(tmp_path):
    pytest.importorskip("transformers")
    script = SCRIPTS / "train_hf.py"
    lines = script.read_text(encoding="utf-8").splitlines(keepends=True)
    assert sum("# IMM" in line for line in lines) == 6
    plain = [
        line if "# IMM" not in line else "trainer = transformers.Trainer(\n"
        for line in lines
        if "# IMM" not in line or line.startswith("trainer")
    ]
    assert not re.search(r"imm\.|IMM[A-Z]|\bterm\b", "".join(plain[1:]))
    (tmp_path / "plain.py").write_text("".join(plain), encoding="utf-8")
    pattern = r"held-out loss: ([\d.]+) nats"
    losses = [
        float(re.search(pattern, printed([str(file)], tmp_path))[1])
        for file in (script, tmp_path / "plain.py")
    ]
    assert 2 < losses[0] < losses[1] < 4


def test_torchrun_prints_what_one_process_prints(monkeypatch, capsys, tmp_path):
    script = str(SCRIPTS / "train_lm.py")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    joint = printed([*torchrun, script], tmp_path)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_ADDR", "127.0.0.1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_PORT", "0")
    runpy.run_path(script, run_name="__main__")
    alone = capsys.readouterr().out
    numbers = [list(map(float, re.findall(r"\d\.\d+", text))) for text in (joint, alone)]
    assert numbers[0] == pytest.approx(numbers[1], abs=2e-3) and len(numbers[0]) == 2
