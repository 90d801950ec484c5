"""Learn the keys that the app issues in the bodies of its responses, while these pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, cast

from sticky_core.workers.backend import Workers
from sticky_core.workers.keys import KeyTable
from sticky_core.workers.learning import BodyLearner, KeyedRequest
from sticky_wsgi.messages import Environ, ExcInfo, Head, Headers, StartResponse, Write, WSGIApp
from sticky_wsgi.workers.transaction import ForwardingTransaction


class KnowsWorkers(Protocol):
    """The worker that serves: `LocalWorker`."""

    workers: Workers


class LearningApp:
    """The app itself, for requests that this worker has accepted, where keys are learned from bodies."""

    def __init__(self, app: WSGIApp, worker: KnowsWorkers) -> None:
        self._app = app
        self._worker = worker

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        request = ForwardingTransaction.of(start_response)
        return call_and_learn(self._worker.workers.keys, request, self._app, environ, start_response)


def call_and_learn(
    keys: KeyTable | None, request: KeyedRequest, app: WSGIApp, environ: Environ, start_response: StartResponse
) -> Iterable[bytes]:
    """Call the app, and return its iterable, or one that learns the key in the body of the response to `request`."""
    learner = BodyLearner.of(keys, request)
    if learner is None:
        return app(environ, start_response)
    response = LearningResponse(learner, start_response)
    return response.learn_from(app(environ, response.start_response), environ)


class LearningResponse:
    """The `start_response` and `write` of one request, which learn from the response before they pass it on."""

    def __init__(self, learner: BodyLearner, start_response: StartResponse) -> None:
        self._learner = learner
        self._start_response = start_response
        self._write: Write
        self._has_begun = False

    def start_response(self, status: str, headers: Headers, exc_info: ExcInfo | None = None, /) -> Write:
        """Start the response. The app gets the `write` of the server, unless there is something to learn."""
        if exc_info is None:
            self._write = self._start_response(status, headers)
        else:
            self._write = self._start_response(status, headers, exc_info)
        code = status[:3]
        self._learner.begin(int(code) if code.isascii() and code.isdigit() else 0, Head(headers, True))
        self._has_begun = True
        return self._write if self._learner.is_done else self.write

    def write(self, item: bytes) -> object:
        """Write a piece of the body."""
        if not self._learner.is_done:
            self._learner.read(item, False)
        return self._write(item)

    def learn_from(self, body: Iterable[bytes], environ: Environ) -> Iterable[bytes]:
        """Return the iterable of the app, unchanged where nothing can be learned from it, and where servers recognise
        it by its type: lists and the like, and the server's own for files.
        """
        learner = self._learner
        if learner.is_done or _is_file(body, environ):
            return body
        if isinstance(body, Sequence):
            if self._has_begun:
                for item in body:
                    if not learner.is_done:
                        learner.read(item, False)
                if not learner.is_done:
                    learner.read(b"", True)
            return body
        return LearningBody(body, learner)


class LearningBody:
    """The iterable of the app, which learns from each item before it is passed on."""

    __slots__ = ("_body", "_items", "_learner")

    def __init__(self, body: Iterable[bytes], learner: BodyLearner) -> None:
        self._body = body
        self._items: Iterator[bytes] | None = None
        self._learner = learner

    def __iter__(self) -> LearningBody:
        return self

    def __next__(self) -> bytes:
        items = self._items
        if items is None:
            items = self._items = iter(self._body)
        learner = self._learner
        if learner.is_done:
            return next(items)
        try:
            item = next(items)
        except StopIteration:
            learner.read(b"", True)
            raise
        learner.read(item, False)
        return item

    def close(self) -> None:
        """Close the iterable of the app."""
        close: Any = getattr(self._body, "close", None)
        if close is not None:
            close()


def _is_file(body: object, environ: Environ) -> bool:
    wrapper: object = environ.get("wsgi.file_wrapper")
    return isinstance(wrapper, type) and isinstance(body, cast("type[object]", wrapper))
