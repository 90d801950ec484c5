"""What pytest wants at the root: `pytester`, which runs pytest inside a test, and the helpers with assertions, which
several directories import.
"""

import gc
import os

import hypothesis  # noqa: F401 - looks for referrers when it is imported, and would not find those that are exempt
import pytest

pytest_plugins = ["pytester"]

pytest.register_assert_rewrite("tests.conformance.wire", "tests.conformance.servers", "tests.conformance.origins")


def pytest_collection_finish():
    """Exempt what pytest has collected from garbage collection: with all tests, a walk over it takes a second."""
    gc.collect()
    gc.freeze()


def pytest_xdist_auto_num_workers():
    """Return how many processes `--numprocesses auto` starts: half as many again as there are cores, because many tests
    wait for servers that they have started.
    """
    cores = os.cpu_count() or 1
    return cores + (cores + 1) // 2
