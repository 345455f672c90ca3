"""What every test shares: reproducible property tests, and a clear skip where a data set is not on this machine."""

import pytest
from hypothesis import settings

import imm_lib as imm

settings.register_profile("gate", derandomize=True, deadline=None, max_examples=50)
settings.load_profile("gate")


def absent(name: str) -> str:
    """Why a test or chapter that needs the data set is skipped; empty when the data is here. Nothing is downloaded."""
    if imm.data.available(name):
        return ""
    return f"needs the {name} data, which is not on this machine: set IMM_DATA to a folder that holds {name}/"


def pytest_collection_modifyitems(items):
    for item in items:
        for marker in item.iter_markers("needs_data"):
            for name in marker.args:
                if reason := absent(name):
                    item.add_marker(pytest.mark.skip(reason=reason))
