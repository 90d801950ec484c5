"""What pytest wants at the root: `pytester`, which runs pytest inside a test, and the helpers with assertions, which
several directories import.
"""

import pytest

pytest_plugins = ["pytester"]

pytest.register_assert_rewrite("tests.conformance.wire", "tests.conformance.servers", "tests.conformance.origins")
