"""gunicorn's worker object in this process: how many requests it serves at the same time, and its heartbeat."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeVar

from sticky_core.errors import Failure, ServerFailure
from sticky_core.workers.heartbeat import HeartbeatTimeout
from sticky_wsgi.upstream.connections import TICK

_log = logging.getLogger("sticky_sessions")

T = TypeVar("T")

#: The signals of which gunicorn's worker object has the handler, those first that apps replace least.
_SIGNALS: Final = ("SIGABRT", "SIGWINCH", "SIGUSR1", "SIGQUIT", "SIGTERM")


_announced: Any = None


def announce_worker(worker: Any) -> None:
    """Take gunicorn's worker object from a hook of gunicorn."""
    global _announced
    _announced = worker


def find_worker() -> Any | None:
    """Return gunicorn's worker object in this process; None if this process is no worker of gunicorn.

    gunicorn passes it to hooks only. But its methods handle signals, so no hook is needed.
    """
    module: Any = sys.modules.get("gunicorn.workers.base")
    if module is None:
        return None
    numbers = (getattr(signal, name, None) for name in _SIGNALS)  # Windows has only some of them
    handlers = (signal.getsignal(number) for number in numbers if number is not None)
    candidates: list[Any] = [_announced, *(getattr(handler, "__self__", None) for handler in handlers)]
    for worker in candidates:
        # a child that a worker has forked has the handlers of its parent
        if isinstance(worker, module.Worker) and worker.pid == os.getpid():
            return worker
    return None


def settings_of(start_response: object) -> Any | None:
    """Return gunicorn's settings: its `start_response` is a method of an object that has them. None: another server."""
    settings: Any = getattr(getattr(start_response, "__self__", None), "cfg", None)
    return settings if hasattr(settings, "worker_class_str") else None


def server_threads() -> int | None:
    """Return in how many threads gunicorn calls the app; None if it is not known, or another server runs."""
    worker = find_worker()
    if worker is None:
        return None
    if serves_in_threads(worker):
        return int(worker.cfg.threads)
    return 1 if serves_itself(worker) else None


def serves_itself(worker: Any) -> bool:
    """Return whether a worker calls the app in the thread that sends its heartbeats, which sends none meanwhile."""
    return _is_any(worker, ("gunicorn.workers.sync", "SyncWorker"), ("gunicorn.workers.gtornado", "TornadoWorker"))


def serves_in_threads(worker: Any) -> bool:
    """Return whether a worker calls the app in as many threads as its setting `threads` says."""
    return _is_any(worker, ("gunicorn.workers.gthread", "ThreadWorker"))


def _is_any(worker: Any, *classes: tuple[str, str]) -> bool:
    found = (getattr(sys.modules.get(module), name, None) for module, name in classes)
    return any(each is not None and isinstance(worker, each) for each in found)


class Heartbeat:
    """The heartbeat of the thread that the web server watches, while it waits. Other threads send none.

    - `rule`: after how long without a heartbeat the worker is ended; None: never.
    - `send`: sends a heartbeat; None: that is not possible, so the thread that waits gives up in time.
    """

    def __init__(self, rule: HeartbeatTimeout | None = None, send: Callable[[], object] | None = None) -> None:
        self.rule = rule
        self._send = send
        self._watched = threading.main_thread().ident if rule is not None else None
        self._has_given_up = False

    @classmethod
    def of_server(cls, settings: Any | None = None) -> Heartbeat:
        """Return the heartbeat of the web server that this process is a worker of. `settings`: those of gunicorn, where
        they are known from a request; used only if its worker object is not found.
        """
        worker = find_worker()
        if worker is not None:
            settings = worker.cfg if serves_itself(worker) else None
        if settings is None or not settings.timeout:
            return cls()
        return cls(HeartbeatTimeout(settings.timeout), worker.notify if worker is not None else None)

    def begin_wait(self) -> Callable[[], object]:
        """Return what this thread has to call ten times a second during a wait that it begins now. It sends a
        heartbeat, or raises ServerFailure if the thread has to give up.
        """
        if threading.get_ident() != self._watched:
            return _nothing
        return self._send if self._send is not None else partial(self._give_up_in_time, time.monotonic())

    def _give_up_in_time(self, since: float) -> None:
        assert self.rule is not None
        if not self.rule.must_give_up(since, time.monotonic()):
            return
        if not self._has_given_up:
            self._has_given_up = True
            _log.error(
                "StickyWorkers: a request has waited for its worker for %g s and was given up: gunicorn would end this "
                "worker after %g s without a heartbeat, and its worker object, which sends them, was not found. Write "
                "into gunicorn.conf.py: from sticky_wsgi.gunicorn import post_worker_init",
                self.rule.timeout / 2,
                self.rule.timeout,
            )
        raise ServerFailure(Failure.TIMEOUT, detail="gunicorn would end a worker that waits for longer")

    def wait(self, wait: Callable[[float], T | None]) -> T:
        """Call `wait` again and again, with a timeout in seconds, until it returns something, and return that. Send
        heartbeats meanwhile. ServerFailure if the thread has to give up.
        """
        on_tick = self.begin_wait()
        while not (found := wait(TICK)):
            on_tick()
        return found


def _nothing() -> None:
    """What a thread that the web server does not watch does during a wait."""
