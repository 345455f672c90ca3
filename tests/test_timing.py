"""What the benchmarks measure with: live bytes are exact, and pieces of work are run in turns."""

import platform
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
import torch

from imm_lib.experiments.timing import compare, peak_bytes, with_memory_kept

MILLION = 4 * 1000 * 1000  # bytes of a float32 square of side 1000


@pytest.mark.parametrize(("hold", "expected"), [(1, 1), (3, 3)])
def test_peak_bytes_counts_what_is_alive_at_once(hold, expected):
    def work():
        kept = [torch.full((1000, 1000), 1.0) for _ in range(hold)]
        kept.clear()
        torch.full((1000, 1000), 2.0)

    assert abs(peak_bytes(work) - expected * MILLION) < 1000


def test_peak_bytes_sees_what_autograd_keeps():
    x = torch.ones(1000, 1000, requires_grad=True)

    def chain(length):
        y = x
        for _ in range(length):
            y = y.exp()  # keeps its result
        return y.sum()

    short, long = peak_bytes(lambda: chain(2)), peak_bytes(lambda: chain(6))
    assert abs(long - short - 4 * MILLION) < 1000


def test_works_take_turns():
    order = []
    seconds = compare({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, repeats=3)
    assert order == ["a", "b"] * 4  # one round before the clock starts
    assert set(seconds) == {"a", "b"} and min(seconds.values()) >= 0


def new_pages(size):
    """(first time, last time) pages that the system hands out for a tensor of ``size`` bytes. The
    heap grows for about six rounds, until every aligned tensor finds a hole that holds it.
    """
    import resource

    found = []
    for _ in range(20):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(size, dtype=torch.uint8)
        found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return found[0], found[-1]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library: not asked to")
def test_memory_kept_is_used_again_without_new_pages():
    first, last = with_memory_kept(new_pages, 32 * 2**20)
    assert first > 1000 and last < first / 10
    # Not so in another new process. In this one, a hole may be there since an earlier test.
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        usual, again = pool.submit(new_pages, 32 * 2**20).result()
    assert usual > 1000 and again > usual / 2


def test_bad_input():
    with pytest.raises(ValueError, match="repeats must be at least 1"):
        compare({"a": lambda: None}, repeats=0)
    with pytest.raises(ValueError, match="works must hold at least one"):
        compare({})
