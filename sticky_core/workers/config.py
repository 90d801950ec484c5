"""The configuration of a group of workers, and whether a process can have peers."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from sticky_core.durations import Duration, problems_of_duration
from sticky_core.errors import ConfigError, collect_problems, raise_problems
from sticky_core.options.types import type_problems
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.persistence.cookie_scope import CookieScope
from sticky_core.persistence.signing import VARIABLE, Secret
from sticky_core.samples.parser import parse_sample
from sticky_core.samples.path_template import PathTemplate
from sticky_core.samples.request import Sample
from sticky_core.server.config import NAME
from sticky_core.workers import frames
from sticky_core.workers.directory import app_digest, require_system
from sticky_core.workers.record import Face
from sticky_core.workers.slots import MAX_WORKERS

OnLost = Literal["rebind", "gone"]

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
    key: str | Sample | None = None
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
        yield from problems
        if self.cookie is None and self.key is None:
            yield "there is neither a cookie nor a key, so no client is recognised: leave cookie out, or pass key="
        if isinstance(self.cookie, Cookie) and self.secret is not None:
            yield "secret has no effect beside a Cookie, which has its own: leave one of them out"
        yield from self._problems_of_cookie()
        yield from self._problems_of_slots()
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

    def build_sample(self) -> Sample | None:
        """Return the sample that takes the key from a request; None if no key is configured."""
        key = self.key
        if not isinstance(key, str):
            if key is not None and not callable(key):
                raise ConfigError(f"key {key!r} is not a sample: write 'hdr(Mcp-Session-Id)', or pass a function")
            return key
        if "{" in key and "(" not in key and not key.startswith("/"):
            raise ConfigError(f"key {key!r} is no path: a template of one begins with a slash: write {'/' + key!r}")
        return PathTemplate(key) if key.startswith("/") else parse_sample(key)


def can_have_peers(config: WorkersConfig, spawned: bool, software: str) -> bool:
    """Return whether this process may be one of several workers: the group has a name, or Python's multiprocessing has
    `spawned` the process (as uvicorn, hypercorn and granian do), or `software` (the environment's SERVER_SOFTWARE) is
    gunicorn, which forks its workers.
    """
    return config.name is not None or spawned or software.startswith("gunicorn")
