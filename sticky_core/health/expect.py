"""What the response to a check must be like (HAProxy `http-check expect`): parsed from text, and matched."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from typing import Literal

from sticky_core.deferred.dataclass import dataclass

#: how much of a response body is examined, and so has to be read, in bytes
MAX_BODY = 16384

Headers = Sequence[tuple[str, str]]

_WORDS = "status, rstatus, string, rstring, hdr, fhdr, perhaps with ! before it"
#: how a text is compared with a pattern (`-m`)
_METHODS: dict[str, Callable[[str, str], bool]] = {
    "str": lambda text, pattern: text == pattern,
    "beg": str.startswith,
    "end": str.endswith,
    "sub": lambda text, pattern: pattern in text,
    "reg": lambda text, pattern: re.search(pattern, text) is not None,
}


@dataclass(frozen=True, slots=True)
class Match:
    """A pattern and how a text is compared with it."""

    method: str
    pattern: str

    def matches(self, text: str) -> bool:
        return _METHODS[self.method](text, self.pattern)


@dataclass(frozen=True, slots=True)
class Status:
    """A list of statuses and ranges."""

    ranges: tuple[tuple[int, int], ...]

    def matches(self, status: int, headers: Headers, body: bytes) -> bool:
        return any(low <= status <= high for low, high in self.ranges)


@dataclass(frozen=True, slots=True)
class StatusRegex:
    pattern: str

    def matches(self, status: int, headers: Headers, body: bytes) -> bool:
        return re.search(self.pattern, str(status)) is not None


@dataclass(frozen=True, slots=True)
class Text:
    """A text that the body contains, whatever the status."""

    text: str

    def matches(self, status: int, headers: Headers, body: bytes) -> bool:
        return self.text.encode() in body


@dataclass(frozen=True, slots=True)
class TextRegex:
    pattern: str

    def matches(self, status: int, headers: Headers, body: bytes) -> bool:
        return re.search(self.pattern.encode(), body) is not None


@dataclass(frozen=True, slots=True)
class HeaderField:
    """A header, and optionally its value. `whole`: compare the whole line rather than each element between commas."""

    whole: bool
    name: Match
    value: Match | None

    def matches(self, status: int, headers: Headers, body: bytes) -> bool:
        for name, line in headers:
            if self.name.matches(name.lower()):
                if self.value is None:
                    return True
                parts = (line,) if self.whole else line.split(",")
                if any(self.value.matches(part.strip()) for part in parts):
                    return True
        return False


Rule = Status | StatusRegex | Text | TextRegex | HeaderField
#: the name of a `CheckStatus`
StatusName = Literal["L7OK", "L7STS", "L7RSP"]


@dataclass(frozen=True, slots=True)
class Expect:
    """The rule that a response must match, or, if `negated`, must not match."""

    text: str
    rule: Rule
    negated: bool

    @classmethod
    def parse(cls, text: str) -> Expect:
        """Parse `status 200,204,300-302`, `! string oops`, `hdr name -m beg X- value -m sub up`, … Raise a ValueError
        that says what is wrong.
        """
        rest = text.strip()
        negated = rest.startswith("!")
        word, _, pattern = rest.removeprefix("!").lstrip().partition(" ")
        pattern = pattern.strip()
        parse_rule = _RULES.get(word)
        if parse_rule is None:
            raise ValueError(f"expect {text!r} is unknown: write one of {_WORDS}")
        if not pattern:
            raise ValueError(f"expect {text!r} has no pattern after {word}")
        try:
            return cls(text, parse_rule(word, pattern), negated)
        except re.error as error:
            raise ValueError(f"expect {text!r}: {pattern!r} is not a regular expression: {error}") from None
        except ValueError as error:
            raise ValueError(f"expect {text!r}: {error}") from None

    @property
    def needs_body(self) -> bool:
        return isinstance(self.rule, Text | TextRegex)

    @property
    def needs_headers(self) -> bool:
        return isinstance(self.rule, HeaderField)

    def judge(self, status: int, headers: Headers, body: bytes) -> StatusName:
        """Return the status of the check for a response. `body`: what has been read of its body. If that is empty,
        every rule about the body fails, negated ones too.
        """
        if self.needs_body:
            body = body[:MAX_BODY]
            return "L7OK" if body and self.rule.matches(status, headers, body) is not self.negated else "L7RSP"
        return "L7OK" if self.rule.matches(status, headers, body) is not self.negated else "L7STS"


def _status(word: str, pattern: str) -> Status:
    ranges: list[tuple[int, int]] = []
    for part in pattern.split(","):
        found = re.fullmatch(r"([0-9]{3})(?:-([0-9]{3}))?", part.strip())
        if found is None:
            raise ValueError(f"{part!r} is neither a status nor a range such as 200-299")
        low, high = int(found[1]), int(found[2] or found[1])
        if low > high:
            raise ValueError(f"{part!r} is a range that ends before it begins")
        ranges.append((low, high))
    return Status(tuple(ranges))


def _status_regex(word: str, pattern: str) -> StatusRegex:
    re.compile(pattern)
    return StatusRegex(pattern)


def _text(word: str, pattern: str) -> Text:
    return Text(pattern)


def _text_regex(word: str, pattern: str) -> TextRegex:
    re.compile(pattern.encode())
    return TextRegex(pattern)


def _header(word: str, pattern: str) -> HeaderField:
    lexer = shlex.shlex(pattern, posix=True)
    lexer.whitespace_split, lexer.escape, lexer.commenters = True, "", ""
    tokens = list(lexer)

    def match(what: str) -> Match:
        if not tokens or tokens.pop(0) != what:
            raise ValueError(f"{word} is followed by: name [-m str|beg|end|sub|reg] <name> [value [-m …] <value>]")
        method = "str"
        if tokens[:1] == ["-m"]:
            del tokens[0]
            method = tokens.pop(0) if tokens else ""
            if method not in _METHODS:
                raise ValueError(f"-m {method} is none of {', '.join(_METHODS)}")
        if not tokens:
            raise ValueError(f"{what} needs a pattern after it")
        text = tokens.pop(0)
        if method == "reg":
            re.compile(text)
        return Match(method, text.lower() if what == "name" and method != "reg" else text)

    name = match("name")
    value = match("value") if tokens else None
    if tokens:
        raise ValueError(f"unexpected {' '.join(tokens)!r}")
    return HeaderField(word == "fhdr", name, value)


_RULES: dict[str, Callable[[str, str], Rule]] = {
    "status": _status,
    "rstatus": _status_regex,
    "string": _text,
    "rstring": _text_regex,
    "hdr": _header,
    "fhdr": _header,
}
