"""Resolve the names of a backend's servers on an event loop: one task for each name, which sleeps and queries."""

from __future__ import annotations

import inspect
import socket
from contextlib import suppress
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel
import anyio.to_thread

from sticky_asgi.background.task import BackgroundTask
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
from sticky_core.options.callables import is_async
from sticky_core.runtime.discovery import Discovery as CoreDiscovery
from sticky_core.runtime.discovery import ResolvedName

#: the errors by which systems report that a name, or an address for it, does not exist; not all systems have both
_UNKNOWN = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))


class Discovery(BackgroundTask):
    """The resolution of one backend's names, on the event loop that owns it."""

    _group: anyio.abc.TaskGroup | None

    def __init__(self, backend: Backend) -> None:
        super().__init__()
        self._backend = backend
        self._core = backend.component(CoreDiscovery)

    @property
    def has_owner(self) -> bool:
        """Whether the names are resolved, on this event loop or on another; true as well if there are none."""
        return self._core.has_owner

    @property
    def is_pending(self) -> bool:
        """Whether requests have to wait for the first addresses."""
        return not self._core.first_answers.reached

    async def wait_for_first_answers(self) -> None:
        """Wait until each name has been queried once, no longer than an answer may take."""
        with anyio.move_on_after(self._core.first_answers_timeout):
            await self._core.first_answers

    def _acquire(self) -> bool:
        return self._core.acquire(self)

    def _release(self) -> None:
        self._core.release(self)
        self._backend.monitor.schedule_timers()

    async def _run_forever(self) -> None:
        async with anyio.create_task_group() as self._group:
            self._update_tasks()
            await anyio.sleep_forever()

    def update(self) -> None:
        """Start and cancel resolutions as the backend's servers now need it. Safe to call from any thread."""
        self._core.update_names()
        schedule = self._schedule
        if schedule is not None:
            with suppress(RuntimeError):  # the event loop has just ended, and with it the resolutions
                schedule(self._update_tasks)
        elif not self.has_owner:
            self._backend.monitor.schedule_timers()

    def _update_tasks(self) -> None:
        """Let one task run for each name of a server, and no others."""
        group = self._group
        if group is None:
            return
        names = self._core.update_names()
        for name in [each for each in self._tasks if each not in names]:
            self._tasks.pop(name).cancel()
        for name in names:
            if name not in self._tasks:
                self._tasks[name] = scope = anyio.CancelScope()
                group.start_soon(self._resolve_forever, name, scope)

    def _reset(self) -> None:
        super()._reset()
        self._group = None
        self._tasks: dict[ResolvedName, anyio.CancelScope] = {}

    async def _resolve_forever(self, name: ResolvedName, scope: anyio.CancelScope) -> None:
        with scope:
            while True:
                delay = self._core.delay(name)
                if delay > 0.001:
                    await anyio.sleep(delay)
                else:
                    await anyio.lowlevel.checkpoint()
                    await self._query(name)

    async def _query(self, name: ResolvedName) -> None:
        """Query once. A query that takes too long is recorded as a timeout, and still awaited: a name never has two
        queries at once.
        """
        finished = anyio.Event()

        async def query() -> None:
            answer = await _resolve(name.query, name.resolvers)
            self._core.record_answer(name, answer)
            finished.set()

        async with anyio.create_task_group() as group:
            group.start_soon(query)
            while not finished.is_set():
                with anyio.move_on_after(name.query.timeout):
                    await finished.wait()
                if not finished.is_set():
                    self._core.record_answer(
                        name, Answer(Status.TIMEOUT, info=f"no answer in {name.query.timeout:g} s")
                    )


async def _resolve(query: Query, resolvers: Resolvers) -> Answer:
    """Return the answer of the resolver that the configuration names: a user's function, DNS servers, or the system."""
    resolver: Any = resolvers.resolver
    try:
        if resolver is not None:
            if is_async(resolver):
                return answer_from_resolver(await resolver(query))
            returned: Any = await anyio.to_thread.run_sync(resolver, query, abandon_on_cancel=True)
            if inspect.isawaitable(returned):  # a decorator of a coroutine function
                returned = await returned
            return answer_from_resolver(returned)
        if query.service or resolvers.nameservers:
            return await _query_nameservers(query, resolvers)
        infos = await anyio.getaddrinfo(query.name, None, type=socket.SOCK_STREAM)
        return answer_from_system((str(info[4][0]) for info in infos), query.prefer)
    except socket.gaierror as error:
        return answer_from_os_error(error, _UNKNOWN, socket.EAI_AGAIN)
    except Exception as error:
        return answer_from_exception(error)


async def _query_nameservers(query: Query, resolvers: Resolvers) -> Answer:
    from dns import asyncbackend
    from dns.asyncresolver import Resolver

    # Passed each time: else dnspython always uses the kind of event loop that the process has run first.
    loop = asyncbackend.get_backend(asyncbackend.sniff())
    resolver = nameservers.build_resolver(Resolver, resolvers, query.timeout)
    steps = questions(query)
    question = next(steps)
    while True:
        try:
            answer = await resolver.resolve(
                nameservers.absolute_name(question),
                question.type,
                lifetime=query.timeout,
                search=False,
                backend=loop,
            )
            records = nameservers.records_from_answer(answer)
        except Exception as error:
            records = nameservers.records_from_exception(error)
        try:
            question = steps.send(records)
        except StopIteration as end:
            result: Answer = end.value
            return result
