"""StickyWorkers: under `gunicorn -w 4` and the like, a client's requests are served by the worker process that has its
session.

Every worker listens at a UNIX socket and knows those of its peers (`sticky_core.workers.backend`). A request of a
client that belongs to a peer is forwarded there in frames (`sticky_core.workers.frames`): its environ, then as much of
its body as the app reads, and the response as it is made; one request at a time on each connection. `peer` forwards,
`serving` serves.
"""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.util import Finalize

from sticky_core.decision import Decision
from sticky_core.durations import Duration, seconds
from sticky_core.errors import ConfigError, collect_problems, raise_problems
from sticky_core.fork import register
from sticky_core.http.error_page import error_page
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
from sticky_wsgi.messages import Environ, StartResponse, WSGIApp, start_page
from sticky_wsgi.middleware import DispatchApp
from sticky_wsgi.stores import client as stores
from sticky_wsgi.workers.gunicorn import Heartbeat, find_worker, server_threads, settings_of
from sticky_wsgi.workers.link import listening_sockets, listens
from sticky_wsgi.workers.patching import patching_problem
from sticky_wsgi.workers.transaction import WorkerReplicas
from sticky_wsgi.workers.worker import LocalWorker

_log = logging.getLogger("sticky_sessions")


@name_unknown_options
class StickyWorkers(DispatchApp):
    """WSGI middleware for an app that keeps sessions in memory and runs in several worker processes: each request of a
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
    - `threads`: how many requests the app may serve at the same time in each worker, its own and those that peers
      forward together; an int. Default None: the number of the server's threads, which is 1 if the server reports only
      one (`wsgi.multithread`), or the `threads` of gunicorn; where it is not known, the worker's own are not limited.
    - `log`: called with the `Decision` of each finished request, in the worker that has accepted it. Default None.
    - `debug`: whether responses carry a header `x-sticky` with the decision. Default False.

    Requests that peers forward are served in threads of this middleware: an app that needs all its requests in one
    thread can't be served so. A worker starts with its first request, or when `start` is called.

    Raises `ConfigError` with every problem found. A process that can't have peers (one worker, a test) serves all
    requests itself and sets no cookies. Where the reason shows only at a request (gevent with `gunicorn --preload`, a
    directory that other users can enter), it is logged once, and requests get a 500.
    """

    def __init__(
        self,
        app: WSGIApp,
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
        threads: int | None = None,
        log: Callable[[Decision], None] | None = None,
        debug: bool = False,
    ) -> None:
        self.app = app
        self._only_replicas = None
        self._debug = debug
        self._directory = directory
        self._log = log
        self._can_have_peers: bool | None = None  # None: not known before the first request
        self._start_lock = threading.Lock()
        self._inherited_socket: int | None = None  # what makes it one of several workers, if nothing else does
        self._worker: LocalWorker | None = None
        self._threads = threads
        self._start_error = ""  # why the worker has not started, as it was logged
        problems = problems_of_arguments(app, "wsgi", log)
        problems += filter(None, [patching_problem()])
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
                face="wsgi",
            )
        if threads is not None and (not isinstance(threads, int) or threads < 1):  # pyright: ignore[reportUnnecessaryIsInstance]
            problems.append(
                f"StickyWorkers: threads {threads!r} is no number above 0: leave it out, or write the number of threads"
            )
        raise_problems(problems)
        raise_problems(nested_problems(self.inserted_cookies(), cookies_inside(app)))
        register(self)
        _all.add(self)

    def _identify(self, app: WSGIApp) -> str:
        """Return the identity of the app, which tells its workers and cookies from those of others."""
        return app_identity(app)

    def inserted_cookies(self) -> list[InsertedCookie]:
        return [InsertedCookie(self, "StickyWorkers", scope) for scope in self._config.cookie_scopes]

    @property
    def workers(self) -> Workers | None:
        """The workers as this one sees them; None before the first request, and in a process that can't have peers."""
        return self._worker.workers if self._worker is not None else None

    def start(self, threads: int | None = None) -> None:
        """Take a worker slot, and listen for peers: now, rather than with the first request. To be called when a worker
        process has started; under gunicorn `sticky_wsgi.gunicorn` does it. `threads`: how many threads the server has.
        Default: those of gunicorn, else not known.

        Raises ConfigError for what cannot work, OSError if the socket can't be opened.
        """
        self._start(threads or server_threads(), Heartbeat.of_server())

    def start_if_needed(self, spawned: bool) -> None:
        """As `start`, but only if this process can have peers. `spawned`: whether it is one of several processes."""
        if can_have_peers(self._config, spawned, ""):
            self.start()

    def _start(self, threads: int | None, heartbeat: Heartbeat) -> None:
        with self._start_lock:
            if self._worker is not None:
                return
            # again, as gunicorn may have loaded the app before it has patched the process (--preload)
            raise_problems(filter(None, [patching_problem()]))
            slots = group_slots(self._config, self._directory, inherited_socket=self._inherited_socket)
            for _ in range(REPAIR_LOOKS):
                if not slots.needs_repair(listens, self._config.needs_generated_secret):
                    break
                time.sleep(REPAIR_PAUSE)

            def restart() -> None:
                self.stop()
                self._start(threads, heartbeat)

            worker = LocalWorker(self._config, self.app, self._threads or threads, slots, restart, self._log, heartbeat)
            worker.listen()
            self._can_have_peers = True
            self._worker = worker
            self._only_replicas = worker.workers.component(WorkerReplicas)
            self._only_replicas.start()
            _warn_of_outer_socketio(self)
            if not _started and multiprocessing.parent_process() is not None:
                # granian's workers are made by multiprocessing, and end without calling the functions of `atexit`
                Finalize(None, _stop_all, exitpriority=0)
            _started.add(self)

    def stop(self) -> None:
        """Stop listening, serve the forwarded requests that are in flight for as long as `drain` allows, and release
        the worker slot. It is called when the process ends; a later request starts the worker again.
        """
        with self._start_lock:
            worker, self._worker, self._only_replicas = self._worker, None, None
            self._can_have_peers = None
        if worker is not None:
            worker.drain(seconds(self._config.drain))
            worker.workers.slot.release()
            if worker.workers.keys is not None:
                stores.close((worker.workers.keys,))

    def _may_have_peers(self, spawned: bool) -> bool:
        if can_have_peers(self._config, spawned, ""):
            return True
        if find_worker() is not None:  # its only one: gunicorn says so, and its parent always has the listening socket
            return False
        listening = listening_sockets()
        self._inherited_socket = inherited_socket(listening)
        if self._inherited_socket is not None:
            return True
        if listening:  # a test client has none
            report_unnamed_process(self._config, self._directory)
        return False

    def _replicas_for(self, environ: Environ) -> None:
        return None

    def _handle_unrouted(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if self._can_have_peers is None:
            # some test clients leave these keys out
            spawned = environ.get("wsgi.multiprocess", False) or multiprocessing.parent_process() is not None
            self._can_have_peers = not environ.get("wsgi.run_once", False) and self._may_have_peers(spawned)
        if not self._can_have_peers:
            return self.app(environ, start_response)
        try:
            is_single = not environ.get("wsgi.multithread", True)
            settings = settings_of(start_response) if is_single else None
            self._start(1 if is_single else server_threads(), Heartbeat.of_server(settings))
        except ConfigError as error:
            if str(error) != self._start_error:
                self._start_error = str(error)
                _log.error("this worker serves no requests: %s", error)
            return start_page(error_page(500), environ, start_response)
        return self(environ, start_response)

    def after_fork(self) -> None:
        """In a forked child, which may be one of several workers: give up what is the parent's."""
        worker, self._worker, self._only_replicas = self._worker, None, None
        self._can_have_peers = None
        self._start_lock = threading.Lock()
        if worker is not None:
            worker.after_fork()


_all: weakref.WeakSet[StickyWorkers] = weakref.WeakSet()


def start_all(spawned: bool) -> None:
    """Start every `StickyWorkers` of this process that can have peers. `spawned`: whether it is one of several.

    Raises what `StickyWorkers.start` raises.
    """
    for each in list(_all):
        each.start_if_needed(spawned)


def _warn_of_outer_socketio(middleware: StickyWorkers) -> None:
    """Log if Socket.IO's middleware was put around `middleware`: it responds to its clients in the worker that has
    accepted their request, whichever has their session.
    """
    flask = getattr(middleware.app, "__self__", None)  # where the app is its method `wsgi_app`
    outer = getattr(flask, "wsgi_app", None)
    while outer is not None and outer is not middleware:
        if hasattr(outer, "engineio_app"):
            _log.warning(
                "StickyWorkers: Socket.IO is around StickyWorkers, so its requests are served by any worker, and most "
                "are refused as 'Invalid session': write app.wsgi_app = StickyWorkers(app.wsgi_app) after SocketIO(app)"
            )
            return
        outer = getattr(outer, "wsgi_app", None) or getattr(outer, "app", None)


_started: weakref.WeakSet[StickyWorkers] = weakref.WeakSet()


def _stop_all() -> None:
    for each in list(_started):
        each.stop()


atexit.register(_stop_all)
