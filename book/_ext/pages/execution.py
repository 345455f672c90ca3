"""What everything costs: the book's execution page, from what ``make rerun NOTE=1`` noted and the
stored results.
"""

from collections import Counter

from imm_lib import experiments, results

_HEAD = """# Execution

What it takes to make this book again. Both tables are generated from stored measurements by
`make pages`; a test makes the page anew and compares.

## Chapters

Seconds of wall time and the largest memory of the kernel, of the last `make rerun NOTE=1`, on one
thread of a CPU. The gate executes every chapter again and compares what it prints. On a machine
with a GPU `make test IMM_DEVICE=cuda` executes them there, with all their assertions, and
`make rerun IMM_DEVICE=cuda` says which cells print otherwise; the outputs in the book are a CPU's.

| chapter | seconds | memory, MiB | Python | torch | system | machine |
|---|---|---|---|---|---|---|
"""

_RUNS = """
## Experiments

Stored runs at full scale. Wall time is that of the units one after another, memory that of the
largest process. Several runs shared the machine's two cores, so that a time is an upper bound and
no benchmark; those are made by `make bench`. The device is where a run's tensors were, whatever was
asked for. {where}

| experiment | units | wall time | memory, MiB | device | torch | date | commit |
|---|---|---|---|---|---|---|---|
"""


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever a reader would say."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def devices(result: dict) -> str:
    """Where the units of a result were computed; with how many on each, if not all on one."""
    made = [entry.get("made", result)["device"] for entry in result["units"]]
    count = Counter(name.replace(" 1 threads", " 1 thread") for name in made)
    if len(count) == 1:
        return next(iter(count))
    return "; ".join(f"{name}: {units} units" for name, units in count.items())


def _where(found: list[dict]) -> str:
    """How many of the stored results a GPU had a part in."""
    gpu = sum("cpu" not in part for result in found for part in [devices(result)])
    mixed = sum("; " in devices(result) and "cpu" in devices(result) for result in found)
    if gpu + mixed == 0:
        return f"All {len(found)} stored results were computed on a CPU, none on a GPU."
    return f"Of {len(found)} stored results {gpu} were computed on a GPU and {mixed} in part."


def _chapter(name: str, spent: dict) -> str:
    versions = spent["versions"]
    cells = [f"{spent['seconds']:.0f}", f"{spent['peak_memory_bytes'] / 2**20:.0f}"]
    cells += [
        *(versions[k] for k in ("python", "torch", "system")),
        versions.get("machine", "not noted"),
    ]
    return f"| [{name}]({name}.ipynb) | " + " | ".join(cells)


def stored(name: str) -> dict | None:
    """A stored result, None where it was not run; raises ResultError for a damaged one, which is
    not the same.
    """
    try:
        return results.load(name)
    except results.ResultError:
        if results.path(name).exists():
            raise
        return None


def _run(name: str) -> str:
    if (result := stored(name)) is None:
        return f"| `{name}` | not run | | | | | |"
    wall = duration(sum(entry["wall_s"] for entry in result["units"]))
    memory = f"{result['peak_memory_bytes'] / 2**20:.0f}"
    cells = [str(len(result["units"])), wall, memory, devices(result), result["versions"]["torch"]]
    return f"| `{name}` | " + " | ".join([*cells, result["created"][:10], result["commit"]])


def page() -> str:
    """The page as MyST Markdown; the same measurements give the same bytes."""
    spent = results.read_json(results.folder().parent / "chapters.json")
    rows = [f"{_chapter(name, found)} |\n" for name, found in sorted(spent.items())]
    runs = [f"{_run(name)} |\n" for name in experiments.registry()]
    there = [result for name in experiments.registry() if (result := stored(name)) is not None]
    return _HEAD + "".join(rows) + _RUNS.format(where=_where(there)) + "".join(runs)
