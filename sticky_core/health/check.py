"""Whether a server is well, by what it answers when it is asked (HAProxy `check`, `option httpchk`).

Two types: `Check` is what was asked for; `Checking` is that at work over one server, as a state machine without I/O:
whoever probes asks `delay(now)`, waits, probes, and tells `observe(result, now)`.

The theory: health is a number from 0 to rise+fall-1, and the server is up from `rise` on. A failure takes one off, and
below `rise` everything; a success adds one, and from `rise` on everything there is. So `fall` failures in a row take it
down, `rise` successes in a row bring it back, and one success makes up for the failures before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any, Literal, get_args

from sticky_core.durations import Duration, problems_of_duration
from sticky_core.errors import raise_problems
from sticky_core.health.expect import Expect
from sticky_core.options.unset import UNSET, NotGiven

InitState = Literal["up", "down", "fully-up", "fully-down"]
Observe = Literal["layer4", "layer7"]
OnError = Literal["fail-check", "fastinter", "sudden-death", "mark-down"]
OnMarkedDown = Literal["shutdown-sessions"]
OnMarkedUp = Literal["shutdown-backup-sessions"]

#: what stands for a probe of ours: told the server, it says whether that is well, or how it is; in the ASGI face it may
#: be a coroutine function
ProbeFunction = Callable[[Any], Any]


class Verdict(Enum):
    """What a result says of the server."""

    PASSED = "passed"
    FAILED = "failed"
    STOPPING = "stopping"  #: passed, but it takes no new clients (`disable_on_404`)
    UNKNOWN = "unknown"


class CheckStatus(Enum):
    """How a check turned out, in HAProxy's words (management guide, 9.1, `check_status`)."""

    UNK = "Unknown", Verdict.UNKNOWN
    INI = "Initializing", Verdict.UNKNOWN
    SOCKERR = "Socket error", Verdict.FAILED
    HANA = "Health analyze", Verdict.FAILED
    L4OK = "Layer4 check passed", Verdict.PASSED
    L4TOUT = "Layer4 timeout", Verdict.FAILED
    L4CON = "Layer4 connection problem", Verdict.FAILED
    L6RSP = "Layer6 invalid response", Verdict.FAILED
    L7TOUT = "Layer7 timeout", Verdict.FAILED
    L7RSP = "Layer7 invalid response", Verdict.FAILED
    L7OK = "Layer7 check passed", Verdict.PASSED
    L7OKC = "Layer7 check conditionally passed", Verdict.STOPPING
    L7STS = "Layer7 wrong status", Verdict.FAILED

    def __init__(self, text: str, verdict: Verdict) -> None:
        self.text = text
        self.verdict = verdict


@dataclass(frozen=True, slots=True)
class CheckResult:
    """How one check turned out. `code`: the HTTP status, where there was one; `info`: the evidence; `duration`: how
    long it took, in seconds.
    """

    status: CheckStatus
    code: int = 0
    info: str = ""
    duration: float | None = None

    def __str__(self) -> str:
        """As HAProxy's log says it."""
        parts = [self.status.text]
        if self.code:
            parts.append(f"code: {self.code}")
        if self.info:
            parts.append(f'info: "{self.info}"')
        if self.duration is not None:
            parts.append(f"check duration: {round(self.duration * 1000)}ms")
        return ", ".join(parts)


#: a callable's answer where it does not say more than yes or no
_SAID = {True: CheckResult(CheckStatus.L7OK), False: CheckResult(CheckStatus.L7RSP, info="the probe said no")}


def probe_result(answer: object) -> CheckResult:
    """What the answer of a callable that stands for the probe means."""
    if isinstance(answer, CheckResult):
        return answer
    return _SAID[answer is None or bool(answer)]


_HTTP_ONLY = ("method", "headers", "body", "expect", "disable_on_404")
_ERRORS_ONLY = ("error_limit", "on_error")


@dataclass(frozen=True, slots=True)
class Check:
    """A check of each server.

    `path`: what is asked for, by `method` (GET), with `headers` and `body`; behind the base path of the server's URL.
    None: whether a connection comes about is enough; of an app, that it was made. `probe`: a callable that is asked
    instead, with the `Server`; it says True or False, or a `CheckResult`, and an exception is a failure.

    `expect`: what the answer must be like, by default `"status 200-399"`; HAProxy's words: `status 200,204,300-302`,
    `rstatus <regex>`, `string <text>`, `rstring <regex>`, `hdr name <name> value -m beg <text>`, `fhdr …`; `!` before
    it means the opposite. `disable_on_404`: a server that answers 404 keeps its clients and takes no new ones.

    `inter`: how often (2 s); `fastinter`: while its health is changing; `downinter`: while it is down; both as `inter`
    unless given. `fall`, `rise`: after how many failures it is down (3), and successes up again (2). `timeout`: how
    long to wait for the answer once connected; by default all of it must be over within `inter`. `spread`: by how many
    percent intervals vary (HAProxy `spread-checks`). `init_state`: what is believed of a server before its first
    check. `port`: another than that of the server's URL.

    `observe`: take the answers to clients into account: `"layer4"` (connections), `"layer7"` (answers as well): after
    `error_limit` failures in a row (10), `on_error` says what they mean: `"fail-check"` (as one failed check),
    `"fastinter"`, `"sudden-death"` (the next failed check is fatal), `"mark-down"`. `on_marked_down=
    "shutdown-sessions"`: a server that goes down, or into maintenance, takes what is in flight with it.
    `on_marked_up="shutdown-backup-sessions"`: a server that can take new clients again, and is no backup, ends what is
    in flight at the backups.

    Raises `ConfigError` with every problem found; an option that has no effect is one.
    """

    path: str | None = None
    probe: ProbeFunction | None = field(default=None, kw_only=True)
    method: str | NotGiven = field(default=UNSET, kw_only=True)
    headers: Mapping[str, str] | Sequence[tuple[str, str]] | NotGiven = field(default=UNSET, kw_only=True)
    body: str | bytes | NotGiven = field(default=UNSET, kw_only=True)
    expect: str | NotGiven = field(default=UNSET, kw_only=True)
    disable_on_404: bool | NotGiven = field(default=UNSET, kw_only=True)
    inter: Duration = field(default=2, kw_only=True)
    fastinter: Duration | None = field(default=None, kw_only=True)
    downinter: Duration | None = field(default=None, kw_only=True)
    rise: int = field(default=2, kw_only=True)
    fall: int = field(default=3, kw_only=True)
    timeout: Duration | None = field(default=None, kw_only=True)
    spread: int = field(default=0, kw_only=True)
    init_state: InitState = field(default="up", kw_only=True)
    port: int | None = field(default=None, kw_only=True)
    observe: Observe | None = field(default=None, kw_only=True)
    error_limit: int | NotGiven = field(default=UNSET, kw_only=True)
    on_error: OnError | NotGiven = field(default=UNSET, kw_only=True)
    on_marked_down: OnMarkedDown | None = field(default=None, kw_only=True)
    on_marked_up: OnMarkedUp | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        raise_problems(f"check: {problem}" for problem in self._problems())

    def _problems(self) -> Iterator[str]:
        given = {each.name for each in fields(self) if getattr(self, each.name) is not UNSET}
        if self.path is not None and self.probe is not None:
            yield "has both a path and a probe: give one"
        if self.path is not None and (not self.path.startswith("/") or not self.path.isprintable() or " " in self.path):
            yield f"path {self.path!r} is none: it begins with a slash, and is percent-encoded"
        if self.path is None:
            for name in _HTTP_ONLY:
                if name in given:
                    yield f"{name} has no effect without a path: give one, such as Check('/health')"
        if self.probe is not None and not callable(self.probe):
            yield f"probe {self.probe!r} can't be called"
        if self.probe is not None and self.port is not None:
            yield "port has no effect with a probe: leave it out"
        if self.observe is None:
            for name in _ERRORS_ONLY:
                if name in given:
                    yield f"{name} has no effect without observe: add observe='layer7', or leave it out"
        yield from self._problems_of_times()
        yield from self._problems_of_words()

    def _problems_of_times(self) -> Iterator[str]:
        for name in ("inter", "fastinter", "downinter", "timeout"):
            yield from problems_of_duration(name, getattr(self, name), is_optional=True)
        for name in ("rise", "fall"):
            if not _is_count(getattr(self, name)):
                yield f"{name} {getattr(self, name)!r} is not a whole number from 1 on"
        if self.error_limit is not UNSET and not _is_count(self.error_limit):
            yield f"error_limit {self.error_limit!r} is not a whole number from 1 on"
        if not 0 <= self.spread <= 50:
            yield f"spread {self.spread!r} is not within 0..50 percent"
        if self.port is not None and not 1 <= self.port <= 65535:
            yield f"port {self.port!r} is not within 1..65535"

    def _problems_of_words(self) -> Iterator[str]:
        for name, words in (
            ("init_state", get_args(InitState)),
            ("observe", (None, *get_args(Observe))),
            ("on_error", (UNSET, *get_args(OnError))),
            ("on_marked_down", (None, *get_args(OnMarkedDown))),
            ("on_marked_up", (None, *get_args(OnMarkedUp))),
        ):
            if getattr(self, name) not in words:
                known = ", ".join(word for word in words if isinstance(word, str))
                yield f"{name} {getattr(self, name)!r} is none of {known}"
        if self.expect is not UNSET:
            try:
                Expect.parse(self.expect)
            except ValueError as error:
                yield str(error)
        if self.method is not UNSET and not (self.method.isascii() and self.method.isalpha()):
            yield f"method {self.method!r} is none"
        for name, value in self.header_list:
            if not name or not name.isprintable() or {*name} & {*" :"} or not value.isprintable():
                yield f"header {name!r}: {value!r} can't be written"

    # What is in force

    @property
    def http_method(self) -> str:
        return "GET" if self.method is UNSET else self.method.upper()

    @property
    def header_list(self) -> tuple[tuple[str, str], ...]:
        headers = self.headers
        if headers is UNSET:
            return ()
        return tuple(headers.items() if isinstance(headers, Mapping) else headers)

    @property
    def payload(self) -> bytes:
        body = self.body
        return b"" if body is UNSET else body.encode() if isinstance(body, str) else body

    @property
    def expectation(self) -> Expect:
        return Expect.parse("status 200-399" if self.expect is UNSET else self.expect)

    @property
    def stops_on_404(self) -> bool:
        return self.disable_on_404 is True

    @property
    def max_errors(self) -> int:
        """How many failures in a row mean something, with `observe`."""
        return 10 if self.error_limit is UNSET else self.error_limit


def _is_count(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number >= 1
