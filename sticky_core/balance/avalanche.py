"""A number of 32 bits scattered over all of them: HAProxy's `avalanche`, which also gives its ring its points.

Jenkins' hash of an integer in six shifts, times a number that lets the upper bits follow the lower (`full_hash`).
"""

from __future__ import annotations


def avalanche(number: int) -> int:
    """Each bit of `number` changes about half of those that come out."""
    number &= 0xFFFFFFFF
    number = (number + 0x7ED55D16 + (number << 12)) & 0xFFFFFFFF
    number = number ^ 0xC761C23C ^ (number >> 19)
    number = (number + 0x165667B1 + (number << 5)) & 0xFFFFFFFF
    number = (number + 0xD3A2646C ^ (number << 9)) & 0xFFFFFFFF
    number = (number + 0xFD7046C5 + (number << 3)) & 0xFFFFFFFF
    number = number ^ 0xB55A4F09 ^ (number >> 16)
    return number * 3221225473 & 0xFFFFFFFF
