"""Results of runs: one JSON file per experiment, checked against a schema, written whole or not at
all.
"""

import hashlib
import json
import math
import os
import platform
import re
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

SCHEMA_VERSION = 1
_TEXT, _NUMBER, _OBJECT = {"type": "string"}, {"type": "number"}, {"type": "object"}
SCHEMA = {
    "type": "object",
    "required": [
        "schema",
        "experiment",
        "scale",
        "config",
        "seed",
        "units",
        "device",
        "versions",
        "wall_s",
        "peak_memory_bytes",
        "commit",
        "command",
        "created",
    ],
    "additionalProperties": False,
    "properties": {
        "schema": {"const": SCHEMA_VERSION},
        "experiment": _TEXT,
        "scale": _TEXT,
        "config": _OBJECT,
        "seed": {"type": "integer"},
        "units": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["unit", "numbers", "wall_s"],
                "additionalProperties": False,
                "properties": {"unit": _OBJECT, "numbers": _OBJECT, "wall_s": _NUMBER},
            },
        },
        "device": _TEXT,
        "versions": {"type": "object", "additionalProperties": _TEXT},
        "wall_s": _NUMBER,
        "peak_memory_bytes": {"type": "integer", "minimum": 0},
        "commit": _TEXT,
        "command": _TEXT,
        "created": _TEXT,
    },
}


class ResultError(RuntimeError):
    """A stored result is missing, damaged or of another form; the message names the file and the
    field.
    """


def folder() -> Path:
    """Where results lie: ``IMM_RESULTS``, else the checkout's book/results, else ./results."""
    if named := os.environ.get("IMM_RESULTS"):
        return Path(named)
    root = Path(__file__).resolve().parent.parent
    return root / "book" / "results" if (root / "_config.yml").is_file() else Path("results")


def path(name: str, where: Path | None = None) -> Path:
    """The file of a result; raises ValueError for a name that is not letters, digits and hyphens."""
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
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def check(value: Any, where: str = "result") -> dict:
    """``value``, if it has the form of a result; raises ResultError naming ``where`` and the field."""
    try:
        import jsonschema
    except ImportError as error:
        raise ImportError(
            "reading results needs jsonschema: pip install 'imm_lib[experiments]'"
        ) from error
    problem = next(iter(jsonschema.Draft202012Validator(SCHEMA).iter_errors(value)), None)
    if problem is not None:
        field = "/".join(str(part) for part in problem.absolute_path) or "top level"
        raise ResultError(f"{where}: {field}: {problem.message[:200]}")
    return value


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

    try:
        return json.loads(file.read_text(encoding="utf-8"), parse_constant=refuse)
    except ValueError as error:  # of the decoding and of JSON alike
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
        raise ResultError(f"no result {file.name}: {again}") from None
    for field, expected in (("experiment", base), ("scale", scale)):
        if value[field] != expected:
            raise ResultError(f"{file.name}: {field}: must be {expected!r}, got {value[field]!r}")
    return value


def provenance(device: torch.device) -> dict:
    """What a result owes its reader: versions, device, machine, time, and the peak memory of the
    process, bytes.
    """
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"cpu, {torch.get_num_threads()} threads"
    )
    return {
        "device": name,
        "versions": {
            **{"python": platform.python_version(), "torch": torch.__version__},
            **{"system": platform.system(), "machine": _machine()},
        },
        "peak_memory_bytes": _peak_memory(device),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _machine() -> str:
    """The processor's name where the system tells it, else its kind; and how many cores it lends."""
    file = Path("/proc/cpuinfo")
    told = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    names = [line.partition(":")[2].strip() for line in told if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows has no getrusage
        return 0
    unit = (
        1 if sys.platform == "darwin" else 1024
    )  # ru_maxrss is in bytes there and in kibibytes elsewhere
    who = (
        resource.RUSAGE_SELF,
        resource.RUSAGE_CHILDREN,
    )  # the largest process, where units ran in their own
    return max(resource.getrusage(w).ru_maxrss for w in who) * unit


def commit() -> str:
    """The checkout's commit, with -dirty where files of the library differ from it; "unknown"
    outside a checkout.
    """
    root = Path(__file__).resolve().parent.parent
    try:
        git = ["git", "-C", str(root)]
        head = subprocess.run(
            [*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True
        )
        dirty = subprocess.run(
            [*git, "status", "--porcelain", "imm_lib"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("-dirty" if dirty.stdout.strip() else "")


def code() -> str:
    """A digest of the library's source: what --resume compares, so that no result joins units of
    two programs.
    """
    root = Path(__file__).resolve().parent
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def finite(value: float) -> float | str:
    """A number as JSON can hold it: itself, or "inf", "-inf", "nan" in words."""
    return value if math.isfinite(value) else str(value)


def mean_interval(values: torch.Tensor | list[float]) -> tuple[float, float]:
    """Mean of repetitions and half the width of its 95 % interval by Student's t; paired runs give
    their differences.

    Args:
        values: (R,) numbers, R at least 2.

    Raises:
        ValueError: fewer than two, or more than one dimension.

    >>> mean, half = mean_interval([1.0, 2.0, 3.0])
    >>> round(mean, 3), round(half, 3)
    (2.0, 2.484)
    """
    from scipy.stats import t as student

    values = torch.as_tensor(values, dtype=torch.float64)
    if values.dim() != 1 or len(values) < 2:
        raise ValueError(f"values must be (R,) with R at least 2, got shape {tuple(values.shape)}")
    half = student.ppf(0.975, len(values) - 1) * values.std().item() / math.sqrt(len(values))
    return values.mean().item(), float(half)
