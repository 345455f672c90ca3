"""Units in order of worth, of which the next one is the first that can still end in time."""

from __future__ import annotations

import time
from dataclasses import dataclass

from imm_lib.experiments.catalogue import find
from imm_lib.experiments.runner import Task, work

UNKNOWN = 60.0
"""Seconds that must be left for a unit of which nothing has been measured yet."""


@dataclass(frozen=True)
class Item:
    """A unit in the queue.

    Attributes:
        kind: units of one kind take equally long.
        task: for the worker.
        how: in what a language model computes, a name of ``language.training.WAYS``.
        after: a kind that must have been done before.
    """

    kind: str
    task: Task
    how: str = "bfloat16"
    after: str = ""


class Queue:
    """Items in order of worth; the next one is the first that can still end.

    Args:
        items: in order.
        end: on the clock of ``time.monotonic``.
        seconds: predictions by kind, which grow by what is measured.
    """

    def __init__(self, items: list[Item], end: float, seconds: dict[str, float]):
        self.items, self.end, self.seconds = list(items), end, dict(seconds)
        self.done: set[str] = set()

    def __iter__(self) -> Queue:
        return self

    def __next__(self) -> Item:
        left = self.end - time.monotonic()
        for place, item in enumerate(self.items):
            known = self.seconds.get(item.kind, UNKNOWN)
            if known <= left and (not item.after or item.after in self.done):
                return self.items.pop(place)
        raise StopIteration

    def measured(self, item: Item, seconds: float) -> None:
        """Learn from an item that is done how long its kind takes."""
        before = self.seconds.get(item.kind, 0.0) if item.kind in self.done else 0.0
        self.seconds[item.kind] = max(before, seconds)
        self.done.add(item.kind)


def attempt(item: Item) -> dict | str:
    """The item's entry, computed in its way in a process of its own, or in words why there is none:
    the others go on.
    """
    from imm_lib.experiments.language.training import way

    try:
        with way(item.how):
            return work(find(item.task.experiment), item.task)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
