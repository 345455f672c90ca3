"""A progress bar, with tqdm where it is installed and one line a minute where it is not."""

from __future__ import annotations

import sys
import time
from typing import Any

SECONDS = 60
"""Between two lines of the plain bar."""


class Plain:
    """As much of tqdm's bar as is used here, in lines on stderr."""

    def __init__(
        self,
        total: int,
        initial: int = 0,
        desc: str = "",
        unit: str = "it",
        leave: bool = True,
        disable: bool | None = False,
    ):
        self.total, self.done, self.desc, self.unit, self.leave = total, initial, desc, unit, leave
        self.silent = not sys.stderr.isatty() if disable is None else disable
        self.last, self.more = time.monotonic(), ""

    def __enter__(self) -> Plain:
        return self

    def __exit__(self, *_: object) -> None:
        if self.leave:
            self._say()

    def update(self, count: int = 1) -> None:
        """So many more are done."""
        self.done += count
        if time.monotonic() - self.last > SECONDS:
            self._say()

    def set_postfix(self, **values: object) -> None:
        """What else the next line says."""
        self.more = "".join(f", {name} {value}" for name, value in values.items())

    def _say(self) -> None:
        self.last = time.monotonic()
        if not self.silent:
            head = f"{self.desc}: " if self.desc else ""
            print(f"{head}{self.done}/{self.total} {self.unit}{self.more}", file=sys.stderr)


def bar(total: int, **options: Any) -> Any:
    """A bar over ``total`` units, with the arguments and the methods of ``tqdm.tqdm``."""
    try:
        from tqdm import tqdm
    except ImportError:
        return Plain(total, **options)
    return tqdm(total=total, **options)
