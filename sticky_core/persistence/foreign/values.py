"""How the values of a cookie that another balancer has set name servers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from sticky_core.server.server import Server

#: reads the value of a cookie, and returns the keys of servers that it may contain
Reader = Callable[[str], Sequence[str]]


class ForeignValues:
    """How the values of another balancer's cookie name servers. Each balancer has a subclass, which is a frozen
    configuration value.

    A server has keys, texts that are made once, when the servers are configured. Reading a value returns the few keys
    that it may contain, and a server is found by the exact key.
    """

    __slots__ = ()

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the options."""
        yield from ()

    def problems_with(self, servers: Sequence[Server], new: Sequence[Server]) -> Iterator[str]:
        """Yield why `servers` can't be found by such values. `new`: those of them that were not checked before."""
        yield from ()

    def keys_of(self, server: Server) -> Iterable[str]:
        """Return the keys by which values name `server`."""
        raise NotImplementedError

    def keys_in(self, value: str) -> Sequence[str]:
        """Return the keys that a value may contain. It has been sent by a client, and may be any text of up to 4 KB."""
        return (value,)

    def logged_name(self, value: str) -> str:
        """Return what a value that names no server calls one, for the log; empty: nothing of it is logged."""
        return value

    def reader(self, keys: Iterable[str]) -> Reader:
        """Return the function that reads values if the servers have `keys` and no others."""
        return self.keys_in
