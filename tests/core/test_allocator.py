"""Pieces of bodies come and go by the hundreds of kilobytes, and each should find the memory of those before."""

import platform
import subprocess
import sys

import pytest

#: how many pages the system had to make while pieces of a hundred bodies came and went, forty at once
CHILD = """
import resource, sys
if sys.argv[1] == "kept":
    from sticky_core.allocator import keep_what_is_freed
    keep_what_is_freed()
for bodies in range(120):
    if bodies == 20:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    pieces = [b"x" * 250_000 for _ in range(40)]
    del pieces
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator gives memory back, others' may not")
def test_what_one_body_was_kept_in_is_there_for_the_next():
    def pages(what):
        return int(subprocess.run([sys.executable, "-c", CHILD, what], capture_output=True, check=True).stdout)

    assert pages("given back") > 1000, "else there is nothing to be mended"
    assert pages("kept") < 100
