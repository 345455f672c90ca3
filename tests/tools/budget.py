"""A pytest plugin of the mutation tests: a mutant is shown to the fastest tests that run its
function, so many that together they take ``BUDGET`` seconds.

A mutant that survives is run by all the tests it is given, and a function at the bottom is run by
almost every test; without a limit the survivors take most of the time.
"""

import json
import os
from pathlib import Path

BUDGET = 3.0


def pytest_collection_modifyitems(config, items):
    if "__mutmut_" not in os.environ.get("MUTANT_UNDER_TEST", ""):
        return  # the run that measures how long every test takes, and those that check it
    stats = json.loads(Path("mutmut-stats.json").read_text(encoding="utf-8"))
    seconds, spent, kept, left = stats["duration_by_test"], 0.0, [], []
    for item in sorted(items, key=lambda item: seconds.get(item.nodeid, 0.0)):
        (kept if spent < BUDGET else left).append(item)
        spent += seconds.get(item.nodeid, 0.0)
    if left:
        config.hook.pytest_deselected(items=left)
    items[:] = kept
