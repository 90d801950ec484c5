"""The ids by which a cookie names the servers of a backend."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from copy import copy
from functools import partial

from sticky_core.errors import raise_problems
from sticky_core.http import cookies
from sticky_core.persistence import xxh64
from sticky_core.persistence.cookie.dates import DATES_LENGTH
from sticky_core.persistence.cookie.settings import CookieSettings
from sticky_core.persistence.groups import FormerIds, group_by_id, regroup
from sticky_core.persistence.signing import SIGNATURE_LENGTH, Signing
from sticky_core.server import instance
from sticky_core.server.server import Server
from sticky_core.target import Location


class CookieIds:
    """Maps servers to ids, and ids to servers. Several servers may share an id. A server has several ids if ids are
    opaque and there are several keys: the id of the newest key comes first. No cookie names a server without an id.

    A server may have former ids as well. They are recognised, but not written.

    - `longest_value`: the length of the longest signed value with one of these ids, in characters. A new dynamic id may
      increase it.
    """

    def __init__(self, settings: CookieSettings, signing: Signing | None, servers: Sequence[Server]) -> None:
        self._settings = settings
        self._signing = signing
        self._ids_of: dict[Server, tuple[str, ...]] = {}
        self._former: set[Server] = set()  # their ids are recognised, and written to their own clients only
        problems: list[str] = []
        for server in servers:
            self._ids_of[server] = self._make_ids(server, problems)
        self._servers_of = group_by_id((each, server) for server, ids in self._ids_of.items() for each in ids)
        self._former_ids = FormerIds(partial(_former_ids, settings, signing), servers)
        raise_problems(f"cookie {settings.name}: {problem}" for problem in problems)
        self.longest_value = _value_length(max(max(map(len, self._servers_of), default=0), self._former_ids.longest))

    def servers(self, server_id: str) -> Sequence[Server] | None:
        """Return the servers with an id, in the order of their declaration; if no server has it now, those that had it
        formerly; None if none had.
        """
        return self._servers_of.get(server_id) or self._former_ids.servers(server_id) or None

    def of(self, server: Server) -> tuple[str, ...]:
        """Return the ids of a server, the one that is written first; empty if the server has no id."""
        return self._ids_of[server]

    def recognised(self, server: Server) -> tuple[str, ...]:
        """Return the ids of a server, and then those that it had formerly."""
        return (*self._ids_of[server], *self._former_ids.of(server))

    def is_written(self, server_id: str) -> bool:
        """Return whether an id is the one that is written for a server that has it."""
        return any(self._ids_of[server][0] == server_id for server in self._servers_of.get(server_id, ()))

    def written(self, server: Server, is_bound: bool) -> tuple[str, ...]:
        """Return the ids of which a client of `server` gets the first; empty if it gets none. `is_bound`: whether the
        client is bound to the server already.
        """
        return self._ids_of[server] if is_bound or server not in self._former else ()

    def with_servers(self, servers: Sequence[Server], added: Sequence[Server], removed: Sequence[Server]) -> CookieIds:
        """Return a copy for `servers`: without `removed`, and with `added`."""
        ids = copy(self)
        ids._ids_of = dict(self._ids_of)
        ids._former = self._former.difference(removed)
        lost = [(each, server) for server in removed for each in ids._ids_of.pop(server)]
        problems: list[str] = []
        for server in added:
            ids._ids_of[server] = ids._make_ids(server, problems)
        raise_problems(f"cookie {self._settings.name}: {problem}" for problem in problems)
        gained = [(each, server) for server in added for each in ids._ids_of[server]]
        ids._servers_of = regroup(self._servers_of, servers, gained, lost)
        ids._former_ids = self._former_ids.with_servers(servers, added, removed)
        recognised = (each for server in added for each in ids.recognised(server))
        ids.longest_value = max((self.longest_value, *(_value_length(len(each)) for each in recognised)))
        return ids

    def sharing(self, servers: Iterable[Server]) -> list[Server]:
        """Return `servers` and those that share an id with one of them."""
        ids = dict.fromkeys(each for server in servers for each in self.recognised(server))
        return [*dict.fromkeys((*servers, *self.with_any(ids)))]

    def with_any(self, ids: Iterable[str]) -> Iterator[Server]:
        """Yield the servers that have one of `ids`, or had it formerly."""
        for each in ids:
            yield from self._servers_of.get(each, ())
            yield from self._former_ids.servers(each)

    def _make_ids(self, server: Server, problems: list[str]) -> tuple[str, ...]:
        """Return the ids of a server. Append what is wrong with them to `problems`."""
        dynamic_key = self._settings.dynamic_key
        server_id = server.config.cookie_id
        if dynamic_key is not None and server.config.cookie is None:
            try:
                server_id = _dynamic_id(dynamic_key, server)
            except ValueError as error:
                problems.append(
                    f"dynamic needs the address of server {server.name} ({error}): "
                    "give it a cookie= of its own, or use opaque"
                )
                return ()
        if not server_id and server.config.cookie is None:
            former = (server.former_cookie_id, *filter(partial(_may_contain, self._settings), server.config.formerly))
            server_id = next(filter(None, former), "")
            if server_id:
                self._former.add(server)
        if server_id and not cookies.is_value(server_id):
            problems.append(f"the name of server {server.name} can't be a cookie's value: give it a cookie= of its own")
        for character, reason in _reserved_characters(self._settings):
            if character in server_id:
                problems.append(f"server {server.name}: {character!r} in cookie {server_id!r} {reason}")
        return _written_forms(self._settings, self._signing, server_id) if server_id else ()

    def update(self, server: Server) -> list[Server]:
        """Compute the dynamic id of a server from its current address. Return the servers with other values than
        before.
        """
        key = self._settings.dynamic_key
        if key is None or server.config.cookie is not None:
            return []
        try:
            server_id = _dynamic_id(key, server)
        except ValueError:
            server_id = ""  # a UNIX socket has no address to compute it from
        ids, before = (server_id,) if server_id else (), self._ids_of[server]
        if ids == before:
            return []
        self._ids_of[server] = ids
        for each in before:
            # a new list: another thread may iterate over the old one
            self._servers_of[each] = [other for other in self._servers_of[each] if other is not server]
            if not self._servers_of[each]:
                del self._servers_of[each]
        for each in ids:
            is_shared = each in self._servers_of
            self._servers_of[each] = (
                [other for other in self._ids_of if each in self._ids_of[other]] if is_shared else [server]
            )
            self.longest_value = max(self.longest_value, _value_length(len(each)))
        return [*dict.fromkeys((server, *self.with_any((*before, *ids))))]


def _written_forms(settings: CookieSettings, signing: Signing | None, server_id: str) -> tuple[str, ...]:
    """Return an id as it is written, with each key if ids are opaque."""
    if settings.is_opaque and signing is not None:
        return tuple(signing.digest(server_id, key) for key in signing.keys)
    return (server_id,)


def _former_ids(settings: CookieSettings, signing: Signing | None, server: Server) -> Iterator[str]:
    """Yield the ids by which a cookie may have named a server: each text of its `formerly`, and the dynamic id of each
    address there. None with `cookie=""`: its clients would get no other id instead.
    """
    if server.config.cookie == "":
        return
    from sticky_core.server.formerly import location_of  # few servers were called something else

    for text in server.config.formerly:
        if _may_contain(settings, text):
            yield from _written_forms(settings, signing, text)
        if settings.dynamic_key is not None and (location := location_of(text)) is not None:
            with suppress(ValueError):  # a host name, or a socket, which has no dynamic id
                yield _dynamic_id_at(settings.dynamic_key, location)


def _may_contain(settings: CookieSettings, text: str) -> bool:
    """Return whether the cookie may have been written with `text` as an id."""
    return not any(character in text for character, _ in _reserved_characters(settings))


def _reserved_characters(settings: CookieSettings) -> Iterator[tuple[str, str]]:
    """Yield each character that an id must not contain, and the reason."""
    if settings.mode.has_prefix:
        yield "~", "would end the prefix there"
    else:
        yield "|", "would begin the dates there"
    if settings.is_signed:
        yield "@", "would begin the instance of a replica there"


def _value_length(id_length: int) -> int:
    return id_length + instance.SUFFIX_LENGTH + DATES_LENGTH + SIGNATURE_LENGTH


def _dynamic_id(key: str, server: Server) -> str:
    """Return HAProxy's dynamic id of a server; empty until the server has an address. Raise ValueError, with the
    reason, if the server can't have one.
    """
    if server.is_unresolved:
        return ""
    if not isinstance(server.config.target, str):
        raise ValueError("it is an app")
    return _dynamic_id_at(key, Location.parse(server.config.target))


def _dynamic_id_at(key: str, location: Location) -> str:
    if location.socket is not None:
        raise ValueError("it is a UNIX socket")
    return xxh64.dynamic_id(key, location.host, location.port)
