"""What the system's allocator keeps of what is freed, for the next piece of a body."""

from __future__ import annotations

from functools import cache


@cache
def keep_freed_memory(in_hand: int) -> None:
    """Let memory that is freed stay with this process: twice `in_hand` bytes at the end of each heap, and only of what
    was in use. A thread has a heap of its own, until there are eight per core.

    glibc else gives it back as soon as it is some hundred KB, and has the system make pages anew for the next piece,
    which is half of what it costs to pass a large body on. It keeps more in a process in which a larger block has come
    and gone (mallopt(3), `M_MMAP_THRESHOLD`, "dynamic"): here is one, of which no page is ever touched. Where the
    environment sets `MALLOC_TRIM_THRESHOLD_`, and with other allocators, it changes nothing.
    """
    bytearray(in_hand)
