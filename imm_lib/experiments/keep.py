"""What a run keeps beside its output, under a lock: finished units, and how they join a result."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from imm_lib import results
from imm_lib.experiments.resume import identity

PARTIAL = ".partial"
TOP = ("device", "versions", "commit", "created")
"""What a result says of all its units, but for those that have it of their own."""


def file(where: Path, name: str) -> Path:
    """Where the finished units of a run of ``name`` are kept."""
    return where / PARTIAL / f"{name}.json"


@contextlib.contextmanager
def locked(where: Path, name: str) -> Iterator[None]:
    """Keep other processes from running ``name`` into the same folder; a kill of any kind frees it.

    Raises:
        ValueError: another run holds it, or the folder cannot be written.
    """
    lock, handle = where / PARTIAL / f"{name}.lock", None
    try:
        while handle is None:
            handle = _acquire(lock)
    except BlockingIOError:
        raise ValueError(
            f"{name} is being run into {where} by another process: wait for it, or give another "
            "folder with --out"
        ) from None
    except OSError as error:
        raise ValueError(
            f"out must be a folder that can be written, got {str(where)!r}: {error.strerror}"
        ) from None
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(handle)
        with contextlib.suppress(OSError):  # the last one leaves no empty folder
            lock.parent.rmdir()


def _acquire(lock: Path) -> int | None:
    """A handle that holds the lock; None if its file went while it was waited for."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    except FileNotFoundError:
        return None
    try:
        import fcntl
    except ImportError:  # Windows has no such locks
        return handle
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(handle), os.stat(lock)):
            return handle
    except FileNotFoundError:
        pass
    except OSError:
        os.close(handle)
        raise
    os.close(handle)
    return None


def resumed(where: Path, name: str, key: dict, resume: bool, anew: bool, count: int) -> list[dict]:
    """The finished units of an interrupted run that this one goes on with.

    Args:
        where, name: of the run.
        key: what both must agree in: configuration, seed, device and code.
        resume: go on with them.
        anew: discard them.
        count: units of a whole run.

    Raises:
        ValueError: they are of another key, or there are some and neither ``resume`` nor ``anew``
            is asked for.
        ResultError: the file is damaged.
    """
    kept = file(where, name)
    try:
        partial = results.read_json(kept)
    except FileNotFoundError:
        return []
    except results.ResultError:
        if not resume:
            return []
        raise
    whole = isinstance(partial, dict) and isinstance(partial.get("units"), list)
    if resume and not whole:
        raise results.ResultError(
            f"{kept.name}: not what an interrupted run leaves; run without --resume"
        )
    differing = [field for field in key if not whole or partial.get(field) != key[field]]
    if resume and differing:
        raise ValueError(
            f"resume: {kept.name} was begun with another {', '.join(differing)}; run without "
            "--resume to begin anew"
        )
    if not (resume or anew or differing) and 0 < len(partial["units"]) < count:
        raise ValueError(
            f"{kept.name}: an interrupted run has finished {len(partial['units'])} of {count} "
            "units; go on with --resume, or discard them with --anew"
        )
    return partial["units"] if resume else []


def clean(where: Path, name: str, wanted: set[str]) -> None:
    """Delete the checkpoints of ``name`` but for those in the wanted folders."""
    folder = where / PARTIAL / name
    for left in folder.iterdir() if folder.is_dir() else ():
        if left.name not in wanted:
            shutil.rmtree(left, ignore_errors=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def merged(old: dict, new: dict, units: list[dict]) -> dict:
    """A result with the units of two, in the order of ``units`` and, of both, those of the new one.

    Raises:
        ValueError: they are of another experiment, scale, configuration or seed.
    """
    differing = [f for f in ("experiment", "scale", "config", "seed") if old[f] != new[f]]
    if differing:
        raise ValueError(
            f"the stored result of {old['experiment']} is of another {', '.join(differing)}: move "
            "it away, or give another folder with --out"
        )
    top = {field: new[field] for field in TOP}
    found = {}
    for entry in old["units"]:
        made = entry.get("made", {field: old[field] for field in TOP})
        rest = {key: value for key, value in entry.items() if key != "made"}
        found[identity(entry["unit"])] = rest | ({} if made == top else {"made": made})
    found |= {identity(entry["unit"]): entry for entry in new["units"]}
    entries = [found[identity(unit)] for unit in units if identity(unit) in found]
    return new | {
        "units": entries,
        "wall_s": round(sum(entry["wall_s"] for entry in entries), 3),
        "peak_memory_bytes": max(old["peak_memory_bytes"], new["peak_memory_bytes"]),
    }
