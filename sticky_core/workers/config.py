"""The configuration of a group of workers, and whether a process can have peers."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import field
from typing import Final, Literal, TypeAlias, cast

from sticky_core.deferred.dataclass import dataclass
from sticky_core.durations import Duration, problems_of_duration
from sticky_core.errors import ConfigError, collect_problems, raise_problems
from sticky_core.options.types import callable_problem, type_problems
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.persistence.cookie_scope import CookieScope
from sticky_core.persistence.signing import VARIABLE, Secret
from sticky_core.samples import request as samples
from sticky_core.samples import response as res
from sticky_core.samples.parser import parse_learned_sample, parse_sample
from sticky_core.samples.path_template import PathTemplate
from sticky_core.samples.request import Sample
from sticky_core.server.config import NAME
from sticky_core.target import own_app_problem, require_app
from sticky_core.workers import frames
from sticky_core.workers.directory import app_digest, require_system
from sticky_core.workers.keys import FirstKey
from sticky_core.workers.record import Face
from sticky_core.workers.slots import MAX_WORKERS

OnLost = Literal["rebind", "gone"]
#: what `key` can be: where the key of a request is
Keys: TypeAlias = str | Sample | Sequence[str | Sample]
#: what `learn` can be: where the app issues keys in responses
Learned: TypeAlias = str | res.Sample | res.BodySample | Sequence[str | res.Sample | res.BodySample]

#: the default name of the cookie; the star stands for digits that are different for different apps
COOKIE: Final = "STICKYWORKER_*"
_TYPES = (
    ("name", None | str, "the name of the group, as a text"),
    ("cookie", None | str | Cookie, "the name of the cookie, as a text"),
    ("retry_on", (str, Sequence), "retry_on='conn-failure 503'"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkersConfig:
    """The options of a group of workers; `StickyWorkers` documents each. Raises ConfigError with every problem."""

    name: str | None = None
    cookie: str | Cookie | None = COOKIE
    secret: Secret | Sequence[Secret] | None = field(default=None, repr=False)
    key: Keys | None = None
    learn: Learned | None = None
    slots: int | None = None
    on_lost: OnLost = "rebind"
    retry_on: str | Sequence[str] = "conn-failure"
    drain: Duration = 10
    app: str = ""  #: the identity of the app
    face: Face = "asgi"  #: which interface the app has

    def __post_init__(self) -> None:
        raise_problems(f"StickyWorkers: {problem}" for problem in type_problems(self, _TYPES))
        raise_problems(f"StickyWorkers: {problem}" for problem in self._problems())

    def _problems(self) -> Iterator[str]:
        problems: list[str] = []
        with collect_problems(problems):
            frames.require()
        if self.name is not None:  # else this process may turn out to be the only one
            with collect_problems(problems):
                require_system()
        if self.name is not None and not NAME.fullmatch(self.name):
            yield f"name {self.name!r} is made of letters, digits and - _ . :"
        if self.on_lost not in ("rebind", "gone"):
            yield f"on_lost {self.on_lost!r} is neither 'rebind' nor 'gone'"
        with collect_problems(problems):
            self.build_cookie("a placeholder: only to find problems")
            self.build_sample()
            self.build_learn()
        yield from problems
        if self.cookie is None and self.key is None:
            yield "there is neither a cookie nor a key, so no client is recognised: leave cookie out, or pass key="
        if isinstance(self.cookie, Cookie) and self.secret is not None:
            yield "secret has no effect beside a Cookie, which has its own: leave one of them out"
        yield from self._problems_of_cookie()
        yield from self._problems_of_slots()
        if self.learn is not None and not self.learns_keys:
            yield "learn has no effect " + (
                "without key=: pass the sample of requests with the same key"
                if self.key is None
                else "beside slots=, by which a hash decides: leave one of them out"
            )
        yield from problems_of_duration("drain", self.drain)

    def _problems_of_cookie(self) -> Iterator[str]:
        cookie = self.cookie
        if isinstance(cookie, Cookie):
            if cookie.mode != "insert" or cookie.signed is False:
                yield f"cookie {cookie.name}: workers need a signed cookie in mode insert: leave mode and signed out"
        elif self.on_lost == "gone" and not self._configured_secret:
            yield (
                "on_lost='gone' recognises clients from before a restart, and a secret that the workers generate does "
                f"not survive one: pass secret=, or set {VARIABLE}"
            )
        if self.on_lost == "gone" and cookie is None:
            yield "on_lost='gone' has no effect without a cookie: only that shows that a client has lost its session"

    def _problems_of_slots(self) -> Iterator[str]:
        if self.slots is None:
            return
        if self.key is None:
            yield "slots is the number of workers that keys are spread over: it has no effect without key="
        if not isinstance(self.slots, int) or not 1 <= self.slots <= MAX_WORKERS:  # pyright: ignore[reportUnnecessaryIsInstance]
            yield f"slots {self.slots!r} is not within 1..{MAX_WORKERS}: write the number of workers"

    @property
    def _configured_secret(self) -> Secret | Sequence[Secret] | None:
        return self.secret if self.secret is not None else os.environ.get(VARIABLE)

    def build_cookie(self, generated_secret: str) -> Cookie | None:
        """Return the cookie. It is signed with the secret of the option, else with that of the environment, else with
        `generated_secret`.
        """
        if self.cookie is None or isinstance(self.cookie, Cookie):
            return self.cookie
        return Cookie(self._cookie_name(self.cookie), secret=self._configured_secret or generated_secret)

    def _cookie_name(self, name: str) -> str:
        """Return the name of the cookie. Browsers send a cookie to all apps on a host name, whatever their port: apps
        that used one name would overwrite each other's.
        """
        return f"{name[:-1]}{app_digest(self.name, self.app, self.face)}" if name.endswith("*") else name

    @property
    def cookie_scopes(self) -> Sequence[CookieScope]:
        """The cookies that the workers insert, with a star where the name has one: so workers around workers are found,
        whatever their apps.
        """
        cookie = self.cookie
        if cookie is None:
            return ()
        return cookie.cookie_scopes() if isinstance(cookie, Cookie) else (CookieScope(cookie),)

    @property
    def needs_generated_secret(self) -> bool:
        """Whether no secret is configured, so that the workers have to generate one."""
        return isinstance(self.cookie, str) and not self._configured_secret

    @property
    def learns_keys(self) -> bool:
        """Whether workers remember the owners of keys, and query each other, instead of hashing keys."""
        return self.key is not None and self.slots is None

    @property
    def learns_from_bodies(self) -> bool:
        """Whether workers learn keys from the bodies of responses."""
        return any(isinstance(each, res.BodySample) for each in self.build_learn())

    def build_sample(self) -> Sample | None:
        """Return the sample that takes the key from a request; None if no key is configured."""
        key = self.key
        if key is None:
            return None
        found = tuple(map(_request_sample, _as_tuple(key)))
        if not found:
            raise ConfigError("key is an empty list: write at least one sample, or leave it out")
        return found[0] if len(found) == 1 else FirstKey(found)

    def build_learn(self) -> Sequence[res.Sample | res.BodySample]:
        """Return the samples that find keys in responses, as far as they are configured."""
        return () if self.learn is None else tuple(map(_response_sample, _as_tuple(self.learn)))


def _as_tuple(given: object) -> tuple[object, ...]:
    return tuple(cast("Sequence[object]", given)) if isinstance(given, list | tuple) else (given,)


#: the samples of requests and of responses that have names; a user may take one for the other
_OF_REQUESTS: Final = (
    *(samples.hdr, samples.cook, samples.url_param, samples.path_param),
    *(samples.form, samples.json_field, samples.jwt),
)
_OF_RESPONSES: Final = (res.hdr, res.cook, res.url_param, res.path_param, res.BodySample)


def _request_sample(given: object) -> Sample:
    """Return the sample of requests that one item of `key` names. ConfigError if it names none."""
    if isinstance(given, str):
        if "{" in given and "(" not in given and not given.startswith("/"):
            raise ConfigError(f"key {given!r} is no path: a template of one begins with a slash: write {'/' + given!r}")
        return PathTemplate(given) if given.startswith("/") else parse_sample(given)
    if isinstance(given, _OF_RESPONSES):
        raise ConfigError(f"key {given!r} is a sample of responses, and belongs into learn=: pass one of requests")
    if not callable(given) or isinstance(given, type):
        raise ConfigError(f"key {given!r} is not a sample: write 'hdr(Mcp-Session-Id)', or pass a function")
    return cast("Sample", given)


def _response_sample(given: object) -> res.Sample | res.BodySample:
    """Return the sample of responses that one item of `learn` names. ConfigError if it names none."""
    if isinstance(given, str):
        return parse_learned_sample(given)
    if isinstance(given, _OF_REQUESTS):
        raise ConfigError(f"learn {given!r} is a sample of requests: write one of responses, such as res.hdr('X-Id')")
    if isinstance(given, type) or not (callable(given) or isinstance(given, res.BodySample)):
        raise ConfigError(f"learn {given!r} is not a sample: write res.json_field('sid'), or 'res.hdr(X-Session)'")
    return cast("res.Sample | res.BodySample", given)


def problems_of_arguments(app: object, face: Face, log: object) -> list[str]:
    """Return what is wrong with the arguments of `StickyWorkers` that its configuration does not have: the app, and the
    function that is called with each decision.
    """
    problems: list[str] = []
    with collect_problems(problems):
        require_app(app, face, "StickyWorkers")
    if (problem := own_app_problem(app, face, "StickyWorkers")) is not None:
        problems.append(problem)
    if (problem := callable_problem("log", log, "a Decision")) is not None:
        problems.append(f"StickyWorkers: {problem}")
    return problems


def can_have_peers(config: WorkersConfig, spawned: bool, software: str) -> bool:
    """Return whether this process may be one of several workers: the group has a name, or Python's multiprocessing has
    `spawned` the process (as uvicorn, hypercorn and granian do), or `software` (the environment's SERVER_SOFTWARE) is
    gunicorn, which forks its workers. A process with an inherited socket may be one, too (`siblings`).
    """
    return config.name is not None or spawned or software.startswith("gunicorn")
