"""Results of runs: one JSON file per experiment, checked against a schema, written whole or not at
all.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import re
import stat
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imm_lib import folders
from imm_lib.origin import commit, provenance

if TYPE_CHECKING:  # naming the experiments and their folder costs no import of torch
    import torch

__all__ = [
    "SCHEMA",
    "ResultError",
    "check",
    "commit",
    "folder",
    "load",
    "mean_interval",
    "path",
    "provenance",
    "read_json",
    "save",
    "write_bytes",
    "write_json",
]

SCHEMA_VERSION = 1
_TEXT, _NUMBER, _OBJECT = {"type": "string"}, {"type": "number"}, {"type": "object"}
_VERSIONS = {"type": "object", "additionalProperties": _TEXT}


def _record(required: dict[str, dict], optional: dict[str, dict] | None = None) -> dict[str, Any]:
    """The schema of an object that has these fields and no others."""
    return {
        "type": "object",
        "required": list(required),
        "additionalProperties": False,
        "properties": required | (optional or {}),
    }


_MADE = _record({"device": _TEXT, "versions": _VERSIONS, "commit": _TEXT, "created": _TEXT})
_UNIT = _record({"unit": _OBJECT, "numbers": _OBJECT, "wall_s": _NUMBER}, {"made": _MADE})
SCHEMA = _record(
    {
        "schema": {"const": SCHEMA_VERSION},
        "experiment": _TEXT,
        "scale": _TEXT,
        "config": _OBJECT,
        "seed": {"type": "integer"},
        "units": {"type": "array", "items": _UNIT},
        "device": _TEXT,
        "versions": _VERSIONS,
        "wall_s": _NUMBER,
        "peak_memory_bytes": {"type": "integer", "minimum": 0},
        "commit": _TEXT,
        "command": _TEXT,
        "created": _TEXT,
    }
)
"""Of a result, in the words of JSON Schema that :func:`check` knows. A unit has "made" where it was
made elsewhere than the result's own device, versions, commit and time say.
"""


class ResultError(RuntimeError):
    """A stored result is missing, damaged or of another form; the message names the file and the
    field.

    Attributes:
        folder: where a missing one was looked for, which a message in a chapter may not tell.
    """

    folder: Path | None = None


def folder() -> Path:
    """Where results lie: ``IMM_RESULTS``, else the checkout's book/results, else ./results."""
    if named := folders.named("IMM_RESULTS"):
        return named
    root = Path(__file__).resolve().parent.parent
    return root / "book" / "results" if (root / "_config.yml").is_file() else Path("results")


def path(name: str, where: Path | None = None) -> Path:
    """The file of a result; raises ValueError for a name that is not letters, digits and
    hyphens.
    """
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise ValueError(f"name must be lower-case letters, digits and hyphens, got {name!r}")
    return (where or folder()) / f"{name}.json"


def write_json(file: Path, value: object) -> None:
    """Write JSON by :func:`write_bytes`.

    Raises:
        ValueError: NaN or an infinite number, for which JSON has no form; nothing is then written.
    """
    write_bytes(
        file, (json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode()
    )


def write_bytes(file: Path, content: bytes) -> None:
    """Write beside ``file`` and move it there, so that a reader finds the old file or the new one,
    never a part.

    A new file has the mode that the umask leaves, an old one keeps its own; where ``file`` is a
    link, what it leads to is replaced. What a killed writer of the same file left beside it is
    removed.
    """
    file = Path(os.path.realpath(file))
    file.parent.mkdir(parents=True, exist_ok=True)
    _sweep(file)
    temporary = file.with_name(f"{_beside(file)}{os.getpid()}.{uuid.uuid4().hex[:8]}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        if file.exists():
            os.chmod(temporary, stat.S_IMODE(file.stat().st_mode))
        os.replace(temporary, file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _beside(file: Path) -> str:
    """How the names of this machine's unfinished copies of ``file`` begin."""
    machine = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
    return f".{file.name}.{machine}."


def _sweep(file: Path) -> None:
    """Remove the unfinished copies whose writers are no more."""
    begin = _beside(file)
    for left in file.parent.iterdir():
        if left.name.startswith(begin):
            process = left.name[len(begin) :].partition(".")[0]
            if process.isdigit() and not _alive(int(process)):
                left.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    if os.name != "posix":  # where a signal of number 0 is no question
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


def check(value: Any, where: str = "result") -> dict:
    """``value``, if it has the form of a result; raises ResultError naming ``where`` and the
    field.
    """
    _conform(value, SCHEMA, where, "")
    return value


_KINDS: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
}


def _conform(value: Any, schema: dict, where: str, at: str) -> None:
    """The part of JSON Schema that :data:`SCHEMA` uses; jsonschema is its slow twin in a test."""

    def refuse(problem: str) -> None:
        raise ResultError(f"{where}: {at or 'top level'}: {problem}")

    if "const" in schema:
        if value != schema["const"] or isinstance(value, bool):
            refuse(f"must be {schema['const']!r}, got {str(value)[:80]!r}")
        return
    kind = schema["type"]
    whole = kind == "integer" and isinstance(value, float) and value.is_integer()
    if not whole and (isinstance(value, bool) or not isinstance(value, _KINDS[kind])):
        refuse(f"must be of type {kind}, got {str(value)[:80]!r}")
    if "minimum" in schema and value < schema["minimum"]:
        refuse(f"must be at least {schema['minimum']}, got {value}")
    if kind == "array":
        for index, item in enumerate(value):
            _conform(item, schema["items"], where, f"{at}/{index}".lstrip("/"))
    if kind == "object":
        known, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        if missing := [name for name in schema.get("required", ()) if name not in value]:
            refuse(f"{missing[0]!r} is missing")
        for name, item in value.items():
            if name not in known and others is False:
                refuse(f"{name!r} was not expected")
            inner = known.get(name, others)
            if isinstance(inner, dict):
                _conform(item, inner, where, f"{at}/{name}".lstrip("/"))


def save(value: dict, name: str, where: Path | None = None) -> Path:
    """Check a result and write it; returns its file."""
    file = path(name, where)
    write_json(file, check(value, file.name))
    return file


def read_json(file: Path) -> object:
    """The value that a file holds.

    Raises:
        FileNotFoundError: there is no such file.
        ResultError: it is not UTF-8, not JSON, or holds NaN or an infinite number, which JSON has
            no form for.
    """

    def refuse(constant: str) -> None:
        raise ResultError(f"{file.name}: not JSON: {constant} is no number of that format")

    def real(digits: str) -> float:
        if not math.isfinite(found := float(digits)):
            refuse(digits)
        return found

    try:
        text = file.read_text(encoding="utf-8")
        return json.loads(text, parse_constant=refuse, parse_float=real)
    except (ValueError, RecursionError) as error:  # of the decoding and of JSON alike
        raise ResultError(f"{file.name}: not JSON: {error}") from None


def load(name: str, where: Path | None = None) -> dict:
    """A stored result.

    Raises:
        ResultError: there is none (the message has the command that makes it), it is damaged or of
            another form, or it is the result of another experiment or scale than its name says.
    """
    file = path(name, where)
    base, scale = (name.removesuffix("-ci"), "ci") if name.endswith("-ci") else (name, "full")
    try:
        value = check(read_json(file), file.name)
    except FileNotFoundError:
        again = f"python -m imm_lib run {base}" + (" --scale ci" if scale == "ci" else "")
        missing = ResultError(f"no result {file.name}: {again}")
        missing.folder = file.parent
        raise missing from None
    for field, expected in (("experiment", base), ("scale", scale)):
        if value[field] != expected:
            raise ResultError(f"{file.name}: {field}: must be {expected!r}, got {value[field]!r}")
    return value


def mean_interval(values: torch.Tensor | list[float]) -> tuple[float, float]:
    """Mean of repetitions and half the width of its 95 % interval by Student's t; paired runs give
    their differences.

    Args:
        values: (R,) numbers, R at least 2.

    Raises:
        ValueError: fewer than two, or more than one dimension.
        ImportError: scipy is not installed.

    >>> mean, half = mean_interval([1.0, 2.0, 3.0])
    >>> round(mean, 3), round(half, 3)
    (2.0, 2.484)
    """
    import torch

    try:
        from scipy.stats import t as student
    except ImportError as error:
        raise ImportError("an interval needs scipy: pip install 'imm_lib[experiments]'") from error
    values = torch.as_tensor(values, dtype=torch.float64)
    if values.dim() != 1 or len(values) < 2:
        raise ValueError(f"values must be (R,) with R at least 2, got shape {tuple(values.shape)}")
    half = student.ppf(0.975, len(values) - 1) * values.std().item() / math.sqrt(len(values))
    return values.mean().item(), float(half)
