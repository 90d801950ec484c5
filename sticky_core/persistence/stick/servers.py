"""The texts by which stick tables name the servers of a backend: name and instance, or address and port."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sticky_core.server.server import Server
from sticky_core.stick_table.table import StickTable
from sticky_core.target import host_and_port


class ServerTexts:
    """Maps servers to texts, and texts to servers. The text of a replica contains its instance, so after the instance
    has ended its entries bind no client any more.
    """

    def __init__(self, servers: Sequence[Server]) -> None:
        self._servers = servers
        self._server_of: dict[str, Server] = {}
        self._by_name: dict[Server, str] = {}
        self._by_address: dict[Server, str] = {}
        for server in servers:
            self.update(server)

    def update(self, server: Server) -> None:
        """Update the texts of a server that may have another instance or another address."""
        name = f"{server.name}@{server.instance}" if server.instance else server.name
        address = host_and_port(server.config.target) if isinstance(server.config.target, str) else None
        self._set(self._by_name, server, name)
        self._set(self._by_address, server, f"{address[0]}:{address[1]}" if address is not None else name)

    def _set(self, texts: dict[Server, str], server: Server, text: str) -> None:
        before = texts.get(server)
        if before != text:
            if before is not None and self._server_of.get(before) is server:
                del self._server_of[before]
            texts[server] = text
            self._server_of[text] = server

    def text_of(self, server: Server, table: StickTable) -> str:
        """Return the text that stands for `server` in `table`."""
        return self._by_address[server] if table.srvkey == "addr" else self._by_name[server]

    def server_of(self, text: str) -> Server | None:
        """Return the server that `text` stands for, or None if no server has this instance or address now."""
        return self._server_of.get(text)

    def server_of_other_instance(self, text: str) -> Server | None:
        """Return the server that `text` names, whatever the instance in it; None if there is no such server."""
        name = text.partition("@")[0]
        return self._server_of.get(name) or next((server for server in self._servers if server.name == name), None)


class BackendTable(NamedTuple):
    """A stick table as one backend uses it (`sticky_core.persistence.persistence.UsedTable`)."""

    table: StickTable
    texts: ServerTexts

    def text_of(self, server: Server) -> str:
        return self.texts.text_of(server, self.table)

    def server_of(self, text: str) -> Server | None:
        return self.texts.server_of(text)
