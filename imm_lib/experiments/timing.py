"""How time and memory are measured: ratios in one process, alternating, medians; live tensor bytes
at their peak.
"""

import ctypes
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from imm_lib import checks, data

T = TypeVar("T")


def tokens() -> tuple[Tensor, int]:
    """Penn Treebank training tokens and vocabulary size; without that data, tokens of Zipf's
    law.
    """
    if data.available("ptb"):
        corpus = data.load("ptb")
        return corpus.train, len(corpus.vocab)
    generator = torch.Generator().manual_seed(0)
    zipf = 1 / torch.arange(1, 10_001, dtype=torch.float64)
    return torch.multinomial(zipf, 929_589, replacement=True, generator=generator), 10_000


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def compare(
    works: Mapping[str, Callable[[], object]], repeats: int = 9, device: str | torch.device = "cpu"
) -> dict[str, float]:
    """Median seconds of each piece of work, run in turns so that a change of the machine's mood
    meets all alike.

    Args:
        works: functions of no argument by name. Each runs once before the clock starts.
        repeats: rounds, at least 1.
        device: waited for before and after each piece of work.

    Returns:
        Median wall-clock seconds by name.

    Raises:
        TypeError, ValueError: for bad ``repeats`` or no work.
    """
    checks.count("repeats", repeats)
    if not works:
        raise ValueError("works must hold at least one function, got none")
    device = torch.device(device)
    for work in works.values():
        work()
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            seconds[name].append(_seconds(work, device))
    return {name: statistics.median(values) for name, values in seconds.items()}


def _keep_memory(threads: int) -> None:
    """Then glibc returns no freed memory to the system; other C libraries stay as they are."""
    torch.set_num_threads(threads)
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    most_mapped, trim_threshold = -4, -1  # as malloc.h numbers them
    mallopt(most_mapped, 0)
    mallopt(trim_threshold, 2**31 - 1)


def with_memory_kept(work: Callable[..., T], *args: object) -> T:
    """What ``work`` returns in a process of its own that keeps the memory it has once had.

    By default the C library returns large tensors to the system, and what is new costs the time of
    its pages: a fifth to a quarter of a training step, as chance has it. A ratio without that
    time says more about the work itself. The first rounds of a work still get new pages.

    Args:
        work: a function that can be pickled, as its arguments and its result can.
        args: of ``work``.
    """
    context, threads = get_context("spawn"), torch.get_num_threads()
    with ProcessPoolExecutor(1, context, _keep_memory, (threads,)) as pool:
        return pool.submit(work, *args).result()


def peak_bytes(work: Callable[[], object], device: str | torch.device = "cpu") -> int:
    """Bytes of tensors alive at the peak of ``work``, above what was alive before; exact and
    repeatable.

    Counted by the allocator on CUDA, from the profiler's allocation events on a CPU. ``work`` runs
    twice: what it keeps from its first run (gradients, optimiser states) belongs to what was there
    before.
    """
    device = torch.device(device)
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        work()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        record.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    events = sorted((e for e in events if e.get("name") == "[memory]"), key=lambda e: e["ts"])
    alive = peak = 0
    for event in events:
        alive += event["args"]["Bytes"]
        peak = max(peak, alive)
    return peak
