"""Resolve the names behind a backend's servers in threads: one for each, which sleeps, and one for a question while it
lasts.
"""

from __future__ import annotations

import atexit
import socket
import threading
import weakref
from typing import Any

from sticky_core.backend.backend import Backend
from sticky_core.dns import nameservers
from sticky_core.dns.questions import questions
from sticky_core.dns.resolvers import (
    Answer,
    Query,
    Resolvers,
    Status,
    answer_from_exception,
    answer_from_os_error,
    answer_from_resolver,
    answer_from_system,
)
from sticky_core.runtime.discovery import Discovery as CoreDiscovery
from sticky_core.runtime.discovery import ResolvedName

#: how systems say that there is no such name, or none with an address; not all have both words
_UNKNOWN = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))


class Discovery:
    """The names of one backend in this process."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._core = backend.component(CoreDiscovery)
        self._lock = threading.Lock()
        self._stop: threading.Event | None = None  # of those that resolve now
        self._threads: dict[ResolvedName, threading.Thread] = {}

    @property
    def has_owner(self) -> bool:
        """Whether somebody resolves, or nobody has to."""
        return self._core.has_owner

    @property
    def is_pending(self) -> bool:
        """Whether requests are to wait for the first addresses."""
        return not self._core.first_answers.reached

    def wait_for_first_answers(self) -> None:
        """Until names have been asked for once; no longer than an answer may take."""
        self._core.first_answers.wait(self._core.first_answers_timeout)

    def start(self) -> None:
        """Resolve, unless somebody does."""
        with self._lock:
            if self._stop is not None or not self._core.acquire(self):
                return
            self._stop = threading.Event()
            self._look(self._stop)
        _running.add(self)

    def update(self) -> None:
        """Other names are to be resolved."""
        self._core.update_names()
        with self._lock:
            if self._stop is not None:
                self._look(self._stop)
                return
        if not self.has_owner:
            self._backend.monitor.schedule_timers()

    def _look(self, stop: threading.Event) -> None:
        """Ask for those names that are to be asked for; who is not wanted any more ends by itself. Under the lock."""
        self._threads = {name: thread for name, thread in self._threads.items() if name.is_used}
        for name in self._core.update_names():
            if name not in self._threads:
                thread = threading.Thread(
                    target=self._resolve, args=(name, stop), name=f"resolution of {name.query.name}", daemon=True
                )
                self._threads[name] = thread
                thread.start()

    def stop(self) -> None:
        """Resolve no more."""
        with self._lock:
            stop, self._stop = self._stop, None
            threads, self._threads = self._threads, {}
        if stop is not None:
            stop.set()
        for thread in threads.values():
            if thread is not threading.current_thread():
                thread.join()
        self._core.release(self)

    def after_fork(self) -> None:
        """We are a forked child: threads did not come along."""
        self._lock = threading.Lock()
        self._stop = None
        self._threads = {}

    def _resolve(self, name: ResolvedName, stop: threading.Event) -> None:
        while name.is_used and not stop.is_set():
            delay = self._core.delay(name)
            if delay > 0.001:
                stop.wait(delay)
            else:
                self._ask(name, stop)

    def _ask(self, name: ResolvedName, stop: threading.Event) -> None:
        """Ask once. Who takes too long is told on, and still waited for: there is never a second question beside it."""
        over = threading.Event()

        def ask() -> None:
            answer = _answer(name.query, name.resolvers)
            if not stop.is_set():
                self._core.record_answer(name, answer)
            over.set()

        threading.Thread(target=ask, name=f"question for {name.query.name}", daemon=True).start()
        while not over.wait(name.query.timeout):
            if stop.is_set():
                return  # nothing ends a question to the system; nobody listens to its answer any more
            self._core.record_answer(name, Answer(Status.TIMEOUT, info=f"no answer in {name.query.timeout:g} s"))


def _answer(query: Query, resolvers: Resolvers) -> Answer:
    resolver: Any = resolvers.resolver
    try:
        if resolver is not None:
            return answer_from_resolver(resolver(query))
        if query.service or resolvers.nameservers:
            return _nameservers(query, resolvers)
        found = socket.getaddrinfo(query.name, None, type=socket.SOCK_STREAM)
        return answer_from_system((str(each[4][0]) for each in found), query.prefer)
    except socket.gaierror as error:
        return answer_from_os_error(error, _UNKNOWN, socket.EAI_AGAIN)
    except Exception as error:
        return answer_from_exception(error)


def _nameservers(query: Query, resolvers: Resolvers) -> Answer:
    from dns.resolver import Resolver

    asking = nameservers.build_resolver(Resolver, resolvers, query.timeout)
    steps = questions(query)
    question = next(steps)
    while True:
        try:
            answer = asking.resolve(
                nameservers.absolute_name(question), question.type, lifetime=query.timeout, search=False
            )
            records = nameservers.records_from_answer(answer)
        except Exception as error:
            records = nameservers.records_from_error(error)
        try:
            question = steps.send(records)
        except StopIteration as end:
            answered: Answer = end.value
            return answered


_running: weakref.WeakSet[Discovery] = weakref.WeakSet()


def _end_all() -> None:
    for discovery in list(_running):
        discovery.stop()


atexit.register(_end_all)
