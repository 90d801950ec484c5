"""A sample in the words of web frameworks: a path with names in braces, such as `/rooms/{id}`."""

from __future__ import annotations

import re

from sticky_core.errors import ConfigError
from sticky_core.http.messages import Request
from sticky_core.http.request_target import decode_path, problem_of_decoded_path


class PathTemplate:
    """The parts of the path that are in braces in a template such as `/rooms/{id}`, with or without further segments
    behind it; slashes join several parts. A part has one character at least and no slash; where a segment has several,
    as `{name}.{type}`, each takes as much as it can, the first first.

    Paths are compared decoded, as apps see them, so all spellings of one path have one key.

    Each character of a path is compared a bounded number of times. A regular expression would try every way to divide a
    segment, which takes cubic time for three parts.
    """

    def __init__(self, text: str) -> None:
        pieces = re.split(r"\{(\w+)\}", text)
        if len(pieces) < 3 or any(not piece.isidentifier() for piece in pieces[1::2]):
            raise ConfigError(f"key {text!r} has nothing in braces: write /rooms/{{id}}, or a sample such as 'path'")
        problem = problem_of_decoded_path(text)
        if problem is not None:
            raise ConfigError(f"key {text!r}: {problem}")
        # of each segment the literals around its parts; one literal: the segment has no part
        self._segments: list[list[str]] = [[""]]
        for literal in pieces[::2]:
            first, *others = literal.encode().decode("latin-1").split("/")
            self._segments[-1][-1] += first
            self._segments += ([other] for other in others)
            self._segments[-1].append("")
        self._segments[-1].pop()  # no part follows the last literal
        self._has_more = text.endswith("/")  # there is a slash behind the last segment
        if self._has_more:
            self._segments.pop()

    def __call__(self, request: Request) -> str | None:
        segments = decode_path(request.path).split("/", len(self._segments))
        if len(segments) < len(self._segments) + self._has_more:
            return None
        found: list[str] = []
        for segment, literals in zip(segments, self._segments, strict=False):
            parts = _parts(segment, literals)
            if parts is None:
                return None
            found += parts
        return "/".join(found)


def _parts(segment: str, literals: list[str]) -> list[str] | None:
    """Return what a segment has between these literals; None if it does not have them in this order.

    From the end: the last occurrence of a literal that leaves a character behind it leaves the most to the parts in
    front of it.
    """
    first, *others = literals
    if not others:
        return [] if segment == first else None
    last = others.pop()
    if not (segment.startswith(first) and segment.endswith(last)):
        return None
    begin, end = len(first), len(segment) - len(last)
    parts: list[str] = []
    for literal in reversed(others):
        at = segment.rfind(literal, begin + 1, end - 1)
        if at < 0:
            return None
        parts.append(segment[at + len(literal) : end])
        end = at
    if begin >= end:
        return None
    parts.append(segment[begin:end])
    return parts[::-1]
