"""StickyWorkers: under `uvicorn --workers 4` and the like, a client's requests are served by the worker process that
has its session.

Every worker listens at a UNIX socket and knows those of its peers (`sticky_core.workers.backend`). A request of a
client that belongs to a peer is forwarded there in frames (`sticky_core.workers.frames`): its scope, then messages in
both directions, one request at a time on each connection. `peer` forwards, `serving` serves.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
from collections.abc import Callable, Sequence

from sticky_asgi.lifespan import run_app, serve_lifespan
from sticky_asgi.messages import ASGIApp, Message, Receive, Scope, Send
from sticky_asgi.middleware import MiddlewareApp
from sticky_asgi.workers.link import listening_sockets, listens
from sticky_asgi.workers.transaction import WorkerReplicas
from sticky_asgi.workers.worker import LocalWorker
from sticky_core.decision import Decision
from sticky_core.durations import Duration, seconds
from sticky_core.errors import ConfigError, collect_problems, raise_problems
from sticky_core.fork import register
from sticky_core.options.spelling import name_unknown_options
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.persistence.nesting import InsertedCookie, cookies_inside, nested_problems
from sticky_core.persistence.signing import Secret
from sticky_core.workers.backend import Workers, group_slots, report_unnamed_process
from sticky_core.workers.config import (
    COOKIE,
    Keys,
    Learned,
    OnLost,
    WorkersConfig,
    can_have_peers,
    problems_of_arguments,
)
from sticky_core.workers.identity import app_identity
from sticky_core.workers.repair import REPAIR_LOOKS, REPAIR_PAUSE
from sticky_core.workers.siblings import inherited_socket


@name_unknown_options
class StickyWorkers(MiddlewareApp):
    """ASGI middleware for an app that keeps sessions in memory and runs in several worker processes: each request of a
    client is served by the worker that has its session. Put it around all other middleware.

    - `app`: the app.
    - `cookie`: how clients are recognised: the name of a signed cookie, or a `Cookie` with options; None: by `key`
      alone. A star at the end of the name stands for six digits that tell the app from others on the same host name.
      Default `"STICKYWORKER_*"`. HAProxy's twin is `cookie SERVERID insert indirect`.
    - `secret`: what signs the cookie (see `Cookie`). Default: the environment variable `STICKY_SECRET`, else a secret
      that the workers generate, which is lost when the last of them ends.
    - `key`: what decides about a request before any cookie: a sample as text (`"hdr(Mcp-Session-Id)"`,
      `"url_param(sid)"`), a path with braces (`"/rooms/{id}"`, decoded, as the app sees it), or a function of the
      request. Workers learn keys from requests and responses, and agree on the owner of a new one. Default None.
      HAProxy's twin is `stick on`.
      Of a list of samples, the first that finds a key counts.
    - `learn`: where the app issues keys in responses: one or several samples, as values (`res.json_field("sid")`,
      `res.sse_endpoint("session_id")`) or as text (`"res.hdr(X-Session)"`). Those of a body read the first 16 KB of
      successful responses to requests without a key. Default None: the header or cookie of `key` alone. HAProxy's twin
      is `stick store-response`.
    - `slots`: over how many workers keys are spread by a consistent hash, instead of being learned; an int from 1 to
      128. Default None: keys are learned. HAProxy's twin is `hash-type consistent`.
    - `on_lost`: what happens to a client after its worker has ended. `"rebind"` (default): another worker serves it and
      marks it with a new cookie; the decision has `Reason.OTHER_INSTANCE`. `"gone"`: it gets a 410 and the cookie is
      removed, for apps that must not show an empty session in the place of a lost one; needs a secret.
    - `retry_on`: after which failures of a peer a request is replayed at another worker, as in `Backend`. Default
      `"conn-failure"`: only if no worker can have executed it. HAProxy's twin is `retry-on`.
    - `name`: the name of the group: workers with the same name are peers, whichever process has started them. Default
      None: the workers of one parent process are peers. A name is for one app: the workers of another are refused.
    - `directory`: where the workers find each other: a path that only this user can enter. Default: `sticky-<uid>` in
      the system's temporary directory.
    - `drain`: for how long a worker that is about to end serves the requests that peers have forwarded to it, in
      seconds or as text (`"5s"`). Default 10. nginx's twin is `worker_shutdown_timeout`.
    - `log`: called with the `Decision` of each finished request, in the worker that has accepted it. Default None.
    - `debug`: whether responses carry a header `x-sticky` with the decision. Default False.

    Raises `ConfigError` with every problem found. Inside a running server it is kept, reported as the reason why the
    startup failed, and raised again by each request. A process that can't have peers (one worker, a test) serves all
    requests itself and sets no cookies.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        cookie: str | Cookie | None = COOKIE,
        secret: Secret | Sequence[Secret] | None = None,
        key: Keys | None = None,
        learn: Learned | None = None,
        slots: int | None = None,
        on_lost: OnLost = "rebind",
        retry_on: str | Sequence[str] = "conn-failure",
        name: str | None = None,
        directory: str | os.PathLike[str] | None = None,
        drain: Duration = 10,
        log: Callable[[Decision], None] | None = None,
        debug: bool = False,
    ) -> None:
        self.app = app
        self._only_replicas = None
        self._debug = debug
        self._servers_drain = False  # the servers are workers, which do not drain
        self._directory = directory
        self._log = log
        self._can_have_peers: bool | None = None  # None: not known before the first request or lifespan
        self._start_lock = asyncio.Lock()
        self._is_reported = False  # whether a process that can't have peers has looked for others
        self._inherited_socket: int | None = None  # what makes it one of several workers, if nothing else does
        self._worker: LocalWorker | None = None
        self._restart_task: asyncio.Task[None] | None = None  # kept, or it could be removed before its end
        try:
            problems = problems_of_arguments(app, "asgi", log)
            with collect_problems(problems):
                self._config = WorkersConfig(
                    name=name,
                    cookie=cookie,
                    secret=secret,
                    key=key,
                    learn=learn,
                    slots=slots,
                    on_lost=on_lost,
                    retry_on=retry_on,
                    drain=drain,
                    app=self._identify(app),
                    face="asgi",
                )
            raise_problems(problems)
            raise_problems(nested_problems(self.inserted_cookies(), cookies_inside(app)))
        except ConfigError as error:
            if not self._keep_error(error):
                raise
        register(self)

    def _identify(self, app: ASGIApp) -> str:
        """Return the identity of the app, which tells its workers and cookies from those of others."""
        return app_identity(app)

    def inserted_cookies(self) -> list[InsertedCookie]:
        if self._error is not None:
            return []
        return [InsertedCookie(self, "StickyWorkers", scope) for scope in self._config.cookie_scopes]

    @property
    def workers(self) -> Workers | None:
        """The workers as this one sees them; None before the first request, and in a process that can't have peers."""
        return self._worker.workers if self._worker is not None else None

    def _replicas_for(self, scope: Scope) -> None:
        return None

    async def _handle_unrouted(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
        elif scope["type"] in ("http", "websocket") and self._can_have_peers is not False:
            await self._start(None)
            await (self if self._can_have_peers else self._handle_unrouted)(scope, receive, send)
        else:
            if not self._is_reported and scope["type"] != "lifespan":
                self._is_reported = True
                if listening_sockets():  # a test client has none
                    report_unnamed_process(self._config, self._directory)
            await self.app(scope, receive, send)

    async def _start(self, lifespan: Scope | None) -> None:
        """Take a worker slot, and listen. `lifespan`: the scope of the lifespan, if there is one."""
        if self._error is not None:
            raise self._error
        async with self._start_lock:
            if not self._may_have_peers() or self._worker is not None:
                return
            slots = group_slots(self._config, self._directory, inherited_socket=self._inherited_socket)
            for _ in range(REPAIR_LOOKS):
                if not slots.needs_repair(listens, self._config.needs_generated_secret):
                    break
                await asyncio.sleep(REPAIR_PAUSE)

            def restart() -> None:
                self._restart_task = worker.loop.create_task(self._restart(lifespan))

            worker = LocalWorker(self._config, self.app, lifespan, slots, restart, self._log)
            await worker.listen()
            self._worker = worker
            self._only_replicas = worker.workers.component(WorkerReplicas)
            self._only_replicas.start()

    async def _restart(self, lifespan: Scope | None) -> None:
        """Start as another worker, and end the one that runs."""
        worker, self._worker, self._only_replicas = self._worker, None, None
        if worker is not None:
            await worker.drain(seconds(self._config.drain))
            worker.workers.slot.release()
            await self._start(lifespan)

    def _may_have_peers(self) -> bool:
        if self._can_have_peers is None:
            spawned = multiprocessing.parent_process() is not None
            self._can_have_peers = can_have_peers(self._config, spawned, os.environ.get("SERVER_SOFTWARE", ""))
            if not self._can_have_peers:
                self._inherited_socket = inherited_socket(listening_sockets())
                self._can_have_peers = self._inherited_socket is not None
        return self._can_have_peers

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._error is None and not self._may_have_peers():
            return await run_app(self.app, scope, receive, send)
        given = {**scope}  # as the server, or an app around this one, has made it; the app may write into it
        drained = False
        failed: Exception | None = None

        async def receive_and_drain() -> Message:
            nonlocal drained
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                drained = True
                await self._drain()
            return message

        async def start_and_send(message: Message) -> None:
            nonlocal failed
            if message["type"] == "lifespan.startup.complete":
                try:
                    await self._start(given)
                except (ConfigError, OSError) as error:
                    failed = error
                    await send({"type": "lifespan.startup.failed", "message": f"{type(error).__name__}: {error}"})
                    raise
            await send(message)

        try:
            cookies = self.inserted_cookies()
            await serve_lifespan(self.app, (), scope, receive_and_drain, start_and_send, cookies, self._error)
        except BaseExceptionGroup:
            if failed is not None:
                raise failed from None
            raise
        finally:
            if not drained:
                await self._drain()
            self._stop()

    async def _drain(self) -> None:
        if self._worker is not None:
            await self._worker.drain(seconds(self._config.drain))

    def _stop(self) -> None:
        """Release the worker slot."""
        worker, self._worker, self._only_replicas = self._worker, None, None
        if worker is not None:
            worker.workers.slot.release()

    def after_fork(self) -> None:
        """In a forked child, which may be one of several workers: give up what is the parent's."""
        self._can_have_peers = True if self._can_have_peers is None else None
        self._start_lock = asyncio.Lock()
        if self._worker is not None:
            self._worker.after_fork()
        self._worker = self._only_replicas = None
