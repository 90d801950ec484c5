"""StickyWorkers: under `gunicorn -w 4` and its like, a client's requests are answered by the worker process that knows
it.

Every worker listens at a UNIX socket of its own and knows those of its siblings (`sticky_core.workers.backend`).
A request that belongs to a sibling goes there as it came, in frames (`sticky_core.workers.frames`):
its environ, then its body as far as the
app asks for it, and the answer as it comes; one request at a time on each line. Whoever hands over is the `Line`,
whoever serves the `Owner`. Only one end of a line has the word at any time, so that none waits for a reader that is
writing.
"""

from __future__ import annotations

import atexit
import errno
import io
import logging
import multiprocessing
import os
import select
import selectors
import socket
import struct
import sys
import threading
import time
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import count
from multiprocessing.util import Finalize
from queue import SimpleQueue
from typing import Any, Final, cast

from sticky_core.backend.backend import Backend
from sticky_core.decision import Decision
from sticky_core.durations import Duration, seconds
from sticky_core.errors import Failure, ServerFailure, collect_problems, raise_problems
from sticky_core.fork import register
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.persistence.signing import Secret
from sticky_core.samples.request import Sample
from sticky_core.server.server import Server
from sticky_core.stores.store import Command
from sticky_core.workers.backend import (
    BACKLOG,
    CONNECT,
    COOKIE,
    IDLE,
    HandedOverError,
    Handing,
    Keys,
    OnLost,
    Workers,
    WorkersConfig,
    alone,
    begin,
)
from sticky_core.workers.frames import PIECE, BadFrame, Frame, Frames, Kind
from sticky_wsgi.apps import Replicas
from sticky_wsgi.body import Body
from sticky_wsgi.clients import has_left
from sticky_wsgi.messages import (
    KEY,
    Environ,
    ExcInfo,
    Head,
    Headers,
    StartResponse,
    StatusRetryTransaction,
    Transaction,
    Write,
    WSGIApp,
)
from sticky_wsgi.middleware import DispatchApp
from sticky_wsgi.stores import client as stores
from sticky_wsgi.upstream.connections import TICK, TICK_ERRORS, ClientDisconnected, set_tick_timeout

_log = logging.getLogger("sticky_sessions")

#: of a body, in bytes: up to this it is read before anybody is asked, so that no place waits for a slow client
EAGER: Final = 65536
#: how many connections to one sibling are tried that end before it could have read the request
TRIES: Final = 3
#: how many requests of siblings are served at once where nobody says how many threads the server has
THREADS: Final = 32

#: What of an environ travels: what can be written down. The rest (streams, sockets, functions) is the owner's.
PLAIN: Final = frozenset((str, int, float, bool, bytes, type(None)))

_READ: Final = 262144

_numbers = count(1)

#: places for requests, one item each; None: as many as come
Places = SimpleQueue[None] | None


class Placed(Handing[Environ, StartResponse]):
    """A transaction that may be handed over, and that has a place of this worker while the app here serves it."""

    __slots__ = ("place",)

    place: Places

    def release(self, server: Server, over: bool) -> None:
        place = getattr(self, "place", None)
        if place is not None:
            self.place = None
            place.put(None)
        super().release(server, over)


class Handling(Placed, Transaction):
    """A transaction that may be handed over."""

    __slots__ = ()


class HandlingSparing(Placed, StatusRetryTransaction):
    """The same of one whose answers may be held back."""

    __slots__ = ()


class Siblings(Replicas):
    """The apps behind the slots: the app itself, and those that hand over."""

    def __init__(self, backend: Backend) -> None:
        super().__init__(backend)
        kind = HandlingSparing if backend.snapshot.retries.statuses else Handling
        self.transaction = cast(type[Transaction], type(kind.__name__, (kind,), {"__slots__": (), "workers": backend}))
        self.apps.update({server: cast(WSGIApp, server.config.target) for server in backend.servers})
        self.made = True


class StickyWorkers(DispatchApp):
    """WSGI middleware for an app that keeps something in memory and runs in several worker processes: a client's
    requests are answered by the worker that knows it. To be put around everything else.

    `cookie`: how clients are known again: a name, or a `Cookie` with options; None: by `key` alone. `secret`: what
    signs the cookie (`Cookie`); by default the environment's `STICKY_SECRET`, else one that the workers make for
    themselves and lose when the last of them ends.
    `key`: what else tells where a request belongs, before any cookie: a sample, as text (`"hdr(Mcp-Session-Id)"`,
    `"url_param(sid)"`), a path with braces (`"/rooms/{id}"`), or a function of the request. `slots`: keys are spread
    over so many workers, by a consistent hash.
    `on_lost`: what becomes of a client whose worker has ended: `"rebind"` (default) serves it where it is, gives it a
    new cookie and says so in the decision (`Reason.OTHER_LIFE`); `"gone"` answers 410 and takes the cookie back, for
    apps that must not show an empty session instead of a lost one.
    `retry_on`: after which failures of a sibling a request is told again (`Backend`); by default only if nobody has
    executed it.
    `name`: workers of one name are siblings, whoever has started them; by default those of one parent process.
    `directory`: where they find each other, private to the user; by default in the system's temporary directory.
    `drain`: for how long a worker that is asked to end serves what its siblings have handed over, in seconds.
    `threads`: how many requests the app may serve at once, be they a worker's own or handed over to it. By default as
    many as the server has threads: one if it says that there is only one (`wsgi.multithread`), and what gunicorn was
    told; where that is not known, its own are not counted.
    `log`: called with the `Decision` of each request when it is over, by the worker that has accepted it. `debug`:
    answers carry a header `x-sticky` that says what was decided.

    What siblings hand over is served by threads of our own: an app that wants all its requests in one thread can't be
    served so. A worker begins with its first request, or when it is told to (`begin`).

    Raises `ConfigError` for what cannot work. A process that can't have siblings (one worker, a test) serves everything
    itself and marks nobody.
    """

    def __init__(
        self,
        app: WSGIApp,
        *,
        cookie: str | Cookie | None = COOKIE,
        secret: Secret | Sequence[Secret] | None = None,
        key: str | Sample | None = None,
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
        self._always = None
        self._debug = debug
        self._directory = directory
        self._log = log
        self._number = next(_numbers)
        self._alone: bool | None = None
        self._beginning = threading.Lock()
        self._here: Here | None = None
        self._threads = threads
        problems: list[str] = []
        with collect_problems(problems):
            self._asked = WorkersConfig(
                name=name,
                cookie=cookie,
                secret=secret,
                key=key,
                slots=slots,
                on_lost=on_lost,
                retry_on=retry_on,
                drain=drain,
            )
        if threads is not None and threads < 1:
            problems.append(
                f"StickyWorkers: threads {threads} is not above 0: leave it out, or write how many there are"
            )
        raise_problems(problems)
        register(self)

    @property
    def workers(self) -> Workers | None:
        """The workers as this one sees them; None before the first request, and while there can be no others."""
        return self._here.workers if self._here is not None else None

    def begin(self, threads: int | None = None) -> None:
        """Be found by siblings from here on, rather than from the first request on. For what a server calls when a
        worker has started, such as gunicorn's `post_worker_init`; `threads` is as many as it has.

        Raises ConfigError for what can't work, OSError if the socket can't be opened.
        """
        with self._beginning:
            if self._here is not None:
                return
            here = Here(self._asked, self.app, self._number, self._threads or threads, self._directory, self._log)
            here.open()
            self._alone = False
            self._here = here
            self._always = here.workers.component(Siblings)
            self._always.start()
            if not _begun and multiprocessing.parent_process() is not None:
                # granian's workers are made so, and end without having called what `atexit` knows
                Finalize(None, _end_all, exitpriority=0)
            _begun.add(self)

    def end(self) -> None:
        """Serve what siblings have handed over to the end, for as long as `drain` says, and be found no more. It is
        called by itself when the process ends; a request that comes later begins anew.
        """
        with self._beginning:
            here, self._here, self._always = self._here, None, None
            self._alone = None
        if here is not None:
            here.drain(seconds(self._asked.drain))
            here.workers.slot.release()
            if here.workers.keys is not None:
                stores.close((here.workers.keys,))

    def _routed(self, environ: Environ) -> None:
        return None

    def _pass_by(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if self._alone is None:
            several = environ["wsgi.multiprocess"] or multiprocessing.parent_process() is not None
            self._alone = environ["wsgi.run_once"] or alone(self._asked, several, "")
        if self._alone:
            return self.app(environ, start_response)
        self.begin(_threads(environ, start_response))
        return self(environ, start_response)

    def after_fork(self) -> None:
        """We are a forked child: perhaps one of several, and nothing of the parent's is ours."""
        here, self._here, self._always = self._here, None, None
        self._alone = None
        self._beginning = threading.Lock()
        if here is not None:
            here.after_fork()


def _threads(environ: Environ, start_response: StartResponse) -> int | None:
    """How many threads the server calls us in; None: many, or nobody knows."""
    if not environ["wsgi.multithread"]:
        return 1
    # PEP 3333 has no word for their number. gunicorn's is asked of the answer that it makes, which knows its settings.
    settings: Any = getattr(getattr(start_response, "__self__", None), "cfg", None)
    if settings is None or "thread" not in settings.worker_class_str.lower():
        return None
    return int(settings.threads)


_begun: weakref.WeakSet[StickyWorkers] = weakref.WeakSet()


def _end_all() -> None:
    for each in list(_begun):
        each.end()


atexit.register(_end_all)


# -- this worker


class Home:
    """The app itself, in one of this worker's places."""

    def __init__(self, app: WSGIApp, places: Places) -> None:
        self._app = app
        self._places = places

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        places = self._places
        if places is not None:
            places.get()
            environ[KEY].place = places
        return self._app(environ, start_response)


class Here:
    """This worker: its slot, the socket that it listens at, the lines of its siblings, and the threads that serve them.

    The threads take turns to wait for all lines that are idle: who hears a request serves it, and the next waits. One
    of them always does, so a request that comes when all others are busy waits for the first that is not.
    """

    def __init__(
        self,
        asked: WorkersConfig,
        app: WSGIApp,
        number: int,
        threads: int | None,
        directory: str | os.PathLike[str] | None,
        log: Callable[[Decision], None] | None,
    ) -> None:
        self.app = app
        self.places: Places = None
        if threads is not None:
            self.places = SimpleQueue()
            for _ in range(threads):
                self.places.put(None)
        self.siblings: dict[int, Sibling] = {}
        self.workers = begin(asked, Home(app, self.places), number, self._sibling, directory=directory, log=log)
        self.asking: Asking | None = None
        keys = self.workers.keys
        if keys is not None:
            self.asking = Asking(self, keys)
            stores.register_client(keys, self.asking)
        self.over = False
        self._most = threads or THREADS
        self._threads: list[threading.Thread] = []
        self._busy: set[Owner] = set()
        self._waiting: deque[tuple[Owner, Frame]] = deque()
        self._turn = threading.Lock()  # who has it waits for all
        self._keeping = threading.Lock()  # of `over`, who is busy, and what waits

    def _sibling(self, workers: Workers, number: int) -> Sibling:
        sibling = self.siblings[number] = Sibling(workers, number)
        return sibling

    def open(self) -> None:
        """Listen. OSError if that can't be."""
        slot = self.workers.slot
        try:
            self._listener = socket.socket(socket.AF_UNIX)
            self._bell, self._rope = socket.socketpair()
            self._listener.bind(slot.draft)
            self._listener.listen(BACKLOG)
            self._listener.setblocking(False)
            self._selector = selectors.DefaultSelector()
            for each in (self._listener, self._bell):
                self._selector.register(each, selectors.EVENT_READ)
            self._another()
            slot.open()
        except BaseException:
            slot.release()
            raise

    def _another(self) -> None:
        name = f"{self.workers.name} {self.workers.own.name}"
        thread = threading.Thread(target=self._serve, name=name, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _serve(self) -> None:
        while True:
            with self._turn:
                heard = self._next()
                if heard is not None and len(self._busy) == len(self._threads):
                    with suppress(RuntimeError):  # the system has no more of them, so those that are must do
                        self._another()
            while heard is not None:
                owner, frame = heard
                keeps = False
                try:
                    keeps = owner.serve(frame)
                except Exception:
                    _log.exception("StickyWorkers: a line between workers failed and is closed")
                heard = self._left(owner, keeps)
            if self.over:
                return

    def _next(self) -> tuple[Owner, Frame] | None:
        """The next request that this thread is to serve; None: it is over."""
        while not self.over:
            for key, _ in self._selector.select():
                if key.fileobj is self._listener:
                    self._accept()
                elif isinstance(key.data, Owner):
                    frame = self._heard(key.data)
                    if frame is not None:
                        with self._keeping:
                            if len(self._busy) < self._most:
                                self._busy.add(key.data)
                                return key.data, frame
                            self._waiting.append((key.data, frame))
        return None

    def _heard(self, owner: Owner) -> Frame | None:
        """The request that has come on a line, which is taken away then; None: it may come yet, or never."""
        try:
            frame = owner.come()
            if frame is None:
                return None
            if frame[0] == Kind.REQUEST:
                self._selector.unregister(owner.socket)
                return frame
            owner.tell_whose(frame)
        except (BadFrame, ValueError, TypeError, LookupError) as error:
            _warn(error)
        except (EOFError, OSError, RuntimeError):  # it has hung up, or the system has no thread to answer it
            pass
        else:
            return None
        self._selector.unregister(owner.socket)
        owner.close()
        return None

    def _accept(self) -> None:
        try:
            connected, _ = self._listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                time.sleep(TICK)  # there are no more for now; it would be told again at once, and again
            return  # else it has left again
        connected.setblocking(True)
        owner = Owner(connected, self)
        if not _is_ours(connected):
            _log.warning(
                "StickyWorkers: somebody else than this user is at the other end of a socket, and is sent away"
            )
            owner.close()
            return
        try:
            owner.say(Kind.HELLO, self.workers.slot.life)
        except OSError:
            owner.close()
        else:
            self._selector.register(connected, selectors.EVENT_READ, owner)

    def _left(self, owner: Owner, keeps: bool) -> tuple[Owner, Frame] | None:
        """A request is over, and its line may be kept. One that has waited meanwhile, for the same thread."""
        with self._keeping:
            self._busy.discard(owner)
            keeps = keeps and not self.over
            if keeps:
                self._selector.register(owner.socket, selectors.EVENT_READ, owner)
            heard = self._waiting.popleft() if self._waiting else None
            if heard is not None:
                self._busy.add(heard[0])
        if not keeps:
            owner.close()
        return heard

    def drain(self, patience: float) -> None:
        """Be found no more, and serve what siblings have handed over, for so many seconds at most."""
        until = time.monotonic() + patience
        self.workers.slot.leave()
        with self._keeping:
            self.over = True
        self._rope.send(b"\0")
        with self._turn:
            # What a sibling says on an idle line in this moment stays unread, and it is told so by the system.
            self._close()
        for thread in self._threads:
            if thread is not threading.current_thread():  # an app may end its own worker
                thread.join(max(0.0, until - time.monotonic()))
        for owner in self._owners():
            owner.cut()
        for sibling in self.siblings.values():
            sibling.close()

    def _owners(self) -> list[Owner]:
        """The lines that a request is under way on."""
        return [*self._busy, *(owner for owner, _ in self._waiting)]

    def _close(self) -> None:
        for key in list((self._selector.get_map() or {}).values()):
            if isinstance(key.data, Owner):
                key.data.close()
        self._selector.close()
        for each in (self._listener, self._bell, self._rope):
            each.close()

    def after_fork(self) -> None:
        """In a forked child: let go of what is the parent's, without a word on any line."""
        for owner in self._owners():
            owner.close()
        self._close()
        for sibling in self.siblings.values():
            sibling.close()


class End:
    """One of the two ends of a line."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self.closed = False
        frames = Frames()
        self._pack = frames.pack
        self._feed = frames.feed
        self._inbox: deque[Frame] = deque()

    def say(self, *frame: object, look: Callable[[], None] | None = None) -> None:
        """Send a frame. OSError if nobody is there to hear it. `look`: called now and then meanwhile."""
        rest = memoryview(self._pack(*frame))
        while rest:
            try:
                rest = rest[self.socket.send(rest) :]
            except TICK_ERRORS:
                if look is not None:
                    look()

    def tell(self, *messages: object) -> None:
        """Send messages of the face, bytes in pieces if there are many."""
        for message in messages:
            if isinstance(message, bytes) and len(message) > PIECE:
                break
        else:
            return self.say(Kind.MESSAGES, *messages)
        for message in messages:
            for piece in _pieces(message):
                self.say(Kind.MESSAGES, piece)

    def hear(self, look: Callable[[], None] | None = None) -> Frame:
        """The next frame. EOFError if there is none, OSError, BadFrame. `look`: called now and then meanwhile."""
        inbox = self._inbox
        while not inbox:
            try:
                data = self.socket.recv(_READ)
            except TICK_ERRORS:
                if look is not None:
                    look()
                continue
            if not data:
                raise EOFError
            inbox.extend(self._feed(data))
        return inbox.popleft()

    def come(self) -> Frame | None:
        """The next frame, if it has come as a whole. EOFError if there is none, OSError, BadFrame."""
        inbox = self._inbox
        if not inbox:
            data = self.socket.recv(_READ, socket.MSG_DONTWAIT)
            if not data:
                raise EOFError
            inbox.extend(self._feed(data))
        return inbox.popleft() if inbox else None

    def quiet(self) -> bool:
        """Whether nothing has come since the last frame, no end either; asked of the kernel."""
        if self._inbox:
            return False
        poll = select.poll()
        poll.register(self.socket.fileno(), select.POLLIN)
        return not poll.poll(0)

    def close(self) -> None:
        """Hang up."""
        self.closed = True
        self.socket.close()


def _pieces(message: object) -> Iterator[object]:
    if not isinstance(message, bytes):
        yield message
        return
    view = memoryview(message)
    for at in range(0, len(view), PIECE):
        yield view[at : at + PIECE]


def _is_ours(end: socket.socket) -> bool:
    """Whether the process at the other end is this user's."""
    if not hasattr(socket, "SO_PEERCRED"):  # elsewhere than on Linux the directory alone is what keeps others out
        return True
    _, user, _ = struct.unpack("3i", end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return bool(user == os.geteuid())


# -- who hands over


class Unheard(Exception):
    """The line had ended before the sibling could have read the request."""


class Errand:
    """A request on its way to a sibling, and what of it the sibling may ask for."""

    def __init__(self, environ: Environ) -> None:
        self.decision: Handling = environ[KEY]
        self.server = self.decision.tried[-1]
        self._left = has_left(environ)
        given: object = environ["wsgi.input"]
        self._body = given if isinstance(given, Body) else Body(environ, 0)
        #: the body, if it goes along; else it is sent as the app asks for it
        self.body: bytes | None = self._begin(environ)
        presented = self.decision.persisted
        self.claim, self.reason = presented.claim.name, presented.reason.name
        self.environ = {name: value for name, value in environ.items() if value.__class__ in PLAIN}

    def _begin(self, environ: Environ) -> bytes | None:
        length: str = environ.get("CONTENT_LENGTH") or ""
        chunked = "HTTP_TRANSFER_ENCODING" in environ
        if not chunked and (length == "0" or (not length and environ["SERVER_PROTOCOL"].startswith("HTTP/1"))):
            return b""
        # whoever is asked next reads it from here, if this sibling turns out not to be there
        self.decision.raw_request["wsgi.input"] = self._body
        if chunked or not length.isdecimal() or int(length) > EAGER:
            return None
        body = b""
        while piece := self.read(EAGER):
            body += piece
        return body

    def read(self, size: int) -> bytes:
        """More of the body. ClientLeft if it does not come."""
        try:
            return self._body.read(size)
        except OSError:
            raise ClientDisconnected from None

    def rewind(self) -> None:
        """Another is told it from the beginning."""
        self._body.rewind()

    def look(self) -> None:
        """ClientLeft if nobody waits for the answer any more."""
        if self._left():
            raise ClientDisconnected

    def failure(self, detail: str = "") -> ServerFailure:
        """The sibling has gone away with it."""
        return ServerFailure(Failure.TRUNCATED if self.decision.status else Failure.CLOSED, self.server.name, detail)


class Sibling:
    """The worker in another slot, as an app."""

    def __init__(self, workers: Workers, number: int) -> None:
        self._workers = workers
        self._number = number
        self._idle: list[Line] = []

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        decision: Handling = environ[KEY]
        try:
            errand = Errand(environ)
            try:
                for line in self._lines(errand):
                    try:
                        return line.exchange(errand, start_response)
                    except Unheard:
                        continue
                raise ServerFailure(Failure.REFUSED, errand.server.name, "the worker hangs up")
            except ServerFailure:
                errand.rewind()
                raise
        except ClientDisconnected:
            decision.client_disconnected()
            start_response("499 Client Closed Request", [])
            return []

    def _lines(self, errand: Errand) -> Iterator[Line]:
        """Idle lines as long as there are any, then new ones. ServerFailure if there can be none."""
        while (line := self._take(errand.server.instance)) is not None:
            yield line
        for _ in range(TRIES):
            with suppress(Unheard):
                yield self._open(errand.server, errand.decision, errand.look)

    def asked(self, *frame: object) -> str | None:
        """Whose a key is, says the worker; None as well if it can't be asked."""
        until = time.monotonic() + CONNECT

        def look() -> None:
            if time.monotonic() > until:
                raise TimeoutError

        server = self._workers.servers[self._number - 1]
        try:
            line = self._take(server.instance) or self._open(server, None, look)
            return line.asks(look, *frame)
        except (ServerFailure, Unheard, TimeoutError):
            return None

    def _take(self, life: str) -> Line | None:
        """An idle line."""
        while self._idle:
            try:
                line = self._idle.pop()
            except IndexError:  # another thread was quicker
                break
            if line.life == life and line.quiet():
                return line
            line.close()  # it has ended while nobody looked
        return None

    def _open(self, server: Server, decision: Handling | None, look: Callable[[], None]) -> Line:
        """A new line. ServerFailure if there can be none, `Unheard` if it has ended at once; what `look` raises."""
        name, life = server.name, server.instance
        connected = socket.socket(socket.AF_UNIX)
        try:
            connected.settimeout(CONNECT)
            connected.connect(self._workers.slots.socket(self._number, life))
            if not _is_ours(connected):
                raise PermissionError("somebody else than this user listens there")
            set_tick_timeout(connected)
            line = Line(connected, self, life)
        except (TimeoutError, BlockingIOError):
            failure = ServerFailure(Failure.CONNECT_TIMEOUT, name)
        except (ConnectionRefusedError, FileNotFoundError):
            if decision is not None:
                decision.missed(life)
            else:
                self._workers.missed(server, life)
            failure = ServerFailure(Failure.REFUSED, name, "the worker has ended")
        except OSError as error:
            failure = ServerFailure(Failure.REFUSED, name, error.strerror or str(error))
        else:
            line.greeted(server, look)
            return line
        connected.close()
        raise failure

    def keep(self, line: Line) -> None:
        """Its exchange is over, and it may carry another."""
        if len(self._idle) < IDLE:
            self._idle.append(line)
        else:
            line.close()

    def close(self) -> None:
        """Hang up where nothing is under way."""
        while self._idle:
            self._idle.pop().close()


class Asking:
    """Whose is a key that this worker does not know? The arbiter says so; here it is asked, or is this very worker."""

    def __init__(self, here: Here, keys: Keys) -> None:
        self._here = here
        self._keys = keys
        self._claimed = Once()
        self._given = Once()

    def execute(self, commands: Sequence[Command]) -> list[object]:
        """As a store is asked, once for each key at a time. What comes of it is in `Keys`."""
        for command in commands:
            key = str(command[0])
            self._claimed.do(key, partial(self._claim, key))
        return [None] * len(commands)

    def _claim(self, key: str) -> None:
        keys = self._keys
        arbiter, before = keys.arbiter(key), keys.last(key)
        if arbiter is self._here.workers.own:
            text: str | None = self.give(key, keys.own)
        else:
            text = self._here.siblings[arbiter.id].asked(Kind.CLAIM, key, keys.own)
        keys.settled(key, text, before)

    def give(self, key: str, claimant: str) -> str:
        """We are the arbiter: whose it is, or is from now on."""
        keys = self._keys
        while (text := keys.known(key)) is None:
            if self._given.do(key, lambda: self._ask_all(key, claimant)) and keys.known(key) is None:
                return claimant  # whoever had it has ended in this moment
        return text

    def _ask_all(self, key: str, claimant: str) -> None:
        for each in self._here.workers.siblings:
            if not claimant.startswith(f"{each.name}@"):
                text = self._here.siblings[each.id].asked(Kind.ASK, key)
                if text is not None:
                    return self._keys.learn(key, text)
        self._keys.learn(key, claimant)

    def close(self) -> None:
        """There is nothing to close."""


class Once:
    """What several threads want done at once is done by the first, and the others wait for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way: dict[str, threading.Event] = {}

    def do(self, key: str, what: Callable[[], None]) -> bool:
        """Whether it was done here."""
        with self._lock:
            over = self._under_way.get(key)
            mine = over is None
            if over is None:
                over = self._under_way[key] = threading.Event()
        if not mine:
            over.wait()
            return False
        try:
            what()
        finally:
            with self._lock:
                del self._under_way[key]
            over.set()
        return True


class Line(End):
    """The end of who hands over: one exchange after another."""

    def __init__(self, connected: socket.socket, sibling: Sibling, life: str) -> None:
        super().__init__(connected)
        self._sibling = sibling
        self.life = life
        self._heard = False  # whether the sibling has said anything in this exchange
        self.over = False  #: whether it has said all

    def greeted(self, server: Server, look: Callable[[], None]) -> None:
        """Wait until the sibling has taken the connection. ServerFailure, `Unheard`; what `look` raises."""
        greeted = False
        try:
            greeted = self.hear(look) == (Kind.HELLO, self.life)
            if not greeted:
                raise ServerFailure(Failure.REFUSED, server.name, "another worker than was expected")
        except BadFrame as error:
            _warn(error)
            raise ServerFailure(Failure.REFUSED, server.name, str(error)) from None
        except TimeoutError:
            raise
        except (EOFError, OSError):
            raise Unheard from None
        finally:
            if not greeted:
                self.close()

    def asks(self, look: Callable[[], None], *frame: object) -> str | None:
        """Ask whose a key is; None if that is not known there. TimeoutError; `Unheard`."""
        self.over = False
        try:
            self.say(*frame, look=look)
            match self.hear(look):
                case (Kind.KNOWN, str() | None as text):
                    self.over = True
                    return text
                case other:
                    raise BadFrame(f"a frame of kind {other[0]}")
        except BadFrame as error:
            _warn(error)
            return None
        except TimeoutError:
            raise
        except (EOFError, OSError):
            raise Unheard from None
        finally:
            self.end()

    def exchange(self, errand: Errand, start_response: StartResponse) -> Iterable[bytes]:
        """Hand a request over, and its answer back. ServerFailure if the sibling fails, `HandedOverError` if the app
        there does; `Unheard`, ClientLeft.
        """
        self._heard = self.over = False
        passed_on = False
        try:
            try:
                self.say(Kind.REQUEST, errand.claim, errand.reason, errand.environ, errand.body, look=errand.look)
            except OSError:
                raise Unheard from None
            match self.answered(errand):
                case ((str(status), (*headers,)), *items):
                    start_response(status, [(name, value) for name, value in headers])
                case _:
                    raise errand.failure("no head of an answer")
            if self.over:
                return items
            passed_on = True
            return Answered(self, errand, items)
        finally:
            if not passed_on:
                self.end()

    def answered(self, errand: Errand) -> Sequence[Any]:
        """What comes next of the answer. Meanwhile the body goes as far as the sibling asks for it."""
        while True:
            frame = self._hear(errand)
            match frame:
                case (Kind.MESSAGES, *messages):
                    return messages
                case (Kind.END, None, *messages):
                    self.over = True
                    return messages
                case (Kind.END, str(problem)):
                    self.over = True
                    raise HandedOverError(problem)
                case (Kind.WANT, int(size)):
                    try:
                        self.say(Kind.MESSAGES, errand.read(min(size, PIECE)), look=errand.look)
                    except OSError:
                        raise errand.failure() from None
                case _:
                    raise errand.failure(f"a frame of kind {frame[0]}")

    def _hear(self, errand: Errand) -> Frame:
        try:
            frame = self.hear(errand.look)
        except EOFError:
            raise errand.failure() from None
        except OSError:
            # Who closes what was not read to its end resets it, so nobody executes what is not heard in full.
            raise (errand.failure() if self._heard else Unheard()) from None
        except BadFrame as error:
            _warn(error)
            raise errand.failure(str(error)) from None
        self._heard = True
        return frame

    def end(self) -> None:
        """Keep it, if it is in order."""
        if self.over:
            self._sibling.keep(self)
        else:
            self.close()


class Answered:
    """The body of an answer as it comes. Closing it early hangs up."""

    def __init__(self, line: Line, errand: Errand, items: Iterable[bytes]) -> None:
        self._line = line
        self._errand = errand
        self._items = deque(items)
        self._closed = False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        while not self._items:
            if self._line.over:
                raise StopIteration
            try:
                self._items.extend(self._line.answered(self._errand))
            except ClientDisconnected:
                self._errand.decision.client_disconnected()
                raise StopIteration from None
        return self._items.popleft()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._line.end()


# -- who serves


class Owner(End):
    """The end of who serves: a sibling's line to this worker."""

    def __init__(self, connected: socket.socket, here: Here) -> None:
        super().__init__(connected)
        self._here = here

    def serve(self, request: Frame) -> bool:
        """Serve a request that has come. Whether another may come on this line."""
        try:
            exchange = Exchange(self, self._here, request)
        except (ValueError, TypeError, LookupError) as error:
            _warn(error)
            return False
        return exchange.run()

    def tell_whose(self, asked: Frame) -> None:
        """Whose a key is, or is from now on. ValueError if that was not asked."""
        keys = self._here.workers.keys
        match asked:
            case (Kind.ASK, str(key)):
                self.say(Kind.KNOWN, keys.known(key) if keys is not None else None)
            case (Kind.CLAIM, str(key), str(claimant)):
                # others are asked for that, who may ask us in this moment
                threading.Thread(target=self._give, args=(key, claimant), daemon=True).start()
            case _:
                raise ValueError(f"a frame of kind {asked[0]}")

    def _give(self, key: str, claimant: str) -> None:
        asking = self._here.asking
        with suppress(OSError):  # nobody wants to know any more
            self.say(Kind.KNOWN, asking.give(key, claimant) if asking is not None else claimant)

    def cut(self) -> None:
        """Nothing more can be said here, whoever is about to."""
        with suppress(OSError):  # it may be over already
            self.socket.shutdown(socket.SHUT_RDWR)


class Left(ConnectionError):
    """Nobody takes the answer any more."""


class Exchange:
    """A request that a sibling has handed over, and what its app answers into. ValueError, TypeError, LookupError if
    that is not what the frame says.
    """

    def __init__(self, owner: Owner, here: Here, frame: Frame) -> None:
        _, claim, reason, environ, body = frame
        self._owner = owner
        self._here = here
        self._handed = here.workers.handed(claim, reason)
        self._head: tuple[str, Headers] | None = None
        self._sent = False  # whether the head has gone
        self._environ: Environ = {
            **environ,
            "wsgi.version": (1, 0),
            "wsgi.errors": sys.stderr,
            "wsgi.input": io.BytesIO(body) if body is not None else io.BufferedReader(Pulled(owner), EAGER),
            "wsgi.input_terminated": True,
            "waitress.client_disconnected": lambda: not owner.quiet(),
            KEY: self._handed,
        }

    def run(self) -> bool:
        """Have it served in one of this worker's places. Whether another may come on the line."""
        places, handed = self._here.places, self._handed
        if places is not None:
            places.get()
        try:
            if not self._owner.quiet():  # nobody waits for it any more
                return False
            handed.begin()
            try:
                return self._serve()
            finally:
                handed.release()
        finally:
            if places is not None:
                places.put(None)

    def _serve(self) -> bool:
        body: Iterable[bytes] = ()
        problem: str | None = None
        try:
            body = self._here.app(self._environ, self.start_response)
            rest: Iterable[bytes] = ()
            if isinstance(body, (list, tuple)):
                rest = body
            else:
                for item in body:
                    self.write(item)
            self._finish(rest)
        except Left:
            return False
        except BaseException as error:
            self._handed.app_raised()
            problem = "".join(traceback.format_exception(error))
        finally:
            _close(body)
        if problem is not None:
            try:
                self._owner.say(Kind.END, problem)
            except OSError:
                return False
        return True

    def start_response(self, status: str, headers: Headers, exc_info: ExcInfo | None = None, /) -> Write:
        """As PEP 3333 has it: the head goes with the first piece of the body, and may be taken back until then."""
        if exc_info is not None and exc_info[1] is not None:
            if self._sent:
                raise exc_info[1].with_traceback(exc_info[2])
        elif self._head is not None:
            raise AssertionError("start_response is called again without exc_info")
        self._head = status, list(headers)
        code = status[:3]
        self._handed.status = int(code) if code.isascii() and code.isdigit() else 0
        keys = self._here.workers.keys
        if keys is not None:
            keys.stores_replied(Head(headers, True), self._here.workers.own)
        return self.write

    def write(self, item: bytes) -> None:
        """Send a piece of the body."""
        if item:
            try:
                self._owner.tell(*self._behind_the_head((item,)))
            except OSError:
                raise Left("the client has left") from None

    def _finish(self, items: Iterable[bytes]) -> None:
        """Send what is left to be sent."""
        messages = self._behind_the_head(item for item in items if item)
        try:
            if sum(map(len, messages)) > PIECE:
                self._owner.tell(*messages)
                messages = []
            self._owner.say(Kind.END, None, *messages)
        except OSError:
            raise Left("the client has left") from None

    def _behind_the_head(self, items: Iterable[bytes]) -> list[Any]:
        if self._head is None:
            raise AssertionError("the app has answered without having called start_response")
        if self._sent:
            return list(items)
        self._sent = True
        return [self._head, *items]


class Pulled(io.RawIOBase):
    """The body of a request, which the sibling sends as far as it is asked to."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._over = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._over or not len(buffer):
            return 0
        try:
            self._owner.say(Kind.WANT, len(buffer))
            frame = self._owner.hear()
        except (EOFError, OSError):
            raise Left("the client has left") from None
        match frame:
            case (Kind.MESSAGES, bytes(piece)) if len(piece) <= len(buffer):
                buffer[: len(piece)] = piece
                self._over = not piece
                return len(piece)
            case _:
                _warn(BadFrame(f"a frame of kind {frame[0]}, and not what was asked for"))
                self._owner.cut()
                raise Left("the sibling says what it should not")


def _close(body: Iterable[bytes]) -> None:
    """Have the app's iterable closed; its answer has been told already."""
    close = getattr(body, "close", None)
    if close is not None:
        try:
            close()
        except Exception:
            _log.exception("an answer to a request that was handed over failed when it was closed")


def _warn(error: Exception) -> None:
    _log.warning("StickyWorkers: a bad frame came on a line between workers, which is closed: %s", error)
