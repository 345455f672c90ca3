"""What every test shares: reproducible property tests, and a clear skip where a data set is not on
this machine.
"""

import pytest
import torch.distributed as dist
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


@pytest.fixture
def one_rank():
    """A process group of this process alone: everything that several ranks do, by one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()
