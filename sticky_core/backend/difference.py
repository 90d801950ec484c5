"""ServerDifference: how the servers of another configuration differ from those in force. It is found by comparing the
two configurations, so that a change costs in proportion to what it changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import compress, count
from operator import is_not
from typing import TypeVar

from sticky_core.deferred.dataclass import dataclass
from sticky_core.server.config import ServerConfig
from sticky_core.server.server import Server

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ServerDifference:
    """What is different about the servers of a backend.

    - `servers`: the servers after the change, in order.
    - `added`: servers that are new, replacements included.
    - `removed`: servers that are removed, each with the server that replaces it, or None. It has the same name, or has
      another and was formerly known by a name, an id or the address of the removed one (`Server(formerly=...)`).
    - `changed`: servers that stay but get another configuration, each with its new configuration.
    - `before`: the configurations, until now, of the servers that are removed or changed.
    - `after`: the new configurations of the servers that are added or changed.
    - `keeps_order`: whether the servers that stay keep their order.
    - `is_last`: whether the added servers come after all others.
    """

    servers: tuple[Server, ...]
    added: tuple[Server, ...]
    removed: Mapping[Server, Server | None]
    changed: Mapping[Server, ServerConfig]
    before: tuple[ServerConfig, ...]
    after: tuple[ServerConfig, ...]
    keeps_order: bool
    is_last: bool

    @classmethod
    def find(
        cls,
        servers: tuple[Server, ...],
        before: tuple[ServerConfig, ...],
        after: tuple[ServerConfig, ...],
        given: Mapping[str, Server],
    ) -> ServerDifference:
        """Compare two configurations: `before`, that of `servers`, and `after`. `given`: servers of `after` that the
        caller has made already, by name.
        """
        begin, end_before, end_after = differing_part(before, after)
        known = {server.name: server for server in servers[begin:end_before]}
        part: list[Server] = []
        added: list[Server] = []
        replacements: dict[Server, Server] = {}
        changed: dict[Server, ServerConfig] = {}
        for requested in after[begin:end_after]:
            server = known.get(requested.name)
            if server is None or requested.has_another_app_than(server.requested):
                new = given.get(requested.name) or Server.of(requested)
                if server is not None:
                    replacements[server] = new
                added.append(new)
                server = new
            elif requested != server.requested:
                changed[server] = requested
            part.append(server)
        new_ones, staying = set(added), set(part)
        if any(server.requested.formerly for server in added):
            from sticky_core.server.formerly import find_renamed  # few servers were called something else

            left = {name: each for name, each in known.items() if each not in staying and each not in replacements}
            come = {server.name: server for server in added if server not in replacements.values()}
            renamed = find_renamed(
                [server.requested for server in left.values()], [server.requested for server in come.values()]
            )
            replacements.update((left[name], come[successor]) for name, successor in renamed.items())
        removed = {server: replacements.get(server) for server in servers[begin:end_before] if server not in staying}
        configs = dict(zip(part, after[begin:end_after], strict=True))
        kept = [server for server in part if server not in new_ones]
        return cls(
            servers=servers[:begin] + tuple(part) + servers[end_before:],
            added=tuple(added),
            removed=removed,
            changed=changed,
            before=tuple(server.requested for server in (*removed, *changed)),
            after=tuple(configs[server] for server in (*added, *changed)),
            keeps_order=kept == [server for server in servers[begin:end_before] if server in staying],
            is_last=not added or (end_before == len(before) and part[-len(added) :] == added),
        )

    @property
    def renamed(self) -> dict[Server, Server]:
        """The removed servers that are the same under another name, each with the server of that name."""
        return {
            server: replacement
            for server, replacement in self.removed.items()
            if replacement is not None and replacement.name != server.name
        }

    @property
    def changes_ids(self) -> tuple[Server, ...]:
        """The changed servers that get other ids in cookies. Only before they are changed."""
        return tuple(
            server for server, config in self.changed.items() if config.id_options != server.requested.id_options
        )

    @property
    def changes_backups(self) -> bool:
        """Whether a changed server becomes a backup, or is none any more. Only before it is changed."""
        return any(config.backup is not server.requested.backup for server, config in self.changed.items())


def differing_part(before: Sequence[T], after: Sequence[T]) -> tuple[int, int, int]:
    """Return where two sequences differ: from which position, and to which position of each. Items are compared by
    identity.
    """
    shorter = min(len(before), len(after))
    begin = next(compress(count(), map(is_not, before, after)), shorter)
    end = next(compress(count(), map(is_not, reversed(before), reversed(after))), shorter)
    end = min(end, shorter - begin)
    return begin, len(before) - end, len(after) - end
