"""Commands killed at any moment lose nothing; and the tool that says so notices where they
would.
"""

import subprocess
import sys
import time
from pathlib import Path

import kills
import pytest

ROOT = Path(__file__).parents[1]
OLD, NEW = {"a": b"old", "b": None}, {"a": b"new" * 1000, "b": b"other" * 1000}


def whole(folder):
    for name, content in NEW.items():
        unfinished = folder / f".{name}"
        unfinished.write_bytes(content)
        time.sleep(0.02)
        unfinished.rename(folder / name)


def half(folder):
    for name, content in NEW.items():
        with (folder / name).open("wb") as stream:
            stream.write(content[:500])
            stream.flush()
            time.sleep(0.05)
            stream.write(content[500:])


def losing(folder):
    (folder / "a").write_bytes(OLD["a"])
    time.sleep(0.05)  # a kill falls here on a busy machine too
    whole(folder)


def leaving(folder):
    (folder / f".{time.time_ns()}").touch()
    whole(folder)


@pytest.mark.parametrize(
    ("act", "wrong"), [(whole, None), (half, "half_written"), (losing, "lost"), (leaving, "left")]
)
def test_what_is_wrong_is_counted(act, wrong):
    tally = kills.count(kills.of_files(OLD, NEW, act), kills=12, seed=0)
    assert tally.counts["kills"] == 12 and tally.counts["finished"] > 0
    for name in ("half_written", "lost", "left"):
        assert (tally.counts[name] > 0) == (name == wrong), (name, tally.said)
    assert bool(tally.said) == (wrong is not None)


def test_a_command_that_fails_is_no_command():
    with pytest.raises(RuntimeError, match="a command failed"):
        kills.count(kills.of_files(OLD, NEW, lambda folder: 1 / 0), kills=1, seed=0)


def test_nothing_is_lost_by_a_kill():
    """One kill of each command; ``make kills`` does fifty and stores the counts."""
    command = [sys.executable, ROOT / "tests" / "tools" / "kills.py", "--kills", "1", "--no-keep"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split()[:2] for line in done.stdout.splitlines()[1:]] == [
        [name, "1"] for name in ("run", "rerun", "pages", "download")
    ]
