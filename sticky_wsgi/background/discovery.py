"""Resolve the names of a backend's servers in threads: one thread for each name, which sleeps, and one for each query
while it lasts.
"""

from __future__ import annotations

import atexit
import inspect
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

#: the errors by which systems report that a name, or an address for it, does not exist; not all systems have both
_UNKNOWN = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))


class Discovery:
    """The resolution of one backend's names in this process."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._core = backend.component(CoreDiscovery)
        self._lock = threading.Lock()
        self._stopping: threading.Event | None = None  # ends the threads that run; None while there are none
        self._threads: dict[ResolvedName, threading.Thread] = {}

    @property
    def has_owner(self) -> bool:
        """Whether the names are resolved, by this object or by another; true as well if there are none."""
        return self._core.has_owner

    @property
    def is_pending(self) -> bool:
        """Whether requests have to wait for the first addresses."""
        return not self._core.first_answers.reached

    def wait_for_first_answers(self) -> None:
        """Wait until each name has been queried once, no longer than an answer may take."""
        self._core.first_answers.wait(self._core.first_answers_timeout)

    def start(self) -> None:
        """Start to resolve, unless another owner does."""
        with self._lock:
            if self._stopping is not None or not self._core.acquire(self):
                return
            self._stopping = threading.Event()
            self._update_threads(self._stopping)
        _running.add(self)

    def update(self) -> None:
        """Start and end resolutions as the backend's servers now need it."""
        self._core.update_names()
        with self._lock:
            if self._stopping is not None:
                self._update_threads(self._stopping)
                return
        if not self.has_owner:
            self._backend.monitor.schedule_timers()

    def _update_threads(self, stopping: threading.Event) -> None:
        """Start a thread for each name that has none; that of a name that is not used any more ends by itself. Under
        the lock.
        """
        self._threads = {name: thread for name, thread in self._threads.items() if name.is_used}
        for name in self._core.update_names():
            if name not in self._threads:
                thread = threading.Thread(
                    target=self._resolve_forever,
                    args=(name, stopping),
                    name=f"resolution of {name.query.name}",
                    daemon=True,
                )
                self._threads[name] = thread
                thread.start()

    def stop(self) -> None:
        """End all threads, and wait until they have ended."""
        with self._lock:
            stopping, self._stopping = self._stopping, None
            threads, self._threads = self._threads, {}
        if stopping is not None:
            stopping.set()
        for thread in threads.values():
            if thread is not threading.current_thread():
                thread.join()
        self._core.release(self)

    def after_fork(self) -> None:
        """Forget the parent process's threads in a forked child, which has none of them."""
        self._lock = threading.Lock()
        self._stopping = None
        self._threads = {}

    def _resolve_forever(self, name: ResolvedName, stopping: threading.Event) -> None:
        while name.is_used and not stopping.is_set():
            delay = self._core.delay(name)
            if delay > 0.001:
                stopping.wait(delay)
            else:
                self._query(name, stopping)

    def _query(self, name: ResolvedName, stopping: threading.Event) -> None:
        """Query once. A query that takes too long is recorded as a timeout, and still awaited: a name never has two
        queries at once.
        """
        finished = threading.Event()

        def query() -> None:
            answer = _resolve(name.query, name.resolvers)
            if not stopping.is_set():
                self._core.record_answer(name, answer)
            finished.set()

        threading.Thread(target=query, name=f"query for {name.query.name}", daemon=True).start()
        while not finished.wait(name.query.timeout):
            if stopping.is_set():
                return  # a query to the system can't be ended: its answer is discarded
            self._core.record_answer(name, Answer(Status.TIMEOUT, info=f"no answer in {name.query.timeout:g} s"))


def _resolve(query: Query, resolvers: Resolvers) -> Answer:
    """Return the answer of the resolver that the configuration names: a user's function, DNS servers, or the system."""
    resolver: Any = resolvers.resolver
    try:
        if resolver is not None:
            returned = resolver(query)
            if inspect.iscoroutine(returned):
                returned.close()
                return Answer(Status.OTHER, info="the resolver is a coroutine function, which WSGI can't await")
            return answer_from_resolver(returned)
        if query.service or resolvers.nameservers:
            return _query_nameservers(query, resolvers)
        infos = socket.getaddrinfo(query.name, None, type=socket.SOCK_STREAM)
        return answer_from_system((str(info[4][0]) for info in infos), query.prefer)
    except socket.gaierror as error:
        return answer_from_os_error(error, _UNKNOWN, socket.EAI_AGAIN)
    except Exception as error:
        return answer_from_exception(error)


def _query_nameservers(query: Query, resolvers: Resolvers) -> Answer:
    from dns.resolver import Resolver

    resolver = nameservers.build_resolver(Resolver, resolvers, query.timeout)
    steps = questions(query)
    question = next(steps)
    while True:
        try:
            answer = resolver.resolve(
                nameservers.absolute_name(question), question.type, lifetime=query.timeout, search=False
            )
            records = nameservers.records_from_answer(answer)
        except Exception as error:
            records = nameservers.records_from_exception(error)
        try:
            question = steps.send(records)
        except StopIteration as end:
            result: Answer = end.value
            return result


_running: weakref.WeakSet[Discovery] = weakref.WeakSet()


def _stop_all() -> None:
    for discovery in list(_running):
        discovery.stop()


atexit.register(_stop_all)
