"""The values of a cookie: what is written for a server, and which server a value names."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from copy import copy

from sticky_core.cache import TwoGenerationCache
from sticky_core.clock import Clock
from sticky_core.http import cookies
from sticky_core.persistence.claim import GIVE_FORMERLY, Claim, InvalidMark, PersistenceResult, Reason
from sticky_core.persistence.cookie import dates
from sticky_core.persistence.cookie.ids import CookieIds
from sticky_core.persistence.cookie.settings import CookieSettings
from sticky_core.persistence.signing import Signing
from sticky_core.server import instance
from sticky_core.server.server import Server

_log = logging.getLogger("sticky_sessions")

#: how many values or headers a cache keeps, and at most twice as many
REMEMBERED = 4096
#: a value or header with more characters is not cached, so that a cache takes some twenty megabytes at most
LONGEST_REMEMBERED = 1024

_GIVE_OLD_NAME = "If it was renamed, give it formerly= with its old name."
_PASS_SECRETS = "If the secret was changed, pass the one from before as well: secret=[old, new]."
_ACCEPT_PLAIN = "If it was plain before, or is HAProxy's, write accepts=[Cookie({name!r}, signed=False)]."

#: The servers with the id in a value, in order, each with the result to return if it is chosen.
Candidates = tuple[tuple[Server, PersistenceResult], ...]


class CookieValues:
    """The values of one cookie.

    A value consists of the id, the instance of a replica, the dates, and the signature. Values without dates are made
    once for each server, and then looked up; values with dates are verified once, and then cached.
    """

    def __init__(
        self,
        settings: CookieSettings,
        ids: CookieIds,
        signing: Signing | None,
        backend: str,
        servers: Sequence[Server],
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._ids = ids
        self._signing = signing if settings.is_signed else None
        self._backend = backend
        self._clock = clock
        self._is_dated = settings.is_dated
        self._unquotes = settings.is_signed and not settings.mode.has_prefix
        # An application sets the cookie in the other modes, and what clients have from before us is a session id.
        self._logs_names = settings.is_signed or settings.mode.edit_value is None
        self._place = f"cookie {settings.name} of a client"
        self._forged_remedy = f"{_PASS_SECRETS} {_ACCEPT_PLAIN.format(name=settings.name)}"
        if not settings.is_opaque:
            self._remedy = GIVE_FORMERLY
        else:  # an id is a digest by the secret of a name
            self._remedy = _GIVE_OLD_NAME if settings.is_signed else f"{_GIVE_OLD_NAME} {_PASS_SECRETS}"
        self._needs_no_mark = not (settings.is_dated or settings.refresh == "always")
        self._instances: dict[Server, str] = {}  # the instance that the values of each server name
        self._undated: dict[str, Candidates] = {}
        self._undated_of: dict[Server, list[str]] = {}
        self._current: dict[Server, str] = {}  # the undated value that is written for each server
        self._dated: TwoGenerationCache[str, Candidates]
        self._has_warned = False
        for server in servers:
            self.update(server)

    def with_servers(self, ids: CookieIds, added: Sequence[Server], removed: Sequence[Server]) -> CookieValues:
        """Return a copy with `ids`, without the values of `removed`, and with those of `added`."""
        values = copy(self)
        values._ids = ids
        values._instances, values._current = dict(self._instances), dict(self._current)
        values._undated, values._undated_of = dict(self._undated), dict(self._undated_of)
        for server in removed:
            for value in values._undated_of.pop(server):
                values._undated.pop(value, None)
            values._current.pop(server, None)
            del values._instances[server]
        # the servers that shared an id with a removed one have it still
        left = [*ids.with_any(lost for each in removed for lost in self._ids.recognised(each))]
        for server in ids.sharing(dict.fromkeys((*added, *left))):
            values.update(server)
        values._dated = TwoGenerationCache(REMEMBERED)
        return values

    def has_other_instance(self, server: Server) -> bool:
        """Return whether a server has another instance now than the one that its values name."""
        return self._instances[server] != server.instance

    def update(self, server: Server) -> None:
        """Make the undated values of a server, for its current ids and instance."""
        self._instances[server] = server.instance
        for value in self._undated_of.get(server, ()):
            self._undated.pop(value, None)
        values: list[str] = []
        written = self._ids.of(server)[:1]
        for server_id in self._ids.recognised(server):
            is_written = self._ids.is_written(server_id)
            for key in self._signing.keys if self._signing is not None else (0,):
                value = self._sign(self._payload(server, server_id), key)
                self._undated[value] = self._candidates(server_id, None, None, is_outdated=key > 0 or not is_written)
                values.append(value)
        self._undated_of[server] = values
        if written:
            self._current[server] = values[0]
        # A new cache: another thread that reads the old one at this moment may still add values to it.
        self._dated = TwoGenerationCache(REMEMBERED)

    def _payload(self, server: Server, server_id: str) -> str:
        return instance.id_with_instance(server_id, server.instance) if self._settings.is_signed else server_id

    def _sign(self, payload: str, key: int = 0) -> str:
        return self._signing.sign(payload, key) if self._signing is not None else payload

    def _candidates(
        self, server_id: str, last_seen: int | None, first_seen: int | None, *, is_outdated: bool
    ) -> Candidates:
        needs_no_mark = self._needs_no_mark and last_seen is None and first_seen is None and not is_outdated
        return tuple(
            (
                server,
                PersistenceResult(Claim.VALID, Reason.BOUND, server, last_seen, first_seen, is_outdated, needs_no_mark),
            )
            for server in self._ids.servers(server_id) or ()
        )

    def make(self, server: Server, first_seen: int | None = None) -> str:
        """Return the value to write for a server that has an id, with the current date if values have dates.
        `first_seen`: the date of the client's first visit; None: now.
        """
        if not self._is_dated:
            return self._current[server]
        now = int(self._clock.wall())
        first = (first_seen or now) if self._settings.max_life else None
        return self._sign(dates.add_dates(self._payload(server, self._ids.of(server)[0]), now, first))

    def look_up(self, value: str) -> Candidates | PersistenceResult:
        """Return the servers that a value names, or the result with the reason why it names none."""
        dated = self._dated
        known = self._undated.get(value) or dated.get(value)
        if known is None and self._unquotes and value[:1] == '"':
            value = cookies.unquote(value)  # clients written in Python (http.cookies, aiohttp) quote a value with an @
            known = self._undated.get(value) or dated.get(value)
        if known is None:
            parsed = self._parse(value)
            if isinstance(parsed, PersistenceResult) or len(value) > LONGEST_REMEMBERED:
                return parsed
            dated.put(value, known := parsed)
        return known

    def _parse(self, value: str) -> Candidates | PersistenceResult:
        if not value:
            return PersistenceResult(Claim.INVALID, Reason.EMPTY)
        payload, key = value, 0
        if self._signing is not None:
            # a longer value can't be one of ours, so no signature is computed for it
            verified = self._signing.verify(value) if len(value) <= self._ids.longest_value else None
            if verified is None:
                return InvalidMark(Claim.INVALID, Reason.FORGED, place=self._place, remedy=self._forged_remedy)
            payload, key = verified
        last_seen = first_seen = None
        if not self._settings.mode.has_prefix:
            payload, last_seen, first_seen = dates.split_dates(payload)
        server_id, named_instance = instance.split_instance(payload) if self._settings.is_signed else (payload, "")
        servers = self._ids.servers(server_id)
        if servers is None:
            # the dates are kept: the new mark repeats the date of the first visit
            name = server_id if self._logs_names else ""
            return InvalidMark(
                Claim.INVALID,
                Reason.UNKNOWN,
                None,
                last_seen,
                first_seen,
                place=self._place,
                name=name,
                remedy=self._remedy,
            )
        if self._settings.is_signed and all(named_instance != server.instance for server in servers):
            self._warn_of_other_processes(servers, named_instance)
            return PersistenceResult(Claim.INVALID, Reason.OTHER_INSTANCE, servers[0], last_seen, first_seen)
        # a former id, or an opaque one of an old key, is valid, but is not written any more
        is_outdated = key > 0 or not self._ids.is_written(server_id)
        return self._candidates(server_id, last_seen, first_seen, is_outdated=is_outdated)

    def _warn_of_other_processes(self, servers: Sequence[Server], named_instance: str) -> None:
        """Log once that several processes have replicas of the same servers, if a value names an instance that began
        after the one here: a former instance of this process would have begun before it.
        """
        if self._has_warned:
            return
        if any(server.instance and instance.began_after(named_instance, server.instance) for server in servers):
            self._has_warned = True
            _log.warning(
                "backend %s: a client sent the mark of a replica in another process. Replicas live in one process: "
                "if several workers run, each has replicas of its own, and clients lose their sessions. Run one "
                "worker, or put StickyWorkers around the app.",
                self._backend,
            )
