"""What a run keeps beside its output, under a lock: finished units, and checkpoints of begun
ones.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from imm_lib import results
from imm_lib.experiments.resume import identity

PARTIAL = ".partial"
ENTRY = {"unit", "numbers", "wall_s", "device", "versions", "peak_memory_bytes"}
"""What is kept of a finished unit."""


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
        handle.close()
        with contextlib.suppress(OSError):  # the last one leaves no empty folder
            lock.parent.rmdir()


def _acquire(lock: Path) -> IO[bytes] | None:
    """An open file that holds the lock; None if it went while it was waited for."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError), contextlib.ExitStack() as closing:
        handle = closing.enter_context(lock.open("ab"))
        with contextlib.suppress(ImportError):  # Windows has no such locks
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(handle.fileno()), lock.stat()):
            closing.pop_all()
            return handle
    return None


def write(where: Path, name: str, key: dict, entries: list[dict]) -> None:
    """Keep the finished units of a run, whole or as they were."""
    results.write_json(file(where, name), {**key, "units": entries})


def _are_entries(units: object) -> bool:
    return isinstance(units, list) and all(
        isinstance(entry, dict) and entry.keys() >= ENTRY for entry in units
    )


def resumed(
    where: Path, name: str, key: dict, resume: bool, anew: bool, count: int
) -> dict[str, dict]:
    """The finished units of an interrupted run that this one goes on with, by their identity.

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
        return {}
    except results.ResultError:
        if not resume:
            return {}
        raise
    if not isinstance(partial, dict) or not _are_entries(partial.get("units")):
        if not resume:
            return {}
        raise results.ResultError(
            f"{kept.name}: not what an interrupted run leaves; run without --resume"
        )
    differing = [field for field in key if partial.get(field) != key[field]]
    if resume and differing:
        raise ValueError(
            f"resume: {kept.name} was begun with another {', '.join(differing)}; run without "
            "--resume to begin anew"
        )
    found = {identity(entry["unit"]): entry for entry in partial["units"]}
    if not (resume or anew or differing) and 0 < len(found) < count:
        raise ValueError(
            f"{kept.name}: an interrupted run has finished {len(found)} of {count} units; go on "
            "with --resume, or discard them with --anew"
        )
    return found if resume else {}


def clean(
    where: Path, name: str, wanted: set[str], resume: bool = False, anew: bool = False
) -> None:
    """Delete the checkpoints of ``name``, but for the wanted ones of a run that is resumed.

    Raises:
        ValueError: there are wanted ones, and neither ``resume`` nor ``anew`` is asked for.
    """
    folder = where / PARTIAL / name
    left = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    if left & wanted and not (resume or anew):
        raise ValueError(
            f"{name}: an interrupted run has begun {len(left & wanted)} of these units; go on with "
            "--resume, or discard them with --anew"
        )
    for stale in left - (wanted if resume else set()):
        shutil.rmtree(folder / stale, ignore_errors=True)
    with contextlib.suppress(OSError):
        folder.rmdir()
