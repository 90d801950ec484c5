"""Keys that an app issues in the bodies of its responses, learned while these pass. Without I/O."""

from __future__ import annotations

from typing import Protocol

from sticky_core.http.messages import ResponseHead
from sticky_core.samples.response_body import BodyReader
from sticky_core.workers.keys import KeyTable


class KeyedRequest(Protocol):
    """A request in the worker that serves it: a transaction, or the forwarded request of a peer."""

    @property
    def key(self) -> str | None:
        """The key of the request; None if it has none."""
        ...


class BodyLearner:
    """Learns the key that the app issues in the body of its response to `request`, which has none itself.

    The face calls `begin` with the head of the response, then `read` with each piece of the body before it passes the
    piece on: when the client receives the key, this worker knows it, and its peers query it.

    `is_done`: whether there is nothing more to be learned from this response.
    """

    __slots__ = ("_keys", "_reader", "_request", "is_done")

    def __init__(self, keys: KeyTable, request: KeyedRequest) -> None:
        self._keys = keys
        self._request = request
        self._reader: BodyReader | None = None
        self.is_done = False

    @classmethod
    def of(cls, keys: KeyTable | None, request: KeyedRequest) -> BodyLearner | None:
        """Return what learns from the response to `request`; None if nothing is to be learned from its body.

        A request with a key belongs to its worker already. Its response may well contain keys of other clients, such
        as those of a chat.
        """
        if keys is None or not keys.body_samples or request.key is not None:
            return None
        return cls(keys, request)

    def begin(self, status: int, response: ResponseHead) -> None:
        """Take the head of the response. Only bodies of successful responses are read: an error may repeat a key."""
        reader = self._keys.body_reader(response) if 200 <= status < 300 else None
        self._reader = reader
        self.is_done = reader is None or reader.is_done

    def read(self, piece: bytes, is_last: bool) -> None:
        """Read the next piece of the body. `is_last`: whether the body ends with it."""
        reader = self._reader
        if reader is None:  # a body without a head
            self.is_done = True
            return
        found = reader.read(piece, is_last)
        self.is_done = reader.is_done
        if found is not None:
            self._keys.learn_issued(self._request, found)
