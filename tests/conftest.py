"""What pytest wants at the root: `pytester`, which runs pytest inside a test, and the helpers with assertions, which
several directories import.
"""

import gc

import hypothesis  # noqa: F401 - looks for referrers when it is imported, and would not find those that are exempt
import pytest

pytest_plugins = ["pytester"]

pytest.register_assert_rewrite("tests.conformance.wire", "tests.conformance.servers", "tests.conformance.origins")


def pytest_collection_finish():
    """Exempt what pytest has collected from garbage collection: with all tests, a walk over it takes a second."""
    gc.collect()
    gc.freeze()
