"""Finished units become a result, or join a stored one of the same configuration."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from imm_lib import origin, results
from imm_lib.experiments.resume import identity

TOP = ("device", "versions", "commit", "created")
"""What a result says of all its units, but for those that say "made" of themselves."""


def check_numbers(value: Any, at: str) -> None:
    """Raise ValueError, naming the place, for what JSON has no form for."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{at} is {value}")
    if isinstance(value, dict):
        for name, item in value.items():
            check_numbers(item, f"{at}/{name}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            check_numbers(item, f"{at}/{index}")
    elif not isinstance(value, str | int | float | bool | None):
        raise ValueError(f"{at} is a {type(value).__name__}, of which JSON knows nothing")


def stored(name: str, where: Path | None, key: dict) -> dict | None:
    """The stored result that units can join; None where there is none.

    Raises:
        ValueError: it is of another configuration or seed than the key.
        ResultError: it is damaged.
    """
    if not results.path(name, where).is_file():
        return None
    found, key = results.load(name, where), json.loads(json.dumps(key))
    differing = [field for field in ("config", "seed") if found[field] != key[field]]
    if differing:
        raise ValueError(
            f"{name}.json is of another {', '.join(differing)}, so that nothing can be added: run "
            "it anew, or give another folder with --out"
        )
    return found


def _alike(made: dict, other: dict) -> bool:
    """Whether two were made by one program on one device; at another time, it may be."""
    told = [(m["device"], m["commit"], m["versions"].get("torch")) for m in (made, other)]
    return told[0] == told[1]


def joined(old: dict | None, said: dict, entries: list[dict], units: list[dict]) -> dict:
    """A result of finished units and those of a stored one, in the order of ``units``.

    Where units were not made alike, the result says what holds for the last of the new ones, and
    the others say "made" of themselves.

    Args:
        old: a stored result, or None.
        said: experiment, scale, config, seed, command and commit.
        entries: of the runner.
        units: that are declared; others are dropped.
    """
    if old is not None and not entries:
        return old
    found, peak = {}, [entry["peak_memory_bytes"] for entry in entries]
    top = {"device": entries[-1]["device"], "commit": said["commit"], "created": origin.now()}
    top["versions"] = {name: word for entry in entries for name, word in entry["versions"].items()}
    if old is not None:
        peak.append(old["peak_memory_bytes"])
        if _alike(old, top):
            top["versions"] = old["versions"] | top["versions"]
        for entry in old["units"]:
            made = entry.get("made", {field: old[field] for field in TOP})
            rest = {key: value for key, value in entry.items() if key != "made"}
            found[identity(entry["unit"])] = rest | ({} if _alike(made, top) else {"made": made})
    for entry in entries:
        rest = {key: entry[key] for key in ("unit", "numbers", "wall_s")}
        if entry["device"] != top["device"]:
            rest["made"] = {**top, "device": entry["device"]}
        found[identity(entry["unit"])] = rest
    kept = [found[identity(unit)] for unit in units if identity(unit) in found]
    return {
        "schema": results.SCHEMA_VERSION,
        **said,
        "units": kept,
        "wall_s": round(sum(entry["wall_s"] for entry in kept), 3),
        "peak_memory_bytes": max(peak),
        **top,
    }
