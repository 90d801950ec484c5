"""TLS to a server (HAProxy `server … ssl ca-file … crt … sni … verify`)."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator

from sticky_core.deferred.dataclass import dataclass
from sticky_core.errors import ConfigError, raise_problems


@dataclass(frozen=True, slots=True, kw_only=True)
class TLS:
    """TLS options for an `https://` server.

    - `ca_file`: the CA certificates to trust, path of a PEM file, by default those of the system (`ca-file`).
    - `crt`: a client certificate, path of a PEM file, None (`crt`).
    - `key`: the key of `crt`, path of a PEM file, None; not needed if `crt` contains it.
    - `sni`: the server name to request and to verify, str, by default the host of the URL (`sni`).
    - `verify`: whether the certificate is verified, bool, True; False accepts any certificate, so connections can be
      intercepted (`verify`).

    Raises `ConfigError` for files that do not exist or do not contain what they should.
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
                yield f"tls: {name} {_text(path)} does not exist"
        if self.key is not None and self.crt is None:
            yield "tls: key has no effect without crt: add crt, or leave it out"
        if self.ca_file is not None and not self.verify:
            yield "tls: ca_file has no effect with verify=False: leave one of them out"

    def context(self) -> ssl.SSLContext:
        """Return the SSL context. Raise ConfigError if the files do not contain what they should."""
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
        except (ssl.SSLError, OSError) as error:
            raise ConfigError(f"tls: ca_file {_text(self.ca_file)} contains no certificates: {error}") from error
        if self.crt is not None:
            try:
                context.load_cert_chain(self.crt, self.key, password=_no_password)
            except (ssl.SSLError, OSError) as error:
                files = f"crt {_text(self.crt)} and key {_text(self.key or self.crt)}"
                raise ConfigError(f"tls: {files} are not a certificate and its key: {error}") from error
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        context.set_alpn_protocols(["http/1.1"])
        return context


def _text(path: str | os.PathLike[str] | None) -> str:
    return "of the system" if path is None else repr(os.fspath(path))


def _no_password() -> str:
    """Refuse an encrypted key: without this callback OpenSSL would prompt for a password at the terminal and wait."""
    raise ConfigError("tls: the key is encrypted: store it without a password, readable only by this process")
