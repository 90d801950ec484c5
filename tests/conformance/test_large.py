"""Bodies that must not be held in memory, many WebSockets, clients that disconnect at any moment: a gateway keeps
nothing of what it forwards.

The sizes that the project promises run with `-m long`; small ones, just large enough to detect a body that is buffered,
run always.
"""

import asyncio
import base64
import hashlib
import json
import random
import resource
import socket
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

MB = 1 << 20
HOST = "127.0.0.1"
DEADLINE = 300.0

#: What a transfer may add to the memory of the process that it goes through, whatever its size.
GROWTH = 20 * MB

FACES = {
    "uvicorn": "uvicorn --no-access-log relay_asgi:app",
    "gunicorn": "gunicorn -k gthread -w 1 --threads 64 relay_wsgi:app",
}
WARM_UP = 4 * MB

#: 251 is a prime: a piece that is lost or sent twice shifts the pattern.
BLOCK = bytes(range(251)) * 1044

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")


def sizes(small: int, large: int) -> pytest.MarkDecorator:
    names = {small: f"{small // MB} MB", large: f"{large // MB} MB"}
    return pytest.mark.parametrize(
        "size", [pytest.param(small, id=names[small]), pytest.param(large, id=names[large], marks=pytest.mark.long)]
    )


@pytest.fixture(params=list(FACES.values()), ids=list(FACES))
def relay(request, serve) -> Callable[..., object]:
    """Start a gateway to one upstream."""
    return lambda port, **options: serve(
        *request.param.split(),
        variables={"RELAY": json.dumps({"/far": {"servers": {"s1": f"http://{HOST}:{port}"}, **options}})},
    )


def state_of(served) -> dict[str, int]:
    state: dict[str, int] = json.loads(served.client().request("/look").body)
    return state


# Bodies.


class ProcessMemory:
    """The memory of a process, now and at its peak since the last reset."""

    def __init__(self, pid: int) -> None:
        self._of = Path(f"/proc/{pid}")
        self._before = 0

    def _kilobytes(self, name: str) -> int:
        lines = (self._of / "status").read_text().splitlines()
        (value,) = (line.split()[1] for line in lines if line.startswith(f"{name}:"))
        return int(value) * 1024

    def begin(self) -> None:
        (self._of / "clear_refs").write_text("5")  # reset the peak: proc(5)
        self._before = self._kilobytes("VmRSS")

    @property
    def growth(self) -> int:
        return self._kilobytes("VmHWM") - self._before


class TransferCount:
    """The bytes that one end has sent or received: their number and checksum."""

    def __init__(self) -> None:
        self.size = 0
        self.sum = 0

    def add(self, data: bytes | memoryview) -> None:
        self.size += len(data)
        self.sum = zlib.crc32(data, self.sum)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TransferCount) and (self.size, self.sum) == (other.size, other.sum)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{self.size} bytes, {self.sum:08x}>"


def blocks(size: int) -> Iterator[memoryview]:
    """Yield a body of `size` bytes."""
    block = memoryview(BLOCK)
    while size:
        yield block[: min(size, len(block))]
        size -= min(size, len(block))


class TransferOrigin:
    """An origin with one connection at a time: it reads the body of a PUT, and responds to a GET of /far/<size>."""

    def __init__(self) -> None:
        self._listener = socket.create_server((HOST, 0))
        self.port: int = self._listener.getsockname()[1]
        self.sent = TransferCount()
        self.received = TransferCount()
        self.may_read = threading.Event()
        self.may_read.set()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                end, _ = self._listener.accept()
            except OSError:
                return
            with end:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
                end.settimeout(DEADLINE)
                try:
                    self._serve(end)
                except OSError:
                    pass

    def _serve(self, end: socket.socket) -> None:
        with end.makefile("rb") as came:
            line = came.readline().decode()
            fields = {}
            while (field := came.readline()) != b"\r\n":
                name, _, value = field.decode("latin-1").partition(":")
                fields[name.lower()] = value.strip()
            if line.startswith("GET"):
                self.sent = TransferCount()
                size = int(line.split()[1].rpartition("/")[2])
                end.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % size)
                for block in blocks(size):
                    end.sendall(block)
                    self.sent.add(block)
                return
            self.received = TransferCount()
            if "chunked" in fields.get("transfer-encoding", ""):
                while size := int(came.readline(), 16):
                    self._take(came, size)
                    came.readline()
                came.readline()
            else:
                self._take(came, int(fields["content-length"]))
            end.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")

    def _take(self, came, size: int) -> None:
        while size:
            self.may_read.wait()
            data = came.read1(min(size, 1 << 18))
            if not data:
                raise ConnectionError("cut short")
            self.received.add(data)
            size -= len(data)

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def transfer_origin():
    transfer_origin = TransferOrigin()
    yield transfer_origin
    transfer_origin.close()


class Download:
    """A GET with a response body that the test reads as slowly as it likes."""

    def __init__(self, port: int, size: int) -> None:
        self.received = TransferCount()
        self._end = socket.socket()
        self._end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        self._end.settimeout(DEADLINE)
        self._end.connect((HOST, port))
        self._end.sendall(b"GET /far/%d HTTP/1.1\r\nHost: far\r\nConnection: close\r\n\r\n" % size)
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += self._end.recv(1)
        assert head.startswith(b"HTTP/1.1 200")
        assert f"content-length: {size}\r\n".encode() in head.lower()

    def read(self, size: int) -> None:
        """Read until so many bytes are received in total."""
        while self.received.size < size:
            data = self._end.recv(min(1 << 18, size - self.received.size))
            assert data, f"cut short after {self.received}"
            self.received.add(data)

    def is_over(self) -> bool:
        return self._end.recv(1) == b""

    def close(self) -> None:
        self._end.close()


def download(port: int, size: int) -> TransferCount:
    """Read the whole response, as fast as it arrives."""
    with closing(Download(port, size)) as body:
        body.read(size)
        assert body.is_over()
        return body.received


def upload(port: int, size: int, chunked: bool = False) -> TransferCount:
    sent = TransferCount()
    framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % size
    with socket.create_connection((HOST, port), DEADLINE) as end:
        end.sendall(b"PUT /far HTTP/1.1\r\nHost: far\r\nConnection: close\r\n" + framing + b"\r\n\r\n")
        for block in blocks(size):
            end.sendall(b"%x\r\n%b\r\n" % (len(block), bytes(block)) if chunked else block)
            sent.add(block)
        if chunked:
            end.sendall(b"0\r\n\r\n")
        response = b""
        while more := end.recv(65536):
            response += more
    assert response.startswith(b"HTTP/1.1 200")
    return sent


@sizes(48 * MB, 1024 * MB)
def test_response_body_is_not_buffered(relay, transfer_origin, until, size):
    served = relay(transfer_origin.port)
    download(served.port, WARM_UP)
    memory = ProcessMemory(state_of(served)["pid"])
    memory.begin()
    received = download(served.port, size)
    until(lambda: transfer_origin.sent.size == size, "the origin has counted what it sent")
    assert received == transfer_origin.sent
    assert received.size == size
    assert memory.growth < GROWTH


@pytest.mark.parametrize("chunked", [False, True], ids=["of a known length", "in chunks"])
@sizes(48 * MB, 1024 * MB)
def test_request_body_is_not_buffered(relay, transfer_origin, size, chunked):
    served = relay(transfer_origin.port)
    upload(served.port, WARM_UP, chunked)
    memory = ProcessMemory(state_of(served)["pid"])
    memory.begin()
    sent = upload(served.port, size, chunked)
    assert sent == transfer_origin.received
    assert sent.size == size
    assert memory.growth < GROWTH


@sizes(48 * MB, 400 * MB)
def test_slow_client_slows_the_origin_down(relay, transfer_origin, wait_until_stable, size):
    served = relay(transfer_origin.port)
    download(served.port, WARM_UP)
    memory = ProcessMemory(state_of(served)["pid"])
    memory.begin()
    with closing(Download(served.port, size)) as body:
        assert wait_until_stable(lambda: transfer_origin.sent.size) < size
        for quarter in range(1, 5):
            body.read(size * quarter // 4)
            wait_until_stable(lambda: transfer_origin.sent.size)
        assert body.is_over()
        assert body.received == transfer_origin.sent
    assert memory.growth < GROWTH


@sizes(48 * MB, 400 * MB)
def test_slow_origin_slows_the_client_down(relay, transfer_origin, wait_until_stable, until, size):
    served = relay(transfer_origin.port)
    upload(served.port, WARM_UP)
    memory = ProcessMemory(state_of(served)["pid"])
    memory.begin()
    transfer_origin.may_read.clear()

    def has_received(enough: int) -> bool:
        return bool(transfer_origin.received.size >= enough)

    sent: list[TransferCount] = []
    client = threading.Thread(target=lambda: sent.append(upload(served.port, size)))
    client.start()
    for _ in range(4):
        enough = min(wait_until_stable(lambda: transfer_origin.received.size) + size // 4, size)
        transfer_origin.may_read.set()
        until(partial(has_received, enough), "a quarter of the body")
        transfer_origin.may_read.clear()
    transfer_origin.may_read.set()
    client.join()
    assert sent == [transfer_origin.received]
    assert memory.growth < GROWTH


# Many connections at once, and disconnects.


class HoldingOrigin:
    """An origin that never ends a response, and counts its connections. The path selects its behaviour.

    /far/hold does not respond, /far/head sends only a head, /far/body has no end, /far/upload reads for ever, /far/ws
    echoes.
    """

    def __init__(self) -> None:
        self.open = 0
        self.greeted = 0
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._over = asyncio.Event()
        self.port = 0
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),))
        self._thread.start()
        assert self._ready.wait(DEADLINE)

    async def _run(self) -> None:
        server = await asyncio.start_server(self._connected, HOST, 0, backlog=1024)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._over.wait()
        server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.greeted += 1
            await getattr(self, head.split()[1].rpartition(b"/")[2].decode())(head, reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()
            self.open -= 1

    async def hold(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async def head(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        await reader.read()

    async def body(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"3e8\r\n" + b"x" * 1000 + b"\r\n")
            await writer.drain()
            await asyncio.sleep(0)

    async def upload(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(65536):
            pass

    async def ws(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines = head.split(b"\r\n")
        (key,) = (line[19:].strip() for line in lines if line.lower().startswith(b"sec-websocket-key:"))
        digest = hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
        accepting = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        writer.write(accepting + b"Sec-WebSocket-Accept: " + base64.b64encode(digest) + b"\r\n\r\n")
        while True:  # frames of less than 126 bytes, masked
            first, size = await reader.readexactly(2)
            mask, payload = await reader.readexactly(4), await reader.readexactly(size & 0x7F)
            writer.write(bytes((first, len(payload))) + mask_payload(payload, mask))
            await writer.drain()
            if first == 0x88:
                return

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(DEADLINE)
        self._loop.close()


def mask_payload(payload: bytes, mask: bytes) -> bytes:
    return bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))


@pytest.fixture
def holding_origin():
    holding_origin = HoldingOrigin()
    yield holding_origin
    holding_origin.close()


@pytest.fixture
def files(request) -> Callable[[int], None]:
    """Return a function that raises the limit of open files, here and in processes that are started from here."""

    def raise_limit(count: int) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if hard != resource.RLIM_INFINITY and hard < count:
            pytest.skip(f"needs {count} open files, and the limit is {hard}")
        if soft < count:
            resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
            request.addfinalizer(lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard)))

    return raise_limit


HANDSHAKE = (
    b"GET /far/ws HTTP/1.1\r\nHost: far\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def frame(first: int, payload: bytes) -> bytes:
    """A masked frame of less than 126 bytes."""
    return bytes((first, 0x80 | len(payload))) + b"mask" + mask_payload(payload, b"mask")


SOCKETS = {
    "uvicorn, websockets": "uvicorn --no-access-log --ws websockets-sansio relay_asgi:app",
    "uvicorn, wsproto": "uvicorn --no-access-log --ws wsproto relay_asgi:app",
}


@pytest.mark.parametrize(
    "server, count",
    [
        pytest.param(SOCKETS["uvicorn, websockets"], 100, id="100 at uvicorn, websockets"),
        pytest.param(SOCKETS["uvicorn, websockets"], 1000, id="1000 at uvicorn, websockets", marks=pytest.mark.long),
        pytest.param(SOCKETS["uvicorn, wsproto"], 1000, id="1000 at uvicorn, wsproto", marks=pytest.mark.long),
    ],
)
def test_many_websockets_with_single_bytes_are_open_at_once(serve, holding_origin, files, until, server, count):
    files(2 * count + 200)
    routes = {"/far": {"servers": {"s1": f"http://{HOST}:{holding_origin.port}"}}}
    served = serve(*server.split(), variables={"RELAY": json.dumps(routes)})
    state_of(served)
    before = state_of(served)
    ends: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def open_websockets() -> None:
        for _ in range(count):
            ends.append(await asyncio.open_connection(HOST, served.port))
            ends[-1][1].write(HANDSHAKE)
        for reader, _ in ends:
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
        held = await asyncio.to_thread(state_of, served)
        assert (held["in_flight"], holding_origin.open) == (count, count)
        texts = [b"tea for number %d" % number for number in range(count)]
        frames = [frame(0x81, text) for text in texts]
        for at in range(max(map(len, frames))):  # a byte of the first, a byte of the second, ...
            for (_, writer), data in zip(ends, frames, strict=True):
                writer.write(data[at : at + 1])
            await asyncio.sleep(0)
        for (reader, _), text in zip(ends, texts, strict=True):
            assert await reader.readexactly(2 + len(text)) == bytes((0x81, len(text))) + text
        for number, (_, writer) in enumerate(ends):
            if number % 2:
                writer.write(frame(0x88, struct.pack("!H", 1000)))
            else:
                writer.transport.abort()
        for reader, _ in ends[1::2]:
            assert await reader.read() == b"\x88\x02\x03\xe8"

    async def exchange_bytes() -> None:
        try:
            await asyncio.wait_for(open_websockets(), 5 * DEADLINE)
        finally:
            for _, writer in ends:
                writer.transport.abort()

    asyncio.run(exchange_bytes())
    until(lambda: holding_origin.open == 0, "an origin without connections")
    until(lambda: state_of(served) == before, f"a gateway that is as it was: {before}")


#: The request of a client that disconnects, and how many bytes of the response it may have read by then. WSGI servers
#: send a head only with the first byte of a body.
REQUESTS: dict[str, tuple[bytes, int]] = {
    "before the head": (b"GET /far/hold HTTP/1.1\r\nHost: far\r\n\r\n", 0),
    "before the body": (b"GET /far/head HTTP/1.1\r\nHost: far\r\n\r\n", 40),
    "in the body": (b"GET /far/body HTTP/1.1\r\nHost: far\r\n\r\n", 200_000),
    "in an upload": (
        b"PUT /far/upload HTTP/1.1\r\nHost: far\r\nContent-Length: 999999999\r\n\r\n" + b"x" * 99_999,
        0,
    ),
    "in a request": (b"GET /far/hold HTTP/1.1\r\nHost: far\r\nX-Very-Long: " + b"x" * 999, 0),
    "in a WebSocket": (HANDSHAKE, 100),
}


@pytest.mark.parametrize(
    "seed",
    [pytest.param(1, id="seed 1"), *(pytest.param(n, id=f"seed {n}", marks=pytest.mark.long) for n in range(2, 9))],
)
def test_clients_that_disconnect_at_random_leave_nothing_open(relay, holding_origin, until, seed):
    served = relay(holding_origin.port, server={"pool_max_conn": 0})
    requests = dict(REQUESTS)
    if served.kind.module == "gunicorn":
        del requests["in a WebSocket"]
        requests["before the body"] = (REQUESTS["before the body"][0], 0)
    state_of(served)
    before = state_of(served)
    rng = random.Random(seed)

    def send_request(request: bytes, read: int, reset: bool) -> None:
        with socket.create_connection((HOST, served.port), DEADLINE) as end:
            end.sendall(request)
            while read > 0 and (came := end.recv(read)):
                read -= len(came)
            if reset:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with ThreadPoolExecutor(48) as crowd:
        visits = []
        for _ in range(200):
            request, most = rng.choice(list(requests.values()))
            if rng.random() < 0.1:
                request, most = request[: rng.randrange(len(request))], 0
            visits.append(crowd.submit(send_request, request, rng.randint(0, most), reset=rng.random() < 0.5))
    for each in visits:
        each.result()
    assert holding_origin.greeted > 50
    until(lambda: holding_origin.open == 0, "an origin without connections")
    until(lambda: state_of(served)["in_flight"] == 0, "a gateway with nothing in flight")
    until(lambda: {**state_of(served), "blamed": 0} == before, f"a gateway that is as it was: {before}")
    assert state_of(served)["blamed"] == 0
