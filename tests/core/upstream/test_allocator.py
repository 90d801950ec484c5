"""Pieces of bodies come and go by the hundreds of kilobytes, and each should find the memory of those before."""

import platform
import subprocess
import sys
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="glibc's allocator gives memory back, others' may not"
)

MB = 1 << 20

#: Pieces of a hundred bodies come and go, so many at once: how many pages the system had to make meanwhile, and how
#: much memory they leave behind.
CHILD = """
import resource, sys
from pathlib import Path
size, at_once = map(int, sys.argv[1:])
if size:
    from sticky_core.upstream.allocator import keep_freed_memory
    keep_freed_memory(size)
resident = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
pieces = [None] * at_once
empty = resident()
for bodies in range(120):
    if bodies == 20:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for number in range(at_once):
        pieces[number] = b"x" * 250_000
    for number in reversed(range(at_once)):
        pieces[number] = None
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, resident() - empty)
"""


def pages_and_rest(size: int, at_once: int) -> tuple[int, ...]:
    command: list[Any] = [sys.executable, "-c", CHILD, str(size), str(at_once)]
    return tuple(map(int, subprocess.run(command, capture_output=True, check=True, text=True).stdout.split()))


def test_memory_of_one_body_is_reused_for_the_next():
    assert pages_and_rest(0, 40)[0] > 1000, "else there is nothing to be mended"
    assert pages_and_rest(8 * MB, 40)[0] < 100


def test_no_more_memory_is_kept_than_twice_the_buffer_limit():
    assert pages_and_rest(8 * MB, 200)[1] < 17 * MB
    assert pages_and_rest(2 * MB, 200)[1] < 5 * MB
