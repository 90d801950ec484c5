"""gunicorn's worker object in this process: how many requests it serves at the same time, and its heartbeat."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar

from sticky_core.workers.heartbeat import HeartbeatTimeout
from sticky_wsgi.upstream.connections import TICK

T = TypeVar("T")

#: The signals of which gunicorn's worker object has the handler, those first that apps replace least.
_SIGNALS: Final = ("SIGABRT", "SIGWINCH", "SIGUSR1", "SIGQUIT", "SIGTERM")


def find_worker() -> Any | None:
    """Return gunicorn's worker object in this process; None if this process is no worker of gunicorn.

    gunicorn passes it to the hooks in its configuration only. But it is the object of the methods that handle signals,
    so no hook is needed.
    """
    module: Any = sys.modules.get("gunicorn.workers.base")
    if module is None:
        return None
    for name in _SIGNALS:
        number = getattr(signal, name, None)  # Windows has only some of them
        worker: Any = getattr(signal.getsignal(number), "__self__", None) if number is not None else None
        # a child that a worker has forked has the handlers of its parent
        if isinstance(worker, module.Worker) and worker.pid == os.getpid():
            return worker
    return None


def serves_in_threads(worker: Any) -> bool:
    """Return whether a worker calls the app in other threads than the one that sends its heartbeats."""
    module: Any = sys.modules.get("gunicorn.workers.gthread")
    return module is not None and isinstance(worker, module.ThreadWorker)


class Heartbeat:
    """Sends heartbeats while a thread waits that the web server watches; does nothing for other threads, nor where no
    thread is watched.

    - `rule`: after how long without a heartbeat the worker is ended; None: never.
    - `send`: sends a heartbeat.
    """

    def __init__(self, rule: HeartbeatTimeout | None = None, send: Callable[[], object] | None = None) -> None:
        self.rule = rule
        self._send = send
        self._watched = threading.main_thread().ident if rule is not None else None

    @classmethod
    def of_server(cls) -> Heartbeat:
        """Return the heartbeat of the web server that this process is a worker of."""
        worker = find_worker()
        if worker is None or serves_in_threads(worker) or not worker.cfg.timeout:
            return cls()
        return cls(HeartbeatTimeout(worker.cfg.timeout), worker.notify)

    def send(self) -> None:
        """Send a heartbeat, if the web server watches this thread. To be called ten times a second during a wait."""
        if self._send is not None and threading.get_ident() == self._watched:
            self._send()

    def wait(self, wait: Callable[[float], T | None]) -> T:
        """Call `wait` again and again, with a timeout in seconds, until it returns something, and return that. Send
        heartbeats meanwhile.
        """
        while not (found := wait(TICK)):
            self.send()
        return found
