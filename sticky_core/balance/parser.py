"""A line of `balance` as HAProxy writes it, read word by word: `hdr(Host) use_domain_only`, `uri len 8 depth 2`."""

from __future__ import annotations

import re

from sticky_core.errors import ConfigError

_LINE = re.compile(r"([a-z_-]+)(?:\(([^()]*)\))?((?: +\S+)*)")


class BalanceSpec:
    """A word, what it has in parentheses (None: it has none), and the words behind it."""

    def __init__(self, text: str) -> None:
        match = _LINE.fullmatch(text)
        self.text = text
        self.word = "" if match is None else match[1]
        self.argument = None if match is None else match[2]
        self._rest = [] if match is None else match[3].split()

    def next(self) -> str | None:
        """The next of the words behind, which is then read; None if there is none."""
        return self._rest.pop(0) if self._rest else None

    def number(self, of: str) -> int:
        """The next word as a number above 0, which `of` needs."""
        word = self.next()
        if word is None or not re.fullmatch("[0-9]+", word) or not int(word):
            raise self.refused(f"{of} needs a number above 0")
        return int(word)

    def end(self, *, argument: bool = False) -> None:
        """Nothing more is expected, nor, unless `argument`, anything in parentheses."""
        if self.argument is not None and not argument:
            raise self.refused(f"{self.word} takes nothing in parentheses")
        if self._rest:
            raise self.refused(f"{' '.join(self._rest)!r} is not understood")

    def refused(self, problem: str) -> ConfigError:
        return ConfigError(f"balance {self.text!r}: {problem}")
