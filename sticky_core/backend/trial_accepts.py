"""Which `accepts` would keep clients that a change of cookies would lose. Each is tried: the new configuration is built
with it, and the marks of the clients are recognised as that would.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass, replace
from itertools import count, product

from sticky_core.backend.config import BackendConfig
from sticky_core.backend.trial_marks import TrialPersistences
from sticky_core.clock import Clock
from sticky_core.deferred.dataclass import dataclass
from sticky_core.errors import ConfigError
from sticky_core.options.unset import UNSET, value_or
from sticky_core.options.written import as_written
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.persistence.follow import Follow
from sticky_core.persistence.nginx import NginxCookie
from sticky_core.persistence.persistence import Persist, label_of
from sticky_core.server.server import Server

#: so many servers are listed by name
_MOST_NAMES = 10


@dataclass(frozen=True, slots=True)
class SuggestedAccepts:
    """What to write so that clients are kept that a change of cookies would lose. `str()` of it is for people.

    - `cookie`: the name of the cookie of the new configuration that accepts more then; None: no cookie there could, and
      another one has to be written in `persist`.
    - `accepts`: what it accepts in addition, as text, without secrets.
    - `servers`: the servers of which clients are kept, by name.
    - `follows`: the name of the application's cookie without which our cookie does not count (`Follow`); None: there is
      none.
    - `extends`: whether the cookie accepts something already.
    - `requests`: how many requests these servers have served in this process: clients with a cookie can't be counted.
    """

    cookie: str | None
    accepts: tuple[str, ...]
    servers: tuple[str, ...]
    follows: str | None = None
    extends: bool = False
    requests: int = 0

    def __str__(self) -> str:
        accepts = f"accepts=[{', '.join(('...', *self.accepts) if self.extends else self.accepts)}]"
        where = f"cookie {self.cookie}: {accepts}" if self.cookie is not None else f"a Cookie in persist with {accepts}"
        condition = f" that send the cookie {self.follows}" if self.follows is not None else ""
        served = f" (requests served: {self.requests})" if self.requests else ""
        return f"{where} would keep the clients of {_listed(self.servers)}{condition}{served}"


def _listed(names: Sequence[str]) -> str:
    """Return `s1, s2 and s3`; of many names only the first."""
    if len(names) > _MOST_NAMES:
        return f"{', '.join(names[:_MOST_NAMES])} and {len(names) - _MOST_NAMES} more servers"
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def suggested_accepts(
    now: TrialPersistences, lost: Mapping[Server, str], config: BackendConfig, servers: Sequence[Server], clock: Clock
) -> Sequence[SuggestedAccepts]:
    """Return what to write in `config` so that clients are kept that would leave the servers `lost`: as few accepted
    persistences as possible; nothing if no `accepts` helps. `now`: the persistences in force. `lost`: each with the
    name that it is to have. `servers`: copies of the servers as they are to be.
    """
    trial = _Trial(now, lost, config, servers, clock)
    new = config.persist
    suggestions = trial.search(new, [number for number, each in enumerate(new) if _cookie_in(each) is not None])
    if not suggestions:
        written = {scope.name for persist in (*new, *now.persists) for scope in persist.cookie_scopes()}
        name = next(name for name in (f"STICKY{number}" for number in count()) if name not in written)
        suggestions = trial.search((*new, Cookie(name, signed=False)), [len(new)])
        suggestions = [replace(each, cookie=None) for each in suggestions]
    return suggestions


class _Trial:
    """The clients of the servers `lost`, and the new configuration with more or less in its `accepts`."""

    def __init__(
        self,
        now: TrialPersistences,
        lost: Mapping[Server, str],
        config: BackendConfig,
        servers: Sequence[Server],
        clock: Clock,
    ) -> None:
        self._lost = {server.name for server in lost}
        self._marks = {each.name: (now.marks_of(each), now.route_of(each), name) for each, name in lost.items()}
        self._config = config
        self._servers = servers
        self._clock = clock
        # what is accepted in vain, such as until a date that has passed, is so on purpose
        already = [each for persist in config.persist for each in accepted_by(persist)]
        accepted = (_without_accepts(persist) for persist in now.persists)
        #: what could be accepted; first what each client has, whatever the application does
        self._accepted = sorted(
            (persist for persist in accepted if persist not in already),
            key=lambda persist: not _is_in_each_response(persist),
        )

    def search(self, new: Sequence[Persist], targets: Sequence[int]) -> list[SuggestedAccepts]:
        """Return what the cookies at the places `targets` of `new` should accept, as few as possible, so that as many
        clients are kept as possible.
        """
        chosen: dict[int, list[Persist]] = {}
        kept_by: dict[int, list[str]] = {}
        kept: set[str] = set()
        while kept != self._lost:
            found: tuple[set[str], int, Persist] | None = None
            for accepted, number in product(self._accepted, targets):
                if not any(accepted in each for each in chosen.values()):
                    more = self._kept(new, chosen | {number: [*chosen.get(number, ()), accepted]})
                    if len(more) > len(kept if found is None else found[0]):
                        found = more, number, accepted
                    if more == self._lost:
                        break
            if found is None:
                break
            more, number, accepted = found
            chosen.setdefault(number, []).append(accepted)
            kept_by.setdefault(number, []).extend(name for name in self._marks if name in more - kept)
            kept = more
        return [self._suggestion(new[number], accepted, kept_by[number]) for number, accepted in chosen.items()]

    def _kept(self, new: Sequence[Persist], accepted: dict[int, list[Persist]]) -> set[str]:
        """Return the servers that keep their clients with `new` if its cookies accept more, by their places."""
        persist = list(new)
        try:
            for number, more in accepted.items():
                persist[number] = _accepting(persist[number], more)
            config = replace(self._config, persist=tuple(persist))
            after = TrialPersistences(config, self._servers, self._clock)
        except ConfigError:  # these can't be together
            return set()
        following = (persist[number] for number in accepted)
        followed = [f"{each.application}=1" for each in following if isinstance(each, Follow)]
        return {
            was for was, (pairs, route, name) in self._marks.items() if after.find([*pairs, *followed], route) == name
        }

    def _suggestion(self, persist: Persist, accepted: Sequence[Persist], servers: Sequence[str]) -> SuggestedAccepts:
        cookie = _cookie_in(persist)
        assert cookie is not None
        return SuggestedAccepts(
            cookie.name,
            tuple(as_written(each) if is_dataclass(each) else label_of(each) for each in accepted),
            tuple(servers),
            follows=persist.application if isinstance(persist, Follow) else None,
            extends=bool(value_or(cookie.accepts, ())),
        )


def accepted_by(persist: Persist) -> Sequence[Persist]:
    """Return what a persistence accepts beside its own cookie."""
    cookie = _cookie_in(persist)
    return value_or(cookie.accepts, ()) if cookie is not None else ()


def _cookie_in(persist: Persist) -> Cookie | None:
    return persist if isinstance(persist, Cookie) else persist.cookie if isinstance(persist, Follow) else None


def _accepting(persist: Persist, more: Sequence[Persist]) -> Persist:
    """Return a persistence by a cookie, which accepts more. ConfigError if it can't."""
    if isinstance(persist, Follow):
        return replace(persist, cookie=_accepting_cookie(persist.cookie, more))
    assert isinstance(persist, Cookie)
    return _accepting_cookie(persist, more)


def _accepting_cookie(cookie: Cookie, more: Sequence[Persist]) -> Cookie:
    return replace(cookie, accepts=[*value_or(cookie.accepts, ()), *more])


def _without_accepts(persist: Persist) -> Persist:
    if isinstance(persist, Follow):
        return replace(persist, cookie=replace(persist.cookie, accepts=UNSET, accepts_until=UNSET))
    return replace(persist, accepts=UNSET, accepts_until=UNSET) if isinstance(persist, Cookie) else persist


def _is_in_each_response(persist: Persist) -> bool:
    """Return whether each client that gets a response has the cookie afterwards, whatever the application sets."""
    if isinstance(persist, Cookie):
        return persist.mode == "insert" and persist.postonly is not True
    return isinstance(persist, NginxCookie)
