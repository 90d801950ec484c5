"""Signed texts. A signed value is valid only in the one form in which we write it.

The keys and the form of the values are those of itsdangerous. It does not verify them: it decodes their base64
leniently, so that `value + "="` would be valid too. Instead the payload is signed again, and the value is valid if it
is exactly the same text. It does not sign them either: it would derive the key anew for each value.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from typing import cast

from itsdangerous import Signer

Secret = str | bytes

#: the environment variable that holds the secret if no option gives one
VARIABLE = "STICKY_SECRET"

#: the shortest secret that is accepted, in bytes
SHORTEST = 16

#: how many characters a signature adds to a text: a dot, and SHA-256 in base64
SIGNATURE_LENGTH = 44

_HOW_TO_SET = (
    'make one with: python -c "import secrets; print(secrets.token_urlsafe(32))" '
    f"(and set it as {VARIABLE}, or pass secret=...)"
)


def secrets(given: Secret | Sequence[Secret] | None) -> tuple[bytes, ...]:
    """Return the secrets as bytes, oldest first: the given ones, else that of the environment. Raise ValueError if
    there is none, or one is too short.
    """
    if given is None:
        given = os.environ.get(VARIABLE, "")
        if not given:
            raise ValueError(f"a signed cookie needs a secret: {_HOW_TO_SET}")
    several = [given] if isinstance(given, (str, bytes)) else list(given)
    if not all(isinstance(cast(object, key), (str, bytes)) for key in several):
        raise ValueError(f"a secret is text or bytes, and a list of secrets has another type in it: {_HOW_TO_SET}")
    keys = tuple(key.encode() if isinstance(key, str) else bytes(key) for key in several)
    if not keys:
        raise ValueError(f"secret is an empty list: {_HOW_TO_SET}")
    if any(len(key) < SHORTEST for key in keys):
        raise ValueError(f"a secret shorter than {SHORTEST} bytes can be guessed: {_HOW_TO_SET}")
    return keys


class Signing:
    """Signs and verifies texts for one purpose, by HMAC-SHA256. A key is derived from each secret by HMAC, with a salt
    that names the purpose.
    """

    def __init__(self, keys: Sequence[bytes], *purpose: str) -> None:
        salt = "/".join(("sticky-sessions", *purpose))
        # one Signer for each key: a Signer with a list of keys does not tell which of them matched
        self._keys = [
            Signer(key, salt=salt, key_derivation="hmac", digest_method=hashlib.sha256).derive_key()
            for key in reversed(keys)
        ]

    @property
    def keys(self) -> range:
        """The numbers of the keys. 0 is the newest, with which values are signed."""
        return range(len(self._keys))

    def sign(self, payload: str, key: int = 0) -> str:
        """Return `payload.signature`."""
        signature = urlsafe_b64encode(hmac.digest(self._keys[key], payload.encode(), "sha256"))
        return f"{payload}.{signature.rstrip(b'=').decode('ascii')}"

    def verify(self, value: str) -> tuple[str, int] | None:
        """Return the payload of a signed value and the number of the key that has signed it, or None if no key signs
        the payload with exactly this value.
        """
        payload, dot, _ = value.rpartition(".")
        if dot and value.isascii():
            for key in self.keys:
                if hmac.compare_digest(self.sign(payload, key), value):
                    return payload, key
        return None

    def digest(self, text: str, key: int = 0) -> str:
        """Return a keyed digest of `text`, 32 hexadecimal digits, which does not reveal `text`."""
        return hmac.digest(self._keys[key], b"opaque/" + text.encode(), "sha256").hex()[:32]
