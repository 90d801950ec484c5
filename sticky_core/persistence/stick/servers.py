"""The texts by which stick tables name the servers of a backend: name and instance, or address and port."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from typing import NamedTuple

from sticky_core.persistence.groups import FormerIds
from sticky_core.server.server import Server
from sticky_core.stick_table.table import StickTable
from sticky_core.target import host_and_port


class ServerTexts:
    """Maps servers to texts, and texts to servers. The text of a replica contains its instance, so after the instance
    has ended its entries bind no client any more. A text by which a server was known formerly stands for it as well,
    unless it stands for another server now.
    """

    def __init__(self, servers: Sequence[Server]) -> None:
        self._named = {server.name: server for server in servers}
        self._server_of: dict[str, Server] = {}
        self._by_name: dict[Server, str] = {}
        self._by_address: dict[Server, str] = {}
        self._former = FormerIds(_former_texts, servers)
        for server in servers:
            self.update(server)

    def with_servers(
        self, servers: Sequence[Server], added: Sequence[Server], removed: Sequence[Server]
    ) -> ServerTexts:
        """Return a copy for `servers`: without `removed`, and with `added`."""
        texts = copy(self)
        texts._former = self._former.with_servers(servers, added, removed)
        texts._named, texts._server_of = dict(self._named), dict(self._server_of)
        texts._by_name, texts._by_address = dict(self._by_name), dict(self._by_address)
        for server in removed:
            del texts._named[server.name]
            for names in (texts._by_name, texts._by_address):
                texts._release(names.pop(server), server)
        for server in added:
            texts._named[server.name] = server
            texts.update(server)
        return texts

    def update(self, server: Server) -> None:
        """Update the texts of a server that may have another instance or another address."""
        name = f"{server.name}@{server.instance}" if server.instance else server.name
        address = host_and_port(server.config.target) if isinstance(server.config.target, str) else None
        self._set(self._by_name, server, name)
        self._set(self._by_address, server, f"{address[0]}:{address[1]}" if address is not None else name)

    def _set(self, texts: dict[Server, str], server: Server, text: str) -> None:
        before = texts.get(server)
        if before != text:
            texts[server] = text
            if before is not None:
                self._release(before, server)
            self._server_of[text] = server

    def _release(self, text: str, server: Server) -> None:
        """Let `text` no longer stand for `server`; if another server has the same address, it stands for that."""
        if self._server_of.get(text) is server:
            del self._server_of[text]
            if text in self._by_address.values():
                self._server_of[text] = next(other for other, address in self._by_address.items() if address == text)

    def text_of(self, server: Server, table: StickTable) -> str:
        """Return the text that stands for `server` in `table`."""
        return self._by_address[server] if table.srvkey == "addr" else self._by_name[server]

    def server_of(self, text: str) -> Server | None:
        """Return the server that `text` stands for, or None if no server has this instance or address now."""
        return self._server_of.get(text) or self._server_formerly(text)

    def _server_formerly(self, text: str) -> Server | None:
        """Return the server that `text` stood for formerly. A replica is none: its memory began with its instance."""
        return next((server for server in self._former.servers(text) if not server.instance), None)

    def former_texts_of(self, server: Server) -> Sequence[str]:
        """Return the texts that stood for `server` formerly, or do so in other processes."""
        return self._former.of(server)

    def server_of_other_instance(self, text: str) -> Server | None:
        """Return the server that `text` names, whatever the instance in it; None if there is no such server."""
        name = text.partition("@")[0]
        return self._server_of.get(name) or self._named.get(name) or next(iter(self._former.servers(name)), None)


def _former_texts(server: Server) -> Iterator[str]:
    """Yield the texts that may have stood for a server formerly: those of `formerly`, and host and port of each
    address.
    """
    from sticky_core.server.formerly import location_of  # few servers were called something else

    for text in server.config.formerly:
        yield text
        location = location_of(text)
        if location is not None and location.socket is None:
            yield f"{location.host}:{location.port}"


class BackendTable(NamedTuple):
    """A stick table as one backend uses it (`sticky_core.persistence.persistence.UsedTable`)."""

    table: StickTable
    texts: ServerTexts

    def text_of(self, server: Server) -> str:
        return self.texts.text_of(server, self.table)

    def server_of(self, text: str) -> Server | None:
        return self.texts.server_of(text)

    def former_texts_of(self, server: Server) -> Sequence[str]:
        return self.texts.former_texts_of(server)
