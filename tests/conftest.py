"""What every test shares: reproducible property tests, and a clear skip where a data set is not on
this machine.
"""

import pytest
from hypothesis import settings
from needs import absent

settings.register_profile("gate", derandomize=True, deadline=None, max_examples=50)
settings.load_profile("gate")


def pytest_collection_modifyitems(items):
    for item in items:
        if reason := absent(
            [name for marker in item.iter_markers("needs_data") for name in marker.args]
        ):
            item.add_marker(pytest.mark.skip(reason=reason))
