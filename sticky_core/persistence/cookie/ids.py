"""The ids by which a cookie names the servers of a backend."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from copy import copy

from sticky_core.errors import raise_problems
from sticky_core.http import cookies
from sticky_core.persistence import xxh64
from sticky_core.persistence.cookie.dates import DATES_LENGTH
from sticky_core.persistence.cookie.settings import CookieSettings
from sticky_core.persistence.groups import group_by_id, regroup
from sticky_core.persistence.signing import SIGNATURE_LENGTH, Signing
from sticky_core.server import instance
from sticky_core.server.server import Server
from sticky_core.target import host_and_port


class CookieIds:
    """Maps servers to ids, and ids to servers. Several servers may share an id. A server has several ids if ids are
    opaque and there are several keys: the id of the newest key comes first. No cookie names a server without an id.

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
        raise_problems(f"cookie {settings.name}: {problem}" for problem in problems)
        self.longest_value = _value_length(max(map(len, self._servers_of), default=0))

    def servers(self, server_id: str) -> Sequence[Server] | None:
        """Return the servers with an id, in the order of their declaration; None if no server has it."""
        return self._servers_of.get(server_id)

    def of(self, server: Server) -> tuple[str, ...]:
        """Return the ids of a server, the one that is written first; empty if the server has no id."""
        return self._ids_of[server]

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
        ids.longest_value = max((self.longest_value, *(_value_length(len(each)) for each, _ in gained)))
        return ids

    def sharing(self, servers: Iterable[Server]) -> list[Server]:
        """Return `servers` and those that share an id with one of them."""
        ids = {each for server in servers for each in self._ids_of[server]}
        return [*dict.fromkeys((*servers, *(server for each in ids for server in self._servers_of[each])))]

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
        if not server_id and server.former_cookie_id:
            server_id = server.former_cookie_id
            self._former.add(server)
        if server_id and not cookies.is_value(server_id):
            problems.append(f"the name of server {server.name} can't be a cookie's value: give it a cookie= of its own")
        for character, reason in self._reserved_characters():
            if character in server_id:
                problems.append(f"server {server.name}: {character!r} in cookie {server_id!r} {reason}")
        if server_id and self._settings.is_opaque and self._signing is not None:
            return tuple(self._signing.digest(server_id, key) for key in self._signing.keys)
        return (server_id,) if server_id else ()

    def _reserved_characters(self) -> Iterator[tuple[str, str]]:
        """Yield each character that an id must not contain, and the reason."""
        if self._settings.mode.has_prefix:
            yield "~", "would end the prefix there"
        else:
            yield "|", "would begin the dates there"
        if self._settings.is_signed:
            yield "@", "would begin the instance of a replica there"

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
        sharing = (other for each in (*before, *ids) for other in self._servers_of.get(each, ()))
        return [*dict.fromkeys((server, *sharing))]


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
    where = host_and_port(server.config.target)
    if where is None:
        raise ValueError("it is a UNIX socket")
    return xxh64.dynamic_id(key, *where)
