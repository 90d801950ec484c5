"""This process as a worker: its worker slot, the socket at which it listens, and the threads that serve its peers."""

from __future__ import annotations

import errno
import logging
import os
import selectors
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from sticky_core.decision import Decision
from sticky_core.workers.backend import BACKLOG, Workers, join_workers
from sticky_core.workers.config import WorkersConfig
from sticky_core.workers.frames import BadFrame, Frame, Kind
from sticky_core.workers.heartbeat import HeartbeatTimeout
from sticky_core.workers.lost_names import LostNames, is_known_in_environ
from sticky_core.workers.repair import REPAIR_INTERVAL
from sticky_core.workers.slots import WorkerSlots
from sticky_wsgi.messages import WSGIApp
from sticky_wsgi.stores import client as stores
from sticky_wsgi.upstream.connections import TICK
from sticky_wsgi.workers.gunicorn import Heartbeat
from sticky_wsgi.workers.keys import KeyLookup
from sticky_wsgi.workers.learning import LearningApp
from sticky_wsgi.workers.link import is_own_user, listens, open_abstract, warn_bad_frame
from sticky_wsgi.workers.peer import PeerApp
from sticky_wsgi.workers.serving import CountedApp, PeerServer
from sticky_wsgi.workers.transaction import Permits

_log = logging.getLogger("sticky_sessions")

#: what to do so that middleware around `StickyWorkers` loses nothing
WAY_OUT: Final = (
    "Put StickyWorkers around all other middleware: write app.wsgi_app = StickyWorkers(app.wsgi_app), or "
    "app = StickyWorkers(app), behind the others"
)
#: how many forwarded requests are served at the same time where the number of the server's threads is not known
DEFAULT_THREADS: Final = 32


class LocalWorker:
    """This process as one of the workers. Its threads follow the pattern leader/followers: one thread, the leader,
    waits for all idle connections. When a request is received it serves that, and the next thread leads. One
    more thread runs than requests are served at the same time, so that one thread is always the leader. A request that
    is received while the maximum number is served waits until a thread has finished one.

    - `config`: the options of the group.
    - `app`: the app that it serves.
    - `threads`: how many requests the app may serve at the same time; None: the number is not known.
    - `slots`: the worker slots of the group.
    - `restart`: called if this process has to end as this worker, and to start as another.
    - `log`: called with the `Decision` of each request.
    - `heartbeat`: that of the web server.

    ConfigError if this process can't be one of them.
    """

    def __init__(
        self,
        config: WorkersConfig,
        app: WSGIApp,
        threads: int | None,
        slots: WorkerSlots,
        restart: Callable[[], None],
        log: Callable[[Decision], None] | None,
        heartbeat: Heartbeat,
    ) -> None:
        self.app = app
        self._heartbeat = heartbeat
        self.permits = Permits(threads, self._heartbeat) if threads is not None else None
        self.peers: dict[int, PeerApp] = {}
        self._lost_names = LostNames("environ", WAY_OUT, is_known_in_environ)
        own_app = CountedApp(LearningApp(app, self) if config.learns_from_bodies else app, self.permits)
        self.workers = join_workers(config, slots, own_app, self._build_peer, listens, log=log)
        self.key_lookup: KeyLookup | None = None
        keys = self.workers.keys
        if keys is not None:
            self.key_lookup = KeyLookup(keys, self.peers, self._heartbeat)
            stores.register_client(keys, self.key_lookup)
        self.stopping = False
        self._hangs = False  # whether the app has worked for too long on a request of a peer
        self._restart = restart
        self._retired: socket.socket | None = None  # a listener that peers can't find any more
        self._max_busy = threads or DEFAULT_THREADS
        self._threads: list[threading.Thread] = []
        self._busy: set[PeerServer] = set()  # connections with a request in flight
        self._waiting: deque[tuple[PeerServer, Frame]] = deque()  # requests that wait for a thread
        self._leader_lock = threading.Lock()  # the thread that holds it waits for all idle connections
        self._lock = threading.Lock()  # guards `stopping`, `_busy` and `_waiting`

    def _build_peer(self, workers: Workers, number: int) -> PeerApp:
        peer = self.peers[number] = PeerApp(workers, number, self._lost_names, self._heartbeat)
        return peer

    def listen(self) -> None:
        """Listen for peers, and let them find this worker. OSError if the socket can't be opened."""
        slot = self.workers.slot
        try:
            self._wake_reader, self._wake_writer = socket.socketpair()
            self._selector = selectors.DefaultSelector()
            self._selector.register(self._wake_reader, selectors.EVENT_READ)
            self._open_listener()
            self._abstract = open_abstract(slot.abstract_address)
            self._next_repair = time.monotonic() + REPAIR_INTERVAL
            self._start_thread()
        except BaseException:
            slot.release()
            raise

    def _open_listener(self) -> None:
        slot = self.workers.slot
        listener = socket.socket(socket.AF_UNIX)
        try:
            listener.bind(slot.draft_path)
            listener.listen(BACKLOG)
            listener.setblocking(False)
            slot.publish()
        except BaseException:
            listener.close()
            raise
        self._listener = listener
        self._selector.register(listener, selectors.EVENT_READ, listener)

    def _repair_files(self) -> None:
        """Make again what other programs have removed of this worker."""
        self._next_repair = time.monotonic() + REPAIR_INTERVAL
        result = self.workers.repair_files()
        if self._retired is not None:  # its socket was removed: peers that had connected before are accepted by now
            self._selector.unregister(self._retired)
            self._retired.close()
            self._retired = None
        if result.must_restart:
            threading.Thread(target=self._restart, daemon=True).start()
        elif result.needs_socket:
            unreachable = self._listener
            with suppress(OSError):  # the next repair tries it again
                self._open_listener()
                self._retired = unreachable

    def _start_thread(self) -> None:
        name = f"{self.workers.name} {self.workers.own_server.name}"
        thread = threading.Thread(target=self._run_thread, name=name, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _run_thread(self) -> None:
        while True:
            with self._leader_lock:
                received = self._next_request()
                if received is not None and len(self._busy) == len(self._threads):
                    with suppress(RuntimeError):  # the system allows no more threads: serve with those that run
                        self._start_thread()
            while received is not None:
                connection, frame = received
                reusable = False
                try:
                    reusable = connection.serve(frame)
                except Exception:
                    _log.exception("StickyWorkers: closed a connection between workers: serving its request has raised")
                received = self._request_finished(connection, reusable)
            if self.stopping:
                return

    def _next_request(self) -> tuple[PeerServer, Frame] | None:
        """Wait for the next request that this thread is to serve, and return it; None: the worker stops."""
        rule = self._heartbeat.rule
        while not self.stopping:
            timeout = self._next_repair - time.monotonic()
            if timeout <= 0:
                self._repair_files()
                continue
            for key, _ in self._selector.select(timeout):
                if isinstance(key.data, socket.socket):
                    self._accept(key.data)
                elif isinstance(key.data, PeerServer):
                    frame = self._read_request(key.data)
                    if frame is not None:
                        with self._lock:
                            if len(self._busy) < self._max_busy:
                                self._busy.add(key.data)
                                return key.data, frame
                            self._waiting.append((key.data, frame))
            if rule is not None and self._busy:
                self._end_if_app_hangs(rule)
        return None

    def _end_if_app_hangs(self, rule: HeartbeatTimeout) -> None:
        """End this process as gunicorn does, if the app works on a request of a peer for longer than gunicorn allows.
        gunicorn sees no such request: the thread that sends the heartbeats does not serve it.
        """
        with self._lock:
            in_app_since = [each.in_app_since for each in self._busy]
        if self._hangs or not rule.is_over(in_app_since, time.monotonic()):
            return
        self._hangs = True
        _log.critical(
            "StickyWorkers: WORKER TIMEOUT (pid:%d): the app works on a request of another worker for more than %g s",
            os.getpid(),
            rule.timeout,
        )
        os.kill(os.getpid(), signal.SIGABRT)

    def _read_request(self, connection: PeerServer) -> Frame | None:
        """Return the request that an idle connection has received, and stop watching the connection; None if there is
        no complete request.
        """
        try:
            while (frame := connection.receive_available()) is not None:
                if frame[0] == Kind.REQUEST:
                    self._selector.unregister(connection.socket)
                    return frame
                connection.reply_about_key(frame)
                if not connection.has_frame:
                    return None
        except (BadFrame, ValueError, TypeError, LookupError) as error:
            warn_bad_frame(error)
        # the peer has closed it, or does not read replies; or no thread can be started for the reply
        except (EOFError, OSError, RuntimeError):
            pass
        else:
            return None
        self._selector.unregister(connection.socket)
        connection.close()
        return None

    def _accept(self, listener: socket.socket) -> None:
        try:
            connected, _ = listener.accept()
        except OSError as error:  # such as: the peer has closed the connection already
            if error.errno in (errno.EMFILE, errno.ENFILE):
                time.sleep(TICK)  # no file descriptors are left; the selector would report the listener at once again
            return
        connected.setblocking(True)
        connection = PeerServer(connected, self)
        if not is_own_user(connected):
            _log.warning("StickyWorkers: closed a connection between workers: its other end is another user's process")
            connection.close()
            return
        try:
            connection.send_at_once(Kind.HELLO, self.workers.slot.instance)
        except OSError:
            connection.close()
        else:
            self._selector.register(connected, selectors.EVENT_READ, connection)

    def _request_finished(self, connection: PeerServer, reusable: bool) -> tuple[PeerServer, Frame] | None:
        """Watch the connection of a finished request again, or close it. Return a request that has waited meanwhile,
        for the same thread to serve; None if there is none.
        """
        with self._lock:
            self._busy.discard(connection)
            reusable = reusable and not self.stopping
            if reusable:
                self._selector.register(connection.socket, selectors.EVENT_READ, connection)
            received = self._waiting.popleft() if self._waiting else None
            if received is not None:
                self._busy.add(received[0])
        if not reusable:
            connection.close()
        return received

    def drain(self, grace: float) -> None:
        """Stop listening, and serve the forwarded requests that are in flight, for at most `grace` seconds."""
        if self._hangs:
            grace = 0
        elif self._heartbeat.rule is not None:
            grace = self._heartbeat.rule.limit_drain(grace)
        deadline = time.monotonic() + grace
        self._abstract.close()
        self.workers.slot.drain()
        with self._lock:
            self.stopping = True
        self._wake_writer.send(b"\0")
        with self._leader_lock:
            # A request that a peer sends on an idle connection in this moment stays unread: the kernel resets the
            # connection, so the peer knows that it was not read.
            self._close()
        for thread in self._threads:
            if thread is not threading.current_thread():  # an app may stop its own worker
                thread.join(max(0.0, deadline - time.monotonic()))
        for connection in self._connections_in_use():
            connection.abort()
        for peer in self.peers.values():
            peer.close()

    def _connections_in_use(self) -> list[PeerServer]:
        """Return the connections with a request in flight or waiting."""
        return [*self._busy, *(connection for connection, _ in self._waiting)]

    def _close(self) -> None:
        for key in list((self._selector.get_map() or {}).values()):
            if isinstance(key.data, PeerServer):
                key.data.close()
        self._selector.close()
        for each in (self._listener, self._abstract, self._retired, self._wake_reader, self._wake_writer):
            if each is not None:
                each.close()

    def after_fork(self) -> None:
        """In a forked child: close what is the parent's, without sending anything."""
        for connection in self._connections_in_use():
            connection.close()
        self._close()
        for peer in self.peers.values():
            peer.close()
