"""What a stored result owes its reader: device, versions, machine, time, memory and commit."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def provenance(device: torch.device) -> dict:
    """What a result owes its reader: versions, device, machine, time, and the peak memory of the
    process, bytes.
    """
    return {
        "device": device_name(device),
        "versions": versions(),
        "peak_memory_bytes": peak_memory(device),
        "created": now(),
    }


def device_name(device: torch.device) -> str:
    """What a device is called: a GPU by its product, a CPU with the threads that torch uses."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return device.type if device.type != "cpu" else f"cpu, {torch.get_num_threads()} threads"


NAMED = {"sklearn": "scikit-learn", "scipy": "scipy", "transformers": "transformers", "ot": "POT"}
"""Packages whose versions are stored where they were imported, by the name of the import."""


def versions() -> dict[str, str]:
    """Of Python, torch, the system and the machine, and of each imported package of NAMED."""
    import torch

    found = {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "system": platform.system(),
        "machine": _machine(),
    }
    for module, package in NAMED.items():
        if version := getattr(sys.modules.get(module), "__version__", None):
            found[package] = str(version)
    return found


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _machine() -> str:
    """The processor's name where the system tells it, else its kind; how many cores it lends."""
    file = Path("/proc/cpuinfo")
    told = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    names = [line.partition(":")[2].strip() for line in told if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"


def peak_memory(device: torch.device) -> int:
    """Bytes: the allocator's peak on a GPU, else the largest process, this one or a child of it."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows has no getrusage
        return 0
    # ru_maxrss is in bytes on macOS and in kibibytes elsewhere
    unit = 1 if sys.platform == "darwin" else 1024
    # the largest process, where units ran in their own
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(w).ru_maxrss for w in who) * unit


def commit() -> str:
    """The checkout's commit, with -dirty where files of the library differ from it; outside a
    checkout what ``IMM_COMMIT`` says, else "unknown".
    """
    root = Path(__file__).resolve().parent.parent
    git = ["git", "-C", str(root)]
    try:
        told = subprocess.run(
            [*git, "rev-parse", "--show-toplevel", "--short=12", "HEAD"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        top, head = told.splitlines()
        dirty = subprocess.run(
            [*git, "status", "--porcelain", "imm_lib"], capture_output=True, text=True, check=True
        )
    except (OSError, ValueError, subprocess.CalledProcessError):
        top = ""
    if not top or Path(top).resolve() != root:  # installed below some other repository
        return os.environ.get("IMM_COMMIT") or "unknown"
    return head + ("-dirty" if dirty.stdout.strip() else "")
