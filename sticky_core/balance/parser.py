"""Parser for HAProxy's `balance` line, word by word: `hdr(Host) use_domain_only`, `uri len 8 depth 2`."""

from __future__ import annotations

import re

from sticky_core.errors import ConfigError

_LINE = re.compile(r"([a-z_-]+)(?:\(([^()]*)\))?((?: +\S+)*)")


class BalanceSpec:
    """A word, its argument in parentheses (None without one), and the words after it."""

    def __init__(self, text: str) -> None:
        match = _LINE.fullmatch(text)
        self.text = text
        self.word = "" if match is None else match[1]
        self.argument = None if match is None else match[2]
        self._rest = [] if match is None else match[3].split()

    def next_word(self) -> str | None:
        """Consume and return the next word after the first, or None at the end."""
        return self._rest.pop(0) if self._rest else None

    def next_number(self, option: str) -> int:
        """Consume the next word and return it as a number above 0, which `option` needs."""
        word = self.next_word()
        if word is None or not re.fullmatch("[0-9]+", word) or not int(word):
            raise self.error(f"{option} needs a number above 0")
        return int(word)

    def expect_end(self, *, argument: bool = False) -> None:
        """Raise ConfigError if there are more words or, unless `argument`, an argument in parentheses."""
        if self.argument is not None and not argument:
            raise self.error(f"{self.word} takes nothing in parentheses")
        if self._rest:
            raise self.error(f"{' '.join(self._rest)!r} is unexpected")

    def error(self, problem: str) -> ConfigError:
        """Return an error that quotes the line."""
        return ConfigError(f"balance {self.text!r}: {problem}")
