"""`pytester` runs pytest inside a test; pytest wants it named at the root."""

pytest_plugins = ["pytester"]
