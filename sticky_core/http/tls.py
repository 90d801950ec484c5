"""TLS towards a server (HAProxy `server … ssl ca-file … crt … sni … verify`)."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from dataclasses import dataclass

from sticky_core.errors import ConfigError, raise_problems


@dataclass(frozen=True, slots=True, kw_only=True)
class TLS:
    """How to speak TLS with an `https://` server.

    `ca_file`: the certificates to trust, a PEM file; by default the system's. `crt`, `key`: a client certificate and
    its key, PEM files; `key` is not needed where `crt` holds it. `sni`: the name to ask for and to verify, by default
    the URL's host. `verify=False` accepts any certificate, and so any stranger on the way.

    Raises `ConfigError` for files that are not there or hold something else.
    """

    ca_file: str | os.PathLike[str] | None = None
    crt: str | os.PathLike[str] | None = None
    key: str | os.PathLike[str] | None = None
    sni: str | None = None
    verify: bool = True

    def __post_init__(self) -> None:
        raise_problems(self._problems())

    def _problems(self) -> Iterator[str]:
        for name in ("ca_file", "crt", "key"):
            path = getattr(self, name)
            if path is not None and not os.path.isfile(path):
                yield f"tls: {name} {_text(path)} is not there"
        if self.key is not None and self.crt is None:
            yield "tls: key is of no use without crt"
        if self.ca_file is not None and not self.verify:
            yield "tls: ca_file is of no use with verify=False"

    def context(self) -> ssl.SSLContext:
        """What sockets need. ConfigError if the files do not hold what they should."""
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
        except (ssl.SSLError, OSError) as error:
            raise ConfigError(f"tls: ca_file {_text(self.ca_file)} holds no certificates: {error}") from error
        if self.crt is not None:
            try:
                context.load_cert_chain(self.crt, self.key, password=_no_password)
            except (ssl.SSLError, OSError) as error:
                files = f"crt {_text(self.crt)} and key {_text(self.key or self.crt)}"
                raise ConfigError(f"tls: {files} are no certificate and its key: {error}") from error
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        context.set_alpn_protocols(["http/1.1"])
        return context


def _text(path: str | os.PathLike[str] | None) -> str:
    return "of the system" if path is None else repr(os.fspath(path))


def _no_password() -> str:
    """Asked for where a key is encrypted: else OpenSSL would ask at the terminal, and wait."""
    raise ConfigError("tls: the key is encrypted: write it without a password, where only the server can read it")
