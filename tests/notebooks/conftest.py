"""How nbval re-executes the chapters: what is compared, which data a chapter needs, how long it may
take.
"""

import os
import time

import nbformat
import pytest
import surroundings
from needs import absent

SECONDS_PER_NOTEBOOK = 300
# Streams to stderr differ between machines; a picture's claim is asserted in its cell instead of
# comparing pixels.
NOT_COMPARED = ("stderr", "image/svg+xml", "text/html")


class Chapters:
    """A plugin, because the notebooks lie outside this folder, where a conftest's hooks do not
    reach.
    """

    def __init__(self):
        self.spent = {}

    def pytest_collectstart(self, collector):
        if hasattr(collector, "skip_compare"):
            collector.skip_compare += NOT_COMPARED

    def pytest_collection_modifyitems(self, items):
        for item in items:
            if item.path.suffix == ".ipynb":
                needs = (
                    nbformat.read(item.path, as_version=4).metadata.get("imm", {}).get("needs", [])
                )
                if reason := absent(needs):
                    item.add_marker(pytest.mark.skip(reason=reason))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item):
        if self.spent.get(item.path, 0) > SECONDS_PER_NOTEBOOK:
            pytest.fail(
                f"{item.path.name} has run for more than {SECONDS_PER_NOTEBOOK} s", pytrace=False
            )
        start = time.perf_counter()
        try:
            return (yield)
        finally:
            self.spent[item.path] = self.spent.get(item.path, 0) + time.perf_counter() - start


def pytest_configure(config):
    surroundings.settle(os.environ)
    config.pluginmanager.register(Chapters(), "imm-chapters")
