"""XXH32 of short texts: HAProxy computes the points of servers with an IPv6 address from it (`hash-key addr`).

Implemented from the algorithm's specification, as is XXH64 (`sticky_core.persistence.xxh64`).
"""

from __future__ import annotations

from struct import unpack_from

_P1, _P2, _P3, _P4, _P5 = 0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F, 0x165667B1
_MASK = 0xFFFFFFFF


def _rotl(x: int, bits: int) -> int:
    x &= _MASK
    return ((x << bits) | (x >> (32 - bits))) & _MASK


def xxh32(data: bytes, seed: int = 0) -> int:
    """Return the hash of `data`."""
    at, size = 0, len(data)
    if size >= 16:
        lanes = [seed + _P1 + _P2, seed + _P2, seed, seed - _P1]
        while at + 16 <= size:
            words = unpack_from("<4I", data, at)
            lanes = [_rotl(lane + word * _P2, 13) * _P1 & _MASK for lane, word in zip(lanes, words, strict=True)]
            at += 16
        h = sum(_rotl(lane, bits) for lane, bits in zip(lanes, (1, 7, 12, 18), strict=True))
    else:
        h = seed + _P5
    h += size
    while at + 4 <= size:
        h = _rotl(h + unpack_from("<I", data, at)[0] * _P3, 17) * _P4
        at += 4
    for byte in data[at:]:
        h = _rotl(h + byte * _P5, 11) * _P1
    h &= _MASK
    h = (h ^ (h >> 15)) * _P2 & _MASK
    h = (h ^ (h >> 13)) * _P3 & _MASK
    return h ^ (h >> 16)
