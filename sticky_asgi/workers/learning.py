"""Learn the keys that the app issues in the bodies of its responses, while these pass."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Protocol

from sticky_asgi.messages import ASGIApp, Head, Headers, Message, Receive, Scope, Send
from sticky_asgi.workers.transaction import ForwardingTransaction
from sticky_core.workers.backend import Workers
from sticky_core.workers.keys import KeyTable
from sticky_core.workers.learning import BodyLearner, KeyedRequest


class KnowsWorkers(Protocol):
    """The worker that serves: `LocalWorker`."""

    workers: Workers


class LearningApp:
    """The app itself, for requests that this worker has accepted, where keys are learned from bodies."""

    def __init__(self, app: ASGIApp, worker: KnowsWorkers) -> None:
        self._app = app
        self._worker = worker

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = ForwardingTransaction.of(send)
        await self._app(scope, receive, learning_send(self._worker.workers.keys, request, send))


def learning_send(keys: KeyTable | None, request: KeyedRequest, send: Send) -> Send:
    """Return a `send` that learns the key in the body of the response to `request`; `send` itself if there is nothing
    to learn.
    """
    learner = BodyLearner.of(keys, request)
    return send if learner is None else LearningSend(learner, send).send


class LearningSend:
    """The `send` of one request, which learns from the response before it passes it on."""

    __slots__ = ("_learner", "_send")

    def __init__(self, learner: BodyLearner, send: Send) -> None:
        self._learner = learner
        self._send = send

    def send(self, message: Message) -> Awaitable[None]:
        """Send a message of the app. No coroutine is added for each message."""
        learner = self._learner
        if not learner.is_done:
            kind = message["type"]
            if kind == "http.response.start":
                headers: Headers = list(message.get("headers") or ())  # any iterable, even one that can be read once
                message = {**message, "headers": headers}
                learner.begin(message["status"], Head(headers, True))
            elif kind == "http.response.body":
                learner.read(message.get("body", b""), not message.get("more_body", False))
        return self._send(message)
