"""Configuration and results of health checks (HAProxy `check`, `option httpchk`). `sticky_core.health.runtime` runs
them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import field, fields
from enum import Enum
from typing import Any, Literal, get_args

from sticky_core.deferred.dataclass import dataclass
from sticky_core.durations import Duration, problems_of_duration
from sticky_core.errors import raise_problems
from sticky_core.health.expect import Expect
from sticky_core.options.spelling import problem_of_word
from sticky_core.options.types import type_problems
from sticky_core.options.unset import UNSET, NotGiven

InitState = Literal["up", "down", "fully-up", "fully-down"]
Observe = Literal["layer4", "layer7"]
OnError = Literal["fail-check", "fastinter", "sudden-death", "mark-down"]
OnMarkedDown = Literal["shutdown-sessions"]
OnMarkedUp = Literal["shutdown-backup-sessions"]
Startup = Literal["proceed", "wait"]

#: A function of the user that replaces the built-in probe: it gets the server and returns True, False or a
#: `CheckResult`; in the ASGI face it may be a coroutine function.
ProbeFunction = Callable[[Any], Any]


class Verdict(Enum):
    """What a result means for the health of the server."""

    PASSED = "passed"
    FAILED = "failed"
    STOPPING = "stopping"  #: passed, but the server gets no new clients (`disable_on_404`)
    UNKNOWN = "unknown"


class CheckStatus(Enum):
    """The result of a check in HAProxy's words (management guide, 9.1, `check_status`)."""

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
    """The result of one check.

    `code`: the HTTP status, 0 without one. `info`: the evidence, as text. `duration`: how long it took, in seconds.
    """

    status: CheckStatus
    code: int = 0
    info: str = ""
    duration: float | None = None

    def after(self, duration: float) -> CheckResult:
        """Return the same result of a check that took `duration` seconds. `dataclasses.replace` costs three times as
        much.
        """
        return CheckResult(self.status, self.code, self.info, duration)

    def __str__(self) -> str:
        """Format the result as HAProxy's log does."""
        parts = [self.status.text]
        if self.code:
            parts.append(f"code: {self.code}")
        if self.info:
            parts.append(f'info: "{self.info}"')
        if self.duration is not None:
            parts.append(f"check duration: {round(self.duration * 1000)}ms")
        return ", ".join(parts)


#: the result of a probe function that returns no `CheckResult`
_RESULTS = {True: CheckResult(CheckStatus.L7OK), False: CheckResult(CheckStatus.L7RSP, info="the probe returned False")}


def probe_result(returned: object) -> CheckResult:
    """Return what the return value of a probe function means. None counts as True."""
    if isinstance(returned, CheckResult):
        return returned
    return _RESULTS[returned is None or bool(returned)]


_HTTP_ONLY = ("method", "headers", "body", "expect", "disable_on_404")
_TYPES = (
    ("path", None | str, "a path such as '/health', or probe= for a function"),
    ("method", str, "a text such as 'HEAD'"),
    ("expect", str, "expect='status 200'"),
    ("port", None | int, "a number"),
    ("spread", int, "a number of percent"),
)
_OBSERVE_ONLY = ("error_limit", "on_error")


@dataclass(frozen=True, slots=True)
class Check:
    """The health check of each server (HAProxy `check`, `option httpchk`, `http-check`). One option a line: meaning,
    type, default:

    - `path`: the path to request, str, percent-encoded, appended to the base path of the server's URL (`option httpchk
      <uri>`). None (default): an established connection is enough; for an app, that it has started.
    - `probe`: a callable to use in place of a request; it gets the `Server` and returns True, False or a `CheckResult`;
      an exception counts as a failure. None by default.
    - `method`: the method of the request, str, `"GET"` (`http-check send meth`).
    - `headers`: headers of the request, a mapping or a sequence of pairs, none by default (`http-check send hdr`).
    - `body`: the body of the request, str or bytes, empty by default (`http-check send body`).
    - `expect`: what the response must be like, str, `"status 200-399"` (`http-check expect`): `status 200,204,300-302`,
      `rstatus <regex>`, `string <text>`, `rstring <regex>`, `hdr name <name> value -m beg <text>`, `fhdr ...`; a `!`
      before it means the opposite.
    - `disable_on_404`: whether a server that responds 404 keeps its clients but gets no new ones, bool, False
      (`http-check disable-on-404`).
    - `inter`: time between two checks, duration, 2 s (`inter`).
    - `fastinter`: the same while health is changing, duration, as `inter` by default (`fastinter`).
    - `downinter`: the same while the server is down, duration, as `inter` by default (`downinter`).
    - `rise`: how many successes in a row bring a server up, int, 2 (`rise`).
    - `fall`: how many failures in a row take a server down, int, 3 (`fall`).
    - `timeout`: how long to wait for the response once connected, duration; by default the whole check has to end
      within `inter` (`timeout check`).
    - `spread`: by how many percent the intervals vary at random, int from 0 to 50, 0 (`spread-checks`).
    - `init_state`: the assumed state before the first check, `"up"`, `"down"`, `"fully-up"` or `"fully-down"`; `"up"`
      by default (`init-state`).
    - `startup`: what the start does until the server has been checked once: `"proceed"`: requests may come before that;
      `"wait"`: the lifespan's startup waits, and where no lifespan runs the first requests do. `"proceed"` by default.
      A check that has failed or timed out counts. With `"wait"` the first checks of a hundred servers run at
      once, and another one whenever one of them has ended. A server in maintenance, or without an address, is not
      waited for.
    - `port`: the port to connect to, int, that of the server's URL by default (`port`).
    - `observe`: which events of clients' requests count as well: None (none of them), `"layer4"` (connections) or
      `"layer7"` (responses too); None by default (`observe`).
    - `error_limit`: how many failed requests in a row trigger `on_error`, int, 10 (`error-limit`).
    - `on_error`: what they cause: `"fail-check"` (they count as one failed check), `"fastinter"`, `"sudden-death"` (the
      next failed check takes the server down) or `"mark-down"`; `"fail-check"` by default (`on-error`).
    - `on_marked_down`: `"shutdown-sessions"` ends the requests in flight at a server that goes down or into
      maintenance. None by default (`on-marked-down`).
    - `on_marked_up`: `"shutdown-backup-sessions"` ends the requests in flight at backup servers as soon as a server
      that is no backup can take new clients again. None by default (`on-marked-up`).

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
    startup: Startup = field(default="proceed", kw_only=True)
    port: int | None = field(default=None, kw_only=True)
    observe: Observe | None = field(default=None, kw_only=True)
    error_limit: int | NotGiven = field(default=UNSET, kw_only=True)
    on_error: OnError | NotGiven = field(default=UNSET, kw_only=True)
    on_marked_down: OnMarkedDown | None = field(default=None, kw_only=True)
    on_marked_up: OnMarkedUp | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        raise_problems(f"check: {problem}" for problem in type_problems(self, _TYPES))
        raise_problems(f"check: {problem}" for problem in self._problems())

    def _problems(self) -> Iterator[str]:
        given = {each.name for each in fields(self) if getattr(self, each.name) is not UNSET}
        if self.path is not None and self.probe is not None:
            yield "has both a path and a probe: give one"
        if self.path is not None and (not self.path.startswith("/") or not self.path.isprintable() or " " in self.path):
            yield f"path {self.path!r} is not valid: it begins with a slash, and is percent-encoded"
        if self.path is None:
            for name in _HTTP_ONLY:
                if name in given:
                    yield f"{name} has no effect without a path: give one, such as Check('/health')"
        if self.probe is not None and not callable(self.probe):
            yield f"probe {self.probe!r} can't be called"
        if self.probe is not None and self.port is not None:
            yield "port has no effect with a probe: leave it out"
        yield from self._problems_of_startup()
        if self.observe is None:
            for name in _OBSERVE_ONLY:
                if name in given:
                    yield f"{name} has no effect without observe: add observe='layer7', or leave it out"
        yield from self._problems_of_times()
        yield from self._problems_of_choices()

    def _problems_of_startup(self) -> Iterator[str]:
        if self.startup != "wait":
            return
        for state, option, change in (
            ("fully-up", "fall", "takes no server down"),
            ("fully-down", "rise", "brings no server up"),
        ):
            number = getattr(self, option)
            if self.init_state == state and _is_count(number) and number > 1:
                yield (
                    f"startup='wait' waits for one check, which {change} with init_state={state!r} and {option}="
                    f"{number}: write init_state={state.removeprefix('fully-')!r}, or {option}=1"
                )

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

    def _problems_of_choices(self) -> Iterator[str]:
        for name, words in (
            ("init_state", get_args(InitState)),
            ("startup", get_args(Startup)),
            ("observe", (None, *get_args(Observe))),
            ("on_error", (UNSET, *get_args(OnError))),
            ("on_marked_down", (None, *get_args(OnMarkedDown))),
            ("on_marked_up", (None, *get_args(OnMarkedUp))),
        ):
            if getattr(self, name) not in words:
                yield problem_of_word(name, getattr(self, name), (word for word in words if isinstance(word, str)))
        if self.expect is not UNSET:
            try:
                Expect.parse(self.expect)
            except ValueError as error:
                yield str(error)
        if self.method is not UNSET and not (self.method.isascii() and self.method.isalpha()):
            yield f"method {self.method!r} is not a valid method"
        for name, value in self.header_list:
            if not name or not name.isprintable() or {*name} & {*" :"} or not value.isprintable():
                yield f"header {name!r}: {value!r} can't be sent in a request"

    # The options with their defaults applied

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
        """How many failed requests in a row trigger `on_error`."""
        return 10 if self.error_limit is UNSET else self.error_limit


def _is_count(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number >= 1
