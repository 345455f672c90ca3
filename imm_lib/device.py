"""Where tensors are made: the best device of the machine, or the one that ``IMM_DEVICE`` names.

A function of the library computes where its tensors are. Only the code that makes them, a chapter
or an experiment, asks for a device.
"""

import os

import torch

VARIABLE = "IMM_DEVICE"


def count(kind: str) -> int:
    """How many devices of a kind, "cpu", "cuda" or "mps", this machine has; 0 of any other kind."""
    if kind == "cuda":
        return torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "mps":
        return int(torch.backends.mps.is_available())
    return int(kind == "cpu")


def find(name: str | torch.device, argument: str = "device") -> torch.device:
    """The device "cpu", "cuda", "cuda:1", "mps" or a device of torch; raises ValueError, calling it
    ``argument``, where it is another or this machine does not have it.
    """
    try:
        found = torch.device(name)
    except (RuntimeError, TypeError):
        found = None
    if found is None or found.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"{argument} must be cpu, cuda, cuda:N or mps, got {str(name)!r}")
    there = count(found.type)
    if (found.index or 0) >= there:
        raise ValueError(
            f"{argument} must be a device of this machine, got {str(name)!r} "
            f"with {there} of that kind"
        )
    return found


def device() -> torch.device:
    """What ``IMM_DEVICE`` names, else CUDA where there is one, else MPS, else the CPU.

    MPS knows no float64. Contexts, estimators and baselines compute in float32 there (among more
    than 2^24 data points of one short context a draw does not reach all); what needs float64, such
    as worth, premise and fitting a bigram, says so and asks for ``IMM_DEVICE=cpu``.

    Raises:
        ValueError: ``IMM_DEVICE`` is not the name of a device, or this machine does not have it.
    """
    if named := os.environ.get(VARIABLE, "").strip():
        return find(named, VARIABLE)
    return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if count(kind)))


def allocations(where: torch.device) -> int:
    """How many pieces of memory have been taken on a device since the process began; a change tells
    that tensors were made there. 0 on a CPU.
    """
    if where.type == "cuda":
        return torch.cuda.memory_stats(where).get("allocation.all.allocated", 0)
    return torch.mps.driver_allocated_memory() if where.type == "mps" else 0
