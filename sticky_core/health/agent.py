"""The agent of a server reports the server's state in a line of text (HAProxy `agent-check`): how to parse it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from sticky_core.deferred.dataclass import dataclass
from sticky_core.durations import Duration, problems_of_duration
from sticky_core.errors import raise_problems
from sticky_core.health.check import CheckResult, CheckStatus


@dataclass(frozen=True, slots=True)
class AgentCheck:
    """Query an agent on the server's host (HAProxy `agent-check`). One option a line: meaning, type, default:

    - `port`: the port where the agent listens, int, required (`agent-port`).
    - `inter`: time between two queries, duration, 2 s (`agent-inter`).
    - `send`: text to send after connecting, str, empty (`agent-send`).
    - `timeout`: how long to wait for the reply once connected, duration; by default the whole query has to end within
      `inter`.

    The agent replies with a line of words: `up`, `down`, `fail`, `stopped`, optionally followed by `#reason`; `ready`,
    `drain`, `maint`; a percentage of the server's weight, `75%`, or `weight:5`; `maxconn:30`. An agent that does not
    reply changes nothing.
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


#: the longest line of an agent, in bytes
MAX_LINE = 1024

_UP = ("up",)
_DOWN = ("down", "fail", "stopped")
_ADMIN = ("ready", "drain", "maint")


@dataclass(frozen=True, slots=True)
class AgentReply:
    """The parsed reply of an agent. A field is None if the reply does not contain it."""

    result: CheckResult
    up: bool | None = None
    admin: str | None = None
    weight: int | None = None
    percent: int | None = None  #: of the configured weight
    maxconn: int | None = None


def parse_reply(line: bytes, duration: float | None = None) -> AgentReply:
    """Parse the line of an agent. A line with an unknown word is ignored as a whole (L7RSP)."""
    text = line.decode("ascii", "replace").splitlines()[0].strip() if line.strip() else ""
    words, _, reason = text.partition("#")
    up: bool | None = None
    admin: str | None = None
    numbers: dict[str, int] = {}
    for word in re.split(r"[\s,]+", words.strip().lower()):
        if word in _UP or word in _DOWN:
            up = word in _UP
            reason = reason or ("" if up else word)
        elif word in _ADMIN:
            admin = word
        elif (number := _number(word)) is not None:
            numbers[number[0]] = number[1]
        elif word or not words:
            return AgentReply(CheckResult(CheckStatus.L7RSP, info=f"agent replied {text!r}", duration=duration))
    result = CheckResult(CheckStatus.L7STS if up is False else CheckStatus.L7OK, info=reason.strip(), duration=duration)
    return AgentReply(result, up, admin, numbers.get("weight"), numbers.get("percent"), numbers.get("maxconn"))


def _number(word: str) -> tuple[str, int] | None:
    if found := re.fullmatch(r"(?:weight:)?([0-9]{1,5})%", word):
        return "percent", int(found[1])
    if found := re.fullmatch(r"(weight|maxconn):([0-9]{1,9})", word):
        return found[1], int(found[2])
    return None
