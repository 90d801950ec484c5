"""Resolve the names behind a backend's servers on an event loop: a task for each, which sleeps and asks."""

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
from sticky_core.runtime.discovery import Discovery as CoreDiscovery
from sticky_core.runtime.discovery import ResolvedName

#: how systems say that there is no such name, or none with an address; not all have both words
_UNKNOWN = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))


class Discovery(BackgroundTask):
    """The names of one backend, on the event loop that owns them."""

    _group: anyio.abc.TaskGroup | None

    def __init__(self, backend: Backend) -> None:
        super().__init__()
        self._backend = backend
        self._core = backend.component(CoreDiscovery)

    @property
    def has_owner(self) -> bool:
        """Whether somebody resolves, or nobody has to."""
        return self._core.has_owner

    @property
    def is_pending(self) -> bool:
        """Whether requests are to wait for the first addresses."""
        return not self._core.first_answers.reached

    async def wait_for_first_answers(self) -> None:
        """Until names have been asked for once; no longer than an answer may take."""
        with anyio.move_on_after(self._core.first_answers_timeout):
            await self._core.first_answers

    def _claimed(self) -> bool:
        return self._core.acquire(self)

    def _disowned(self) -> None:
        self._core.release(self)
        self._backend.monitor.schedule_timers()

    async def _work(self) -> None:
        async with anyio.create_task_group() as self._group:
            self._look()
            await anyio.sleep_forever()

    def update(self) -> None:
        """Other names are to be resolved. From whatever thread."""
        self._core.update_names()
        soon = self._soon
        if soon is not None:
            with suppress(RuntimeError):  # the event loop has just ended, and they with it
                soon(self._look)
        elif not self.has_owner:
            self._backend.monitor.schedule_timers()

    def _look(self) -> None:
        """Ask for those names that are to be asked for, and no others."""
        group = self._group
        if group is None:
            return
        names = self._core.update_names()
        for name in [each for each in self._asked if each not in names]:
            self._asked.pop(name).cancel()
        for name in names:
            if name not in self._asked:
                self._asked[name] = scope = anyio.CancelScope()
                group.start_soon(self._resolve, name, scope)

    def _let_go(self) -> None:
        super()._let_go()
        self._group = None
        self._asked: dict[ResolvedName, anyio.CancelScope] = {}

    async def _resolve(self, name: ResolvedName, scope: anyio.CancelScope) -> None:
        with scope:
            while True:
                delay = self._core.delay(name)
                if delay > 0.001:
                    await anyio.sleep(delay)
                else:
                    await anyio.lowlevel.checkpoint()
                    await self._ask(name)

    async def _ask(self, name: ResolvedName) -> None:
        """Ask once. Who takes too long is told on, and still waited for: there is never a second question beside it."""
        over = anyio.Event()

        async def ask() -> None:
            answer = await _answer(name.query, name.resolvers)
            self._core.record_answer(name, answer)
            over.set()

        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            while not over.is_set():
                with anyio.move_on_after(name.query.timeout):
                    await over.wait()
                if not over.is_set():
                    self._core.record_answer(
                        name, Answer(Status.TIMEOUT, info=f"no answer in {name.query.timeout:g} s")
                    )


async def _answer(query: Query, resolvers: Resolvers) -> Answer:
    resolver: Any = resolvers.resolver
    try:
        if resolver is not None:
            if inspect.iscoroutinefunction(resolver) or inspect.iscoroutinefunction(type(resolver).__call__):
                return answer_from_resolver(await resolver(query))
            return answer_from_resolver(await anyio.to_thread.run_sync(resolver, query, abandon_on_cancel=True))
        if query.service or resolvers.nameservers:
            return await _nameservers(query, resolvers)
        found = await anyio.getaddrinfo(query.name, None, type=socket.SOCK_STREAM)
        return answer_from_system((str(each[4][0]) for each in found), query.prefer)
    except socket.gaierror as error:
        return answer_from_os_error(error, _UNKNOWN, socket.EAI_AGAIN)
    except Exception as error:
        return answer_from_exception(error)


async def _nameservers(query: Query, resolvers: Resolvers) -> Answer:
    from dns import asyncbackend
    from dns.asyncresolver import Resolver

    # said each time: by itself it keeps to whichever kind of event loop the process has had first
    loop = asyncbackend.get_backend(asyncbackend.sniff())
    asking = nameservers.build_resolver(Resolver, resolvers, query.timeout)
    steps = questions(query)
    question = next(steps)
    while True:
        try:
            answer = await asking.resolve(
                nameservers.absolute_name(question), question.type, lifetime=query.timeout, search=False, backend=loop
            )
            records = nameservers.records_from_answer(answer)
        except Exception as error:
            records = nameservers.records_from_error(error)
        try:
            question = steps.send(records)
        except StopIteration as end:
            answered: Answer = end.value
            return answered
