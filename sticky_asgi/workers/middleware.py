"""StickyWorkers: under `uvicorn --workers 4` and its like, a client's requests are answered by the worker process that
knows it.

Every worker listens at a UNIX socket of its own and knows those of its siblings (`sticky_core.workers.backend`).
A request that belongs to a sibling goes there as it came, in frames (`sticky_core.workers.frames`):
its scope, then messages both ways, one
request at a time on each line. Whoever hands over is the `Line`, whoever serves the `Owner`.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import socket
import struct
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from functools import lru_cache
from itertools import count
from typing import Any, Final, cast

from sticky_asgi.apps import Replicas, serve_lifespan
from sticky_asgi.messages import (
    HEADS,
    KEY,
    ASGIApp,
    Head,
    Headers,
    Message,
    Receive,
    Scope,
    Send,
    StatusRetryTransaction,
    Transaction,
    event_loop,
)
from sticky_asgi.middleware import DispatchApp
from sticky_asgi.stores import client as stores
from sticky_asgi.upstream.connections import FlowControlProtocol, TimeoutSweep
from sticky_core.backend.backend import Backend
from sticky_core.decision import Decision
from sticky_core.durations import Duration, seconds
from sticky_core.errors import ConfigError, Failure, ServerFailure
from sticky_core.fork import register
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.persistence.signing import Secret
from sticky_core.samples.request import Sample
from sticky_core.server.server import Server
from sticky_core.workers.backend import (
    BACKLOG,
    CONNECT,
    COOKIE,
    IDLE,
    Handed,
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

_log = logging.getLogger("sticky_sessions")

#: of a body, in bytes: how much may wait for a slow reader before the other end is made to wait as well
WINDOW: Final = 262144
#: in bytes: what is written at once rather than when the app lets go
GATHERED: Final = 16384

#: what of a scope travels: what servers say (ASGI 3, HTTP and WebSocket), not what others have put there
CARRIED: Final = (
    "type",
    "asgi",
    "http_version",
    "scheme",
    "method",
    "path",
    "raw_path",
    "query_string",
    "root_path",
    "headers",
    "client",
    "server",
    "subprotocols",
)
#: what of its extensions can be served from afar: messages, but no file descriptors
EXTENSIONS: Final = frozenset(
    (
        "http.response.early_hint",
        "http.response.pathsend",
        "http.response.push",
        "http.response.trailers",
        "tls",
        "websocket.http.response",
    )
)

_DISCONNECTS: Final = ("http.disconnect", "websocket.disconnect")
#: `websocket.close`: the service restarts (RFC 6455 registry)
_RESTARTS: Final = 1012

_numbers = count(1)


class Handling(Handing[Scope, Send], Transaction):
    """A transaction that may be handed over."""

    __slots__ = ()


class HandlingSparing(Handing[Scope, Send], StatusRetryTransaction):
    """The same of one whose answers may be held back."""

    __slots__ = ()


class Siblings(Replicas):
    """The apps behind the slots: the app itself, and those that hand over."""

    def __init__(self, backend: Backend) -> None:
        super().__init__(backend)
        kind = HandlingSparing if backend.snapshot.retries.statuses else Handling
        self.transaction = cast(
            "type[Transaction]", type(kind.__name__, (kind,), {"__slots__": (), "workers": backend})
        )
        self.apps.update({server: cast(ASGIApp, server.config.target) for server in backend.servers})
        self.made = self.warned = True


class StickyWorkers(DispatchApp):
    """ASGI middleware for an app that keeps something in memory and runs in several worker processes: a client's
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
    `log`: called with the `Decision` of each request when it is over, by the worker that has accepted it. `debug`:
    answers carry a header `x-sticky` that says what was decided.

    Raises `ConfigError` for what cannot work; found in a running server, it is told as the reason why startup failed,
    and raised again by each request. A process that can't have siblings (one worker, a test) serves everything itself
    and marks nobody.
    """

    def __init__(
        self,
        app: ASGIApp,
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
        log: Callable[[Decision], None] | None = None,
        debug: bool = False,
    ) -> None:
        self.app = app
        self._always = None
        self._debug = debug
        self._directory = directory
        self._log = log
        self._number = next(_numbers)
        self._error: ConfigError | None = None
        self._alone: bool | None = None
        self._beginning = asyncio.Lock()
        self._here: Here | None = None
        try:
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
        except ConfigError as error:
            if event_loop() is None:
                raise
            self._error = error
        register(self)

    @property
    def workers(self) -> Workers | None:
        """The workers as this one sees them; None before the first request, and while there can be no others."""
        return self._here.workers if self._here is not None else None

    def _routed(self, scope: Scope) -> None:
        return None

    async def _pass_by(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
        elif scope["type"] in ("http", "websocket") and not self._alone:
            await self._begin(None)
            await (self.app if self._alone else self)(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _begin(self, state: dict[str, Any] | None) -> None:
        """Take a slot, and listen. `state`: what the lifespan leaves for requests, if there is one."""
        if self._error is not None:
            raise self._error
        async with self._beginning:
            if self._alone is None:
                spawned = multiprocessing.parent_process() is not None
                self._alone = alone(self._asked, spawned, os.environ.get("SERVER_SOFTWARE", ""))
            if self._alone or self._here is not None:
                return
            here = Here(self._asked, self.app, self._number, state, self._directory, self._log)
            await here.open()
            self._here = here
            self._always = here.workers.component(Siblings)
            self._always.start()

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        ended = False
        failed: Exception | None = None

        async def received() -> Message:
            nonlocal ended
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                ended = True
                await self._drain()
            return message

        async def sent(message: Message) -> None:
            nonlocal failed
            if message["type"] == "lifespan.startup.complete":
                try:
                    await self._begin(scope.get("state"))
                except (ConfigError, OSError) as error:
                    failed = error
                    await send({"type": "lifespan.startup.failed", "message": f"{type(error).__name__}: {error}"})
                    raise
            await send(message)

        try:
            await serve_lifespan(self.app, (), scope, received, sent, self._error)
        except BaseExceptionGroup:
            if failed is not None:
                raise failed from None
            raise
        finally:
            if not ended:
                await self._drain()
            self._end()

    async def _drain(self) -> None:
        if self._here is not None:
            await self._here.drain(seconds(self._asked.drain))

    def _end(self) -> None:
        here, self._here, self._always = self._here, None, None
        if here is not None:
            here.workers.slot.release()

    def after_fork(self) -> None:
        """We are a forked child: perhaps one of several, and nothing of the parent's is ours."""
        self._alone = False if self._alone is None else None
        self._beginning = asyncio.Lock()
        if self._here is not None:
            self._here.after_fork()
        self._here = self._always = None


class Here:
    """This worker: its slot, the socket that it listens at, and the lines of its siblings."""

    def __init__(
        self,
        asked: WorkersConfig,
        app: ASGIApp,
        number: int,
        state: dict[str, Any] | None,
        directory: str | os.PathLike[str] | None,
        log: Callable[[Decision], None] | None,
    ) -> None:
        try:
            self.loop = asyncio.get_running_loop()
        except RuntimeError:
            raise ConfigError("StickyWorkers needs asyncio, and this event loop is another's") from None
        self.app = app
        self.state = state
        self.owners: set[Owner] = set()
        self.siblings: dict[int, Sibling] = {}
        self._emptied = asyncio.Event()
        self.workers = begin(asked, app, number, self._sibling, directory=directory, log=log)
        self.asking: Asking | None = None
        keys = self.workers.keys
        if keys is not None:
            self.asking = Asking(self, keys)
            stores.register_client(keys, self.asking)

    def _sibling(self, workers: Workers, number: int) -> Sibling:
        sibling = self.siblings[number] = Sibling(workers, number)
        return sibling

    async def open(self) -> None:
        """Listen. OSError if that can't be."""
        slot = self.workers.slot
        listener = self._listener = socket.socket(socket.AF_UNIX)
        try:
            listener.bind(slot.draft)
            listener.setblocking(False)
            self._server = await self.loop.create_unix_server(lambda: Owner(self), sock=listener, backlog=BACKLOG)
        except BaseException:
            listener.close()
            slot.release()
            raise
        slot.open()

    async def drain(self, patience: float) -> None:
        """Be found no more, and serve what siblings have handed over, for so many seconds at most."""
        self.workers.slot.leave()
        self._server.close()
        for owner in list(self.owners):
            owner.say_bye()
        try:
            async with asyncio.timeout(patience):
                while self.owners:
                    self._emptied.clear()
                    await self._emptied.wait()
        except TimeoutError:
            for owner in list(self.owners):
                owner.transport.abort()
        for sibling in self.siblings.values():
            sibling.close()
        if self.workers.keys is not None:
            await stores.close((self.workers.keys,))

    def after_fork(self) -> None:
        """In a forked child: siblings must not knock where nobody opens once the worker has died."""
        descriptor = self._listener.detach()
        if descriptor >= 0:
            os.close(descriptor)

    def left(self, owner: Owner) -> None:
        """A line has ended."""
        self.owners.discard(owner)
        if not self.owners:
            self._emptied.set()


class End(FlowControlProtocol):
    """One of the two ends of a line."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        super().__init__()
        self.frames = Frames()
        self.pack = self.frames.pack
        self.closed = False
        self.stranger = False  #: whether the other end is not this user's, or not there
        self._paused = False
        self._buffered = 0
        self._said: list[Message] = []
        self._gathered = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.loop = asyncio.get_running_loop()
        if not _is_ours(transport.get_extra_info("socket")):
            _log.warning("StickyWorkers: nobody of ours is at the other end of a line between workers, which is closed")
            self.stranger = self.closed = True
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        if self.closed:
            return
        try:
            for frame in self.frames.feed(data):
                self.heard(frame)
        except (BadFrame, ValueError, TypeError, LookupError, AttributeError) as error:
            _log.warning("StickyWorkers: a bad frame came on a line between workers, which is closed: %s", error)
            self.transport.abort()

    def heard(self, frame: Frame) -> None:
        """A frame has come. What is raised if it is not what it should be costs the line, and nothing else."""
        raise NotImplementedError

    def _count(self, frame: Frame, at: int) -> None:
        """The messages in `frame`, from `at` on, wait to be read."""
        for message in frame[at:]:
            self._buffered += _size(message)
        if self._buffered > WINDOW and not self._paused and not self.closed:
            self._paused = True
            self.transport.pause_reading()

    def taken(self) -> None:
        """Nothing waits any more."""
        self._buffered = 0
        if self._paused:
            self._paused = False
            if not self.closed:
                self.transport.resume_reading()

    def say(self, *frame: object) -> None:
        """Send a frame, behind what was told before."""
        if not self.closed:
            self.flush()
            self.transport.write(self.pack(*frame))

    def tell(self, message: Message) -> None:
        """Send a message, its body in pieces if it is a large one. It goes with what else is told before the app lets
        go of the event loop.
        """
        body = message.get("body")
        if body is None:
            size = _size(message)
        else:
            size = len(body)
            if size > PIECE:
                return self._tell_in_pieces(message, memoryview(body))
        said = self._said
        if not said:
            self.loop.call_soon(self.flush)
        said.append(message)
        self._gathered += size
        if self._gathered > GATHERED:
            self.flush()

    def _tell_in_pieces(self, message: Message, body: memoryview) -> None:
        for at in range(0, len(body), PIECE):
            piece = {**message, "body": body[at : at + PIECE]}
            if at + PIECE < len(body):
                piece["more_body"] = True
            self._said.append(piece)
            self.flush()

    def flush(self) -> None:
        """Send what was told."""
        said = self._said
        if said:
            self._said = []
            self._gathered = 0
            if not self.closed:
                self.transport.write(self.pack(Kind.MESSAGES, *said))

    async def drain(self) -> None:
        """Wait until the other end has taken in what it was sent, as far as it must."""
        writable = self._writable
        if writable is not None and not self.closed:
            await writable

    def eof_received(self) -> None:
        self.closed = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self.resume_writing()


def _is_ours(end: socket.socket) -> bool:
    """Whether the process at the other end is this user's."""
    if not hasattr(socket, "SO_PEERCRED"):  # elsewhere than on Linux the directory alone is what keeps others out
        return True
    _, user, _ = struct.unpack("3i", end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return bool(user == os.geteuid())


# -- who hands over


class Sibling:
    """The worker in another slot, as an app."""

    def __init__(self, workers: Workers, number: int) -> None:
        self._workers = workers
        self._number = number
        self._idle: list[Line] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        decision: Handling = scope[KEY]
        server = decision.tried[-1]
        life = server.instance
        while (line := self._take(life)) is not None:
            try:
                return await line.exchange(scope, receive, send, decision)
            except Unheard:  # it has ended while nobody looked
                continue
        line = await self._open(server, life, decision)
        try:
            await line.exchange(scope, receive, send, decision)
        except Unheard:
            raise ServerFailure(Failure.CLOSED, server.name) from None

    def _take(self, life: str) -> Line | None:
        """An idle line."""
        while self._idle:
            line = self._idle.pop()
            if not line.closed and line.life == life:
                return line
            line.transport.abort()
        return None

    async def asked(self, *frame: object) -> str | None:
        """Whose a key is, says the worker; None as well if it can't be asked."""
        server = self._workers.servers[self._number - 1]
        life = server.instance
        try:
            async with asyncio.timeout(CONNECT):
                line = self._take(life) or await self._open(server, life, None)
                return await line.asks(*frame)
        except (TimeoutError, ServerFailure):
            return None

    async def _open(self, server: Server, life: str, decision: Handling | None) -> Line:
        loop = asyncio.get_running_loop()
        path = self._workers.slots.socket(self._number, life)
        try:
            async with asyncio.timeout(CONNECT):
                _, line = await loop.create_unix_connection(lambda: Line(self, life), path)
        except TimeoutError:
            raise ServerFailure(Failure.CONNECT_TIMEOUT, server.name) from None
        except (ConnectionRefusedError, FileNotFoundError):
            self._missed(server, life, decision)
            raise ServerFailure(Failure.REFUSED, server.name, "the worker has ended") from None
        except OSError as error:
            raise ServerFailure(Failure.REFUSED, server.name, error.strerror or str(error)) from error
        await line.greeted()
        if line.closed:
            if not line.stranger:
                self._missed(server, life, decision)
            raise ServerFailure(Failure.REFUSED, server.name, "the worker has not taken the connection")
        return line

    def _missed(self, server: Server, life: str, decision: Handling | None) -> None:
        """It is not there any more."""
        if decision is not None:
            decision.missed(life)
        else:
            self._workers.missed(server, life)

    def keep(self, line: Line) -> None:
        """Its exchange is over, and it may carry another."""
        if len(self._idle) < IDLE:
            self._idle.append(line)
        else:
            line.transport.close()

    def leaves(self, line: Line) -> None:
        """The worker is about to end."""
        self._workers.look()
        if line in self._idle:
            self._idle.remove(line)
            line.transport.close()

    def lost(self, line: Line) -> None:
        if line in self._idle:
            self._idle.remove(line)

    def close(self) -> None:
        for line in self._idle:
            line.transport.close()
        self._idle.clear()


class Asking:
    """Whose is a key that this worker does not know? The arbiter says so; here it is asked, or is this very worker."""

    def __init__(self, here: Here, keys: Keys) -> None:
        self._here = here
        self._keys = keys
        self._under_way: dict[str, asyncio.Task[None]] = {}
        self._given_away: dict[str, asyncio.Future[None]] = {}

    async def execute(self, commands: Sequence[tuple[object, ...]]) -> list[object]:
        """As a store is asked, once for each key at a time. What comes of it is in `Keys`."""
        for command in commands:
            key = str(command[0])
            task = self._under_way.get(key)
            if task is None:
                task = self._under_way[key] = asyncio.ensure_future(self._claim(key))
            await asyncio.shield(task)
        return [None] * len(commands)

    async def _claim(self, key: str) -> None:
        keys = self._keys
        arbiter, before = keys.arbiter(key), keys.last(key)
        text: str | None
        try:
            if arbiter is self._here.workers.own:
                text = await self.give(key, keys.own)
            else:
                text = await self._here.siblings[arbiter.id].asked(Kind.CLAIM, key, keys.own)
            keys.settled(key, text, before)
        finally:
            del self._under_way[key]

    async def give(self, key: str, claimant: str) -> str:
        """We are the arbiter: whose it is, or is from now on."""
        keys = self._keys
        while (text := keys.known(key)) is None:
            giving = self._given_away.get(key)
            if giving is not None:
                await giving
                continue
            giving = self._given_away[key] = self._here.loop.create_future()
            try:
                siblings = [each for each in self._here.workers.siblings if not claimant.startswith(f"{each.name}@")]
                told = await asyncio.gather(*(self._here.siblings[each.id].asked(Kind.ASK, key) for each in siblings))
                keys.learn(key, next((each for each in told if each is not None), claimant))
            finally:
                del self._given_away[key]
                giving.set_result(None)
            if keys.known(key) is None:
                return claimant  # whoever had it has ended in this moment
        return text

    async def close(self) -> None:
        """There is nothing to close."""


class Unheard(Exception):
    """The line had ended before the sibling could have read the request."""


class Line(End):
    """The end of who hands over: one exchange after another."""

    def __init__(self, sibling: Sibling, life: str) -> None:
        super().__init__()
        self._sibling = sibling
        self.life = life
        self._inbox: deque[Frame] = deque()
        self._news: asyncio.Future[None] | None = None
        self._since = 0  # the sweep in which the exchange began
        self._decision: Handling
        self._is_websocket = False
        self._begins: Begins
        self._greeted = False
        self._leaving = False
        self._reset = False  # whether it ended with something unread at the other end
        self._pump: asyncio.Task[None] | None = None
        self._pumped = False  # whether the client was read for this exchange
        self._receive: Receive | None = None
        self._gone = False

    # What asyncio calls

    def heard(self, frame: Frame) -> None:
        match frame[0]:
            case Kind.MESSAGES:
                self._inbox.append(frame)
                self._count(frame, 1)
            case Kind.END:
                self._inbox.append(frame)
                self._count(frame, 2)
            case Kind.HELLO:
                if frame[1] != self.life:
                    raise ValueError("another worker than was expected")
                self._greeted = True
            case Kind.BYE:
                self._leaving = True
                self._sibling.leaves(self)
            case Kind.WANT:
                self._look_out()
            case Kind.KNOWN:
                self._inbox.append(frame)
            case _:
                raise ValueError(f"a frame of kind {frame[0]}")
        self._wake()

    def eof_received(self) -> None:
        super().eof_received()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._reset = isinstance(exc, (BrokenPipeError, ConnectionResetError))
        self._sibling.lost(self)
        self._wake()

    def _wake(self) -> None:
        news = self._news
        if news is not None and not news.done():
            news.set_result(None)

    async def _news_came(self) -> None:
        news = self._news = self.loop.create_future()
        try:
            await news
        finally:
            self._news = None

    # What an exchange does

    async def greeted(self) -> None:
        """Wait until the sibling has taken the connection, or can't any more. A busy one takes its time, as it would
        over a request of its own.
        """
        while not self._greeted and not self.closed:
            await self._news_came()

    async def exchange(self, scope: Scope, receive: Receive, send: Send, decision: Handling) -> None:
        """Hand a request over, and its answer back. ServerFailure if the sibling fails, `HandedOverError` if the app
        there does; `Unheard`.
        """
        extensions = scope.get("extensions")
        if extensions:
            extensions = {name: value for name, value in extensions.items() if name in EXTENSIONS}
        presented = decision.persisted
        begins = self._begins = _begins(scope)
        self._gone = self._pumped = False
        self._receive = receive
        self._decision = decision
        self._is_websocket = scope["type"] == "websocket"
        self.say(Kind.REQUEST, presented.claim.name, presented.reason.name, begins.value, extensions, *_carried(scope))
        if begins is Begins.NOW:
            self._look_out()
        sweep = TimeoutSweep.for_loop(self.loop)
        self._since = sweep.number
        sweep.add(self)
        over = False
        try:
            inbox = self._inbox
            while True:
                while inbox:
                    frame = inbox.popleft()
                    over = frame[0] == Kind.END
                    for message in frame[2 if over else 1 :]:
                        if not self._gone:
                            await self._pass_on(message, send)
                    if over:
                        if frame[1] is not None:
                            raise HandedOverError(frame[1])
                        return
                self.taken()
                if self.closed:
                    break
                await self._news_came()
        finally:
            self._receive = None
            self.taken()
            sweep.remove(self)
            if self._pump is not None:
                self._pump.cancel()
                self._pump = None
            if not over:
                self.transport.abort()
            elif self._leaving or self.closed:
                self.transport.close()
            else:
                self._sibling.keep(self)
        if self._reset and not self._pumped and not decision.status:
            raise Unheard
        raise ServerFailure(Failure.TRUNCATED if decision.status else Failure.CLOSED, decision.tried[-1].name)

    async def asks(self, *frame: object) -> str | None:
        """Ask whose a key is; None if that is not known there."""
        self.say(*frame)
        over = False
        try:
            while not self._inbox and not self.closed:
                await self._news_came()
            over = bool(self._inbox)
            text = self._inbox.popleft()[1] if over else None
        finally:
            if over and not self._leaving and not self.closed:
                self._sibling.keep(self)
            else:
                self.transport.close()
        return text if isinstance(text, str) else None

    async def _pass_on(self, message: Message, send: Send) -> None:
        if message["type"] in HEADS:
            message["headers"] = list(message.get("headers") or ())
        try:
            await send(message)
        except OSError:  # nobody takes the answer any more
            if self._is_websocket:
                self._left({"type": "websocket.disconnect", "code": 1006})
            else:
                self._left({"type": "http.disconnect"})

    def _left(self, message: Message) -> None:
        self._gone = True
        self.tell(message)
        self._decision.client_disconnected()

    def on_sweep(self, number: int) -> None:
        """Who was not answered at once may leave."""
        if number > self._since + 1:
            self._look_out()

    def _look_out(self) -> None:
        """Read what the client says, and pass it on."""
        if self._pump is None and self._receive is not None:
            self._pumped = True
            self._pump = self.loop.create_task(self._pass_all(self._receive))

    async def _pass_all(self, receive: Receive) -> None:
        try:
            while not self.closed:
                message = await receive()
                if message["type"] in _DISCONNECTS:
                    if not self._gone:
                        self._left(message)
                    return
                if self._begins is not Begins.NEVER:  # else it was told of its empty body before we had read it
                    self.tell(message)
                    self.flush()
                    await self.drain()
        except Exception as error:
            _log.warning("StickyWorkers: a request that is handed over can't be read to its end: %s", error)
            self.transport.abort()


def _carried(scope: Scope) -> Iterator[object]:
    """What travels of a scope, in order; False is what it does not have, and nothing that it can have."""
    came = cast("dict[str, object]", scope)
    return (came.get(name, False) for name in CARRIED)


class Begins(Enum):
    """When the client's messages are read for a sibling."""

    NOW = 0
    NEVER = 1  #: there is no body
    WANTED = 2  #: to ask for the body is to promise that it is wanted (RFC 9110, 10.1.1)


def _begins(scope: Scope) -> Begins:
    if scope["type"] == "websocket":
        return Begins.NOW
    found = Begins.NEVER if scope.get("http_version", "1.1")[0] == "1" else Begins.NOW
    for name, value in scope["headers"]:
        if name == b"expect":
            return Begins.WANTED
        if name == b"transfer-encoding" or (name == b"content-length" and value != b"0"):
            found = Begins.NOW
    return found


def _size(message: Message) -> int:
    return len(message.get("body") or message.get("bytes") or message.get("text") or ())


# -- who serves


class Owner(End):
    """The end of who serves: a sibling's line to this worker."""

    def __init__(self, here: Here) -> None:
        super().__init__()
        self._here = here
        self._under_way: Exchange | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if not self.closed:
            self._here.owners.add(self)
            self.say(Kind.HELLO, self._here.workers.slot.life)

    def heard(self, frame: Frame) -> None:
        match frame[0]:
            case Kind.MESSAGES:
                if self._under_way is not None:  # else it came too late
                    self._count(frame, 1)
                    for message in frame[1:]:
                        self._under_way.heard(message)
            case Kind.ASK:
                keys = self._here.workers.keys
                self.say(Kind.KNOWN, keys.known(str(frame[1])) if keys is not None else None)
            case Kind.CLAIM:
                self._giving = self.loop.create_task(self._give(str(frame[1]), str(frame[2])))
            case Kind.REQUEST:
                if self._under_way is not None:
                    raise ValueError("a request before the end of another")
                handed = self._here.workers.handed(frame[1], frame[2])
                self._under_way = Exchange(self, self._here, handed, _scope(frame), Begins(frame[3]))
                self._under_way.task = self.loop.create_task(self._under_way.run())
            case _:
                raise ValueError(f"a frame of kind {frame[0]}")

    async def _give(self, key: str, claimant: str) -> None:
        asking = self._here.asking
        text = await asking.give(key, claimant) if asking is not None else claimant
        self.say(Kind.KNOWN, text)

    def over(self, problem: str | None) -> None:
        """The app is through; what it has raised."""
        self._under_way = None
        if not self.closed:
            self.taken()
            said, self._said, self._gathered = self._said, [], 0
            self.transport.write(self.pack(Kind.END, problem, *said))

    def say_bye(self) -> None:
        """This worker is about to end."""
        self.say(Kind.BYE)
        if self._under_way is not None:
            self._under_way.say_bye()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._here.left(self)
        if self._under_way is not None:
            self._under_way.lost()

    def eof_received(self) -> None:
        super().eof_received()
        if self._under_way is not None:
            self._under_way.lost()


def _scope(frame: Frame) -> Scope:
    """The scope in a frame, as servers make them. ValueError, TypeError, KeyError if it is none."""
    scope: Scope = {name: value for name, value in zip(CARRIED, frame[5:], strict=True) if value is not False}
    if frame[4] is not None:
        scope["extensions"] = dict(frame[4])
    if scope["type"] not in ("http", "websocket"):
        raise ValueError(f"a scope of type {scope['type']!r}")
    scope["headers"] = list(scope.get("headers", ()))
    if "subprotocols" in scope:
        scope["subprotocols"] = list(scope["subprotocols"])
    return scope


class Exchange:
    """A request that a sibling has handed over, and the app's view of it."""

    def __init__(self, owner: Owner, here: Here, handed: Handed, scope: Scope, begins: Begins) -> None:
        self._owner = owner
        self._here = here
        self._handed = handed
        self._scope = scope
        self._is_websocket = scope["type"] == "websocket"
        self._inbox: deque[Message] = deque()
        if begins is Begins.NEVER:
            self._inbox.append({"type": "http.request", "body": b"", "more_body": False})
        self._wants = begins is Begins.WANTED
        self._farewell: Message = _GONE_WEBSOCKET if self._is_websocket else _GONE
        self._gone = False  # whether the client has left
        self._answered = False
        self._waiting: asyncio.Future[None] | None = None
        asgi = cast("dict[str, object]", scope.get("asgi") or {})
        self._raises = _raises(str(asgi.get("spec_version", "2.0")))
        self.task: asyncio.Task[None]

    async def run(self) -> None:
        scope, handed = self._scope, self._handed
        scope[KEY] = handed
        if self._here.state is not None:
            scope["state"] = dict(self._here.state)
        problem: str | None = None
        handed.begin()
        try:
            await self._here.app(scope, self.receive, self.send)
        except Exception as error:
            handed.app_raised()
            problem = "".join(traceback.format_exception(error))
        except BaseException:  # the event loop ends, and nobody will answer
            self._owner.transport.abort()
            raise
        finally:
            handed.release()
            self._owner.over(problem)

    def heard(self, message: Message) -> None:
        """The client has said something."""
        if message["type"] in _DISCONNECTS:
            self._gone = True
            self._farewell = message
        else:
            self._inbox.append(message)
        self._wake()

    def lost(self) -> None:
        """The sibling is gone, and the client with it."""
        self._gone = True
        self._wake()

    def say_bye(self) -> None:
        """This worker is about to end: a WebSocket would outlast its patience."""
        if self._is_websocket and not self._gone:
            self._owner.tell({"type": "websocket.close", "code": _RESTARTS, "reason": "the service restarts"})
            self.heard({"type": "websocket.disconnect", "code": _RESTARTS, "reason": "the service restarts"})

    def _wake(self) -> None:
        waiting = self._waiting
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    async def receive(self) -> Message:
        inbox = self._inbox
        if self._wants:
            self._wants = False
            self._owner.say(Kind.WANT)
        while not inbox:
            if self._gone or self._answered:
                return self._farewell
            if self._waiting is None:
                self._waiting = self._owner.loop.create_future()
            waiting = self._waiting
            try:
                await asyncio.shield(waiting)
            finally:
                if self._waiting is waiting and waiting.done():
                    self._waiting = None
        message = inbox.popleft()
        if not inbox:
            self._owner.taken()
        return message

    async def send(self, message: Message) -> None:
        owner = self._owner
        if self._gone:
            if self._raises:
                raise OSError("the client has left")
            return
        kind = message["type"]
        if kind in HEADS:
            if not self._handed.status:
                self._handed.status = message.get("status", 101) % 1000
            headers = message.get("headers")
            if headers is not None and not isinstance(headers, list):
                message = {**message, "headers": list(headers)}
            keys = self._here.workers.keys
            if keys is not None and kind != "http.response.early_hint":
                found: Headers = message.get("headers") or []
                keys.stores_replied(Head(found, True), self._here.workers.own)
        owner.tell(message)
        await owner.drain()
        if kind == "http.response.body" and not message.get("more_body", False):
            self._answered = True
            if self._waiting is not None:
                self._wake()


@lru_cache(maxsize=16)
def _raises(spec_version: str) -> bool:
    """Whether apps of this version of ASGI expect an OSError from `send` once the client has left (2.4)."""
    return [int(part) for part in spec_version.split(".") if part.isdecimal()] >= [2, 4]


_GONE: Final[Message] = {"type": "http.disconnect"}
_GONE_WEBSOCKET: Final[Message] = {"type": "websocket.disconnect", "code": 1006, "reason": ""}
