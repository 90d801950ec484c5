"""Let the system's allocator keep freed memory for the next part of a body."""

from __future__ import annotations

from functools import cache


@cache
def keep_freed_memory(size: int) -> None:
    """Let this process keep memory that it frees: twice `size` bytes at the end of each heap, and only memory that was
    in use. A thread has a heap of its own, up to eight heaps per core.

    By default glibc returns freed memory to the system as soon as it is some hundred KB, and gets new pages for the
    next part, which is half of the cost of passing on a large body. It keeps more in a process that has allocated and
    freed a larger block (mallopt(3), `M_MMAP_THRESHOLD`, "dynamic"): this function allocates one, without touching its
    pages. If the environment sets `MALLOC_TRIM_THRESHOLD_`, and with other allocators, it changes nothing.
    """
    bytearray(size)
