"""An agent beside a server says how it is, in a line of text (HAProxy `agent-check`): what that line means."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from sticky_core.durations import Duration, problems_of_duration
from sticky_core.errors import raise_problems
from sticky_core.health.check import CheckResult, CheckStatus


@dataclass(frozen=True, slots=True)
class AgentCheck:
    """Ask an agent that listens at `port` of the server's host, each `inter` (2 s), having sent it `send`.

    It answers with a line of words: `up`, `down`, `fail`, `stopped`, perhaps with `#why`; `ready`, `drain`, `maint`;
    a share of the server's weight, `75%`, or `weight:5`; `maxconn:30`. An agent that does not answer says nothing.
    """

    port: int
    inter: Duration = 2
    send: str = ""
    timeout: Duration | None = None

    def __post_init__(self) -> None:
        raise_problems(f"agent_check: {problem}" for problem in self._problems())

    def _problems(self) -> Iterator[str]:
        if not 1 <= self.port <= 65535:
            yield f"port {self.port!r} is not within 1..65535"
        for name in ("inter", "timeout"):
            yield from problems_of_duration(name, getattr(self, name), is_optional=True)


#: of an agent's line, in bytes
MAX_LINE = 1024

_UP = ("up",)
_DOWN = ("down", "fail", "stopped")
_ADMIN = ("ready", "drain", "maint")


@dataclass(frozen=True, slots=True)
class AgentReply:
    """What an agent has said. None: nothing of that."""

    result: CheckResult
    up: bool | None = None
    admin: str | None = None
    weight: int | None = None
    percent: int | None = None  #: of the weight that the server was given at first
    maxconn: int | None = None


def parse_reply(line: bytes, duration: float | None = None) -> AgentReply:
    """What an agent's line means; words that nobody knows make all of it worth nothing."""
    text = line.decode("ascii", "replace").splitlines()[0].strip() if line.strip() else ""
    words, _, why = text.partition("#")
    up: bool | None = None
    admin: str | None = None
    numbers: dict[str, int] = {}
    for word in re.split(r"[\s,]+", words.strip().lower()):
        if word in _UP or word in _DOWN:
            up = word in _UP
            why = why or ("" if up else word)
        elif word in _ADMIN:
            admin = word
        elif (number := _number(word)) is not None:
            numbers[number[0]] = number[1]
        elif word or not words:
            return AgentReply(CheckResult(CheckStatus.L7RSP, info=f"agent said {text!r}", duration=duration))
    result = CheckResult(CheckStatus.L7STS if up is False else CheckStatus.L7OK, info=why.strip(), duration=duration)
    return AgentReply(result, up, admin, numbers.get("weight"), numbers.get("percent"), numbers.get("maxconn"))


def _number(word: str) -> tuple[str, int] | None:
    if found := re.fullmatch(r"(?:weight:)?([0-9]{1,5})%", word):
        return "percent", int(found[1])
    if found := re.fullmatch(r"(weight|maxconn):([0-9]{1,9})", word):
        return found[1], int(found[2])
    return None
