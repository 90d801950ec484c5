"""Mix the bits of a 32-bit number: HAProxy's `avalanche`, which also places the points on its ring.

Jenkins' hash of an integer in six shifts, times a constant that spreads the lower bits into the upper ones
(`full_hash`).
"""

from __future__ import annotations


def avalanche(number: int) -> int:
    """Return `number` with its bits mixed: each input bit changes about half of the output bits."""
    number &= 0xFFFFFFFF
    number = (number + 0x7ED55D16 + (number << 12)) & 0xFFFFFFFF
    number = number ^ 0xC761C23C ^ (number >> 19)
    number = (number + 0x165667B1 + (number << 5)) & 0xFFFFFFFF
    number = (number + 0xD3A2646C ^ (number << 9)) & 0xFFFFFFFF
    number = (number + 0xFD7046C5 + (number << 3)) & 0xFFFFFFFF
    number = number ^ 0xB55A4F09 ^ (number >> 16)
    return number * 3221225473 & 0xFFFFFFFF
