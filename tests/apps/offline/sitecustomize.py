"""Imported by every Python process of these tests at its start: none of them connects to another machine."""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

_connect, _connect_ex, _getaddrinfo = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo


def _require_local(host: object) -> None:
    name = host.decode() if isinstance(host, bytes) else host
    if name in (None, "", "localhost"):
        return
    try:
        local = ipaddress.ip_address(str(name)).is_loopback or str(name) in ("0.0.0.0", "::")
    except ValueError:
        local = False
    if not local:
        raise OSError(f"a process of tests/apps reaches outside: {name}")


def connect(self: socket.socket, address: Any) -> None:
    if self.family != socket.AF_UNIX:
        _require_local(address[0])
    _connect(self, address)


def connect_ex(self: socket.socket, address: Any) -> int:
    if self.family != socket.AF_UNIX:
        _require_local(address[0])
    return _connect_ex(self, address)


def getaddrinfo(host: Any, *arguments: Any, **options: Any) -> Any:
    _require_local(host)
    return _getaddrinfo(host, *arguments, **options)


socket.socket.connect = connect  # type: ignore[method-assign, assignment]
socket.socket.connect_ex = connect_ex  # type: ignore[method-assign, assignment]
socket.getaddrinfo = getaddrinfo
