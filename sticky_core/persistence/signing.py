"""Signed texts. A signed value counts only in the one form in which we would write it.

itsdangerous signs; we compare. Its signatures are base64 and it decodes them leniently (`value + "="` verifies as
well), so a value counts only if signing its payload again gives exactly the same characters.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Sequence

from itsdangerous import Signer

Secret = str | bytes

#: the environment variable with the secret, if none is given
VARIABLE = "STICKY_SECRET"

#: the shortest secret that is accepted, in bytes
SHORTEST = 16

#: how many characters a signature adds to a text: a dot, and SHA-256 in base64
SIGNATURE_LENGTH = 44

_HOW = (
    'make one with: python -c "import secrets; print(secrets.token_urlsafe(32))" '
    f"(and set it as {VARIABLE}, or pass secret=...)"
)


def secrets(given: Secret | Sequence[Secret] | None) -> tuple[bytes, ...]:
    """Return the keys, oldest first: those given, else the environment's. ValueError if they are missing or weak."""
    if given is None:
        given = os.environ.get(VARIABLE, "")
        if not given:
            raise ValueError(f"a signed cookie needs a secret: {_HOW}")
    several = [given] if isinstance(given, (str, bytes)) else list(given)
    keys = tuple(key.encode() if isinstance(key, str) else bytes(key) for key in several)
    if not keys:
        raise ValueError(f"secret is an empty list: {_HOW}")
    if any(len(key) < SHORTEST for key in keys):
        raise ValueError(f"a secret shorter than {SHORTEST} bytes can be guessed: {_HOW}")
    return keys


class Signing:
    """Signs for one purpose, by HMAC-SHA256. The keys are derived from each secret by HMAC, with a salt that names the
    purpose.
    """

    def __init__(self, keys: Sequence[bytes], *purpose: str) -> None:
        salt = "/".join(("sticky-sessions", *purpose))
        # one Signer per key: a Signer with a list of keys does not tell which of them matched
        self._signers = [
            Signer(key, salt=salt, key_derivation="hmac", digest_method=hashlib.sha256) for key in reversed(keys)
        ]
        self._digest_keys = [signer.derive_key() for signer in self._signers]

    @property
    def keys(self) -> range:
        """The numbers of the keys: 0 is the newest, which signs."""
        return range(len(self._signers))

    def sign(self, payload: str, key: int = 0) -> str:
        """Return `payload.signature`."""
        return self._signers[key].sign(payload).decode("ascii")

    def verify(self, value: str) -> tuple[str, int] | None:
        """Return the payload of a signed value, and the number of the key that has signed it; None if none of ours has
        signed exactly this value.
        """
        payload, dot, _ = value.rpartition(".")
        if dot and value.isascii():
            for key in self.keys:
                if hmac.compare_digest(self.sign(payload, key), value):
                    return payload, key
        return None

    def digest(self, text: str, key: int = 0) -> str:
        """Return a keyed digest of `text`, 32 hexadecimal digits, from which `text` can't be found."""
        return hmac.digest(self._digest_keys[key], b"opaque/" + text.encode(), "sha256").hex()[:32]
