"""HAProxy and nginx as witnesses of balance: with the same servers and the same requests, in order, they must make the
same choices as our algorithms, some two thousand for each way to hash.

Servers and witness are one process, over UNIX sockets, and requests are sent many at a time. Where a keyword is newer
than the witness (HAProxy 3), our choices are compared with a recorded checksum of them.
"""

import random
import re
import selectors
import socket
import subprocess
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any, Literal

import pytest

from sticky_core.balance import (
    First,
    Hash,
    Hdr,
    IpHash,
    LeastConn,
    NginxHash,
    NginxLeastConn,
    RoundRobin,
    Smooth,
    Source,
    StaticRR,
    Uri,
    UrlParam,
)
from sticky_core.balance.algorithm import Balance
from sticky_core.balance.hashing import HashKey
from sticky_core.http.messages import Request
from sticky_core.samples import request as samples
from sticky_core.server.server import Server

pytestmark = pytest.mark.live

DEADLINE = 300.0
KEYS = 2000
SERVERS = 10
WEIGHTS = (1, 2, 3, 5, 1, 10, 4, 1, 7, 3)
EQUAL = (1,) * SERVERS


# -- requests


@dataclass(frozen=True)
class Ask:
    """A request that the witness and our algorithm get."""

    src: str = "192.0.2.1"
    path: str = "/"
    query: str = ""
    headers: tuple[tuple[str, str], ...] = ()

    def header(self, name: str) -> list[str]:
        return [value.strip(" \t") for key, value in self.headers if key == name]

    def sent(self, **more: object) -> bytes:
        target = f"{self.path}?{self.query}" if self.query else self.path
        lines = [f"GET {target} HTTP/1.1", "Host: shop.example", f"X-Src: {self.src}"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        # last, since HAProxy's use_domain_only reads a byte too far, and would take a dot there for a part of the name
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in more.items()]
        return "".join(f"{line}\r\n" for line in (*lines, "")).encode("latin-1")


def addresses(chance: random.Random) -> Iterator[Ask]:
    for number in range(KEYS):
        bits = chance.getrandbits(128)
        yield Ask(src=str(IPv6Address(bits) if number % 5 == 0 else IPv4Address(bits >> 96)))


LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~"


def word(chance: random.Random, longest: int, letters: str = LETTERS) -> str:
    return "".join(chance.choices(letters, k=chance.randint(1, longest)))


def uris(chance: random.Random) -> Iterator[Ask]:
    for _ in range(KEYS):
        path = "".join(f"/{word(chance, 8)}%2F{chance.randrange(100)}" for _ in range(chance.randint(0, 5)))
        query = f"{word(chance, 4)}=/{word(chance, 12)}" if chance.random() < 0.5 else ""
        yield Ask(path=path or "/", query=query)


def params(chance: random.Random) -> Iterator[Ask]:
    """Return requests: the parameter first, later, twice, empty, as the end of another name, without `=`, absent."""
    forms: tuple[str, ...] = (
        "user={}",
        "a=1&user={}&b=2",
        "user={}&user=other",
        "user=&a={}",
        "superuser={}",
        "user",
        "a={}",
        "",
    )
    forms += ("x=1;user={}", "user={};x=1", "user==?{}", "&user={}")
    for _ in range(KEYS):
        yield Ask(query=chance.choice(forms).format(word(chance, 20)))


def users(chance: random.Random) -> Iterator[Ask]:
    """Return requests with the header once, as a list, quoted, twice, empty, or without it."""
    forms: tuple[tuple[str, ...], ...] = (("{}",), ("{}, other",), ('"{},x", other',), ("{}", "other"), ("",), ())
    forms += ((" {} ",), (",{}",), ('"\\",{}", other',))
    for _ in range(KEYS):
        value = word(chance, 30)
        yield Ask(headers=tuple(("x-user", form.replace("{}", value)) for form in chance.choice(forms)))


def hosts(chance: random.Random) -> Iterator[Ask]:
    forms = ("{}", "{}.com", "www.{}.com", "a.b.{}.co.uk", ".{}", "{}.", "x.{}", "{}..com", "10.0.0.{}")
    for _ in range(KEYS):
        yield Ask(headers=(("x-host", chance.choice(forms).format(word(chance, 12, LETTERS[:62]))),))


def numbers(chance: random.Random) -> Iterator[Ask]:
    forms = ("{}", "{}abc", "-{}", "+{}", "abc", "0{}", "99999999999{}")
    for _ in range(KEYS):
        yield Ask(headers=(("x-user", chance.choice(forms).format(chance.getrandbits(40))),))


def equal_requests(chance: random.Random) -> Iterator[Ask]:
    yield from [Ask()] * 317  # so that changes in between happen in the middle of a round


def few(chance: random.Random) -> Iterator[Ask]:
    yield from [Ask()] * 25


# -- the rows


@dataclass(frozen=True)
class Pull:
    """A change between requests: the operator sets the state or the weight of a server."""

    server: str
    state: Literal["ready", "drain", "maint"] | None = None
    weight: int | None = None


@dataclass(frozen=True)
class Row:
    id: str
    #: the witness's configuration
    lines: tuple[str, ...]
    #: the same in our words
    balance: Balance
    asks: Callable[[random.Random], Iterable[Ask]]
    weights: tuple[int, ...] = WEIGHTS
    #: the servers that are disabled in the configuration
    disabled: tuple[int, ...] = ()
    #: the operator's changes, spread evenly between the requests
    pulls: tuple[Pull, ...] = ()
    #: appended to each server's line
    server: str = ""
    #: for a keyword of HAProxy 3, which a witness may be too old for: the checksum of our choices
    recorded: int | None = None

    @property
    def steps(self) -> Iterator[list[Ask] | Pull]:
        asks = list(self.asks(random.Random(self.id)))
        size = -(-len(asks) // (len(self.pulls) + 1))
        yield asks[:size]
        for number, pull in enumerate(self.pulls, 1):
            yield pull
            yield asks[number * size : (number + 1) * size]


def in_our_words(row: Row, targets: Sequence[str]) -> list[str]:
    """Return the names of the servers that our algorithm chooses."""
    servers = [
        Server(f"s{number}", target, weight=weight)
        for number, (target, weight) in enumerate(zip(targets, row.weights, strict=False), 1)
    ]
    for number in row.disabled:
        servers[number - 1].state = "maint"
    algorithm = row.balance.build(servers, random.Random(row.id))

    def changed(server: Server) -> None:
        server.refresh_state()
        algorithm.state_changed(server)

    for server in servers:
        server.attach(changed)
    chosen: list[str] = []
    for step in row.steps:
        if isinstance(step, Pull):
            server = next(server for server in servers if server.name == step.server)
            if step.state is not None:
                server.state = step.state
            if step.weight is not None:
                server.weight = step.weight
        else:
            for ask in step:
                request: Any = ask
                found = algorithm.choose(request, ())
                assert found is not None
                if algorithm.counts_requests:
                    algorithm.acquired(found)
                    algorithm.released(found)
                chosen.append(found.name)
    return chosen


def answers(entrance: Path, requests: Sequence[bytes]) -> list[str]:
    """Return the server that responded to each of `requests`, sent over one connection, a hundred at a time."""
    found: list[str] = []
    with closing(socket.socket(socket.AF_UNIX)) as connection:
        connection.settimeout(DEADLINE)
        connection.connect(str(entrance))
        for begin in range(0, len(requests), 100):
            some = requests[begin : begin + 100]
            connection.sendall(b"".join(some))
            received = b""
            while received.count(b"\r\n\r\n") < len(some):
                data = connection.recv(65536)
                assert data, received
                received += data
            heads = received.decode("latin-1").split("\r\n\r\n")[:-1]
            for head in heads:
                match = re.search(r"(?im)^x-server: (\S+)", head)
                assert match is not None, head
                found.append(match[1])
    return found


def answering(path: Path) -> bool:
    with closing(socket.socket(socket.AF_UNIX)) as connection:
        try:
            connection.connect(str(path))
        except OSError:
            return False
        return True


# -- HAProxy

FUNCTIONS = ("sdbm", "djb2", "wt6", "crc32")


def hash_types() -> Iterator[str]:
    yield "consistent"
    for method in ("map-based", "consistent"):
        for function in FUNCTIONS:
            yield f"{method} {function}"
            yield f"{method} {function} avalanche"


def hashed(text: str, balance: Callable[..., Balance], asks: Any, *types: str, **row: Any) -> Iterator[Row]:
    """Return a row for each hash type, the default included."""
    for hash_type in ("map-based", *types):
        lines = (f"balance {text}", f"hash-type {hash_type}")
        yield Row(f"{text}, {hash_type}", lines, balance(hash_type=hash_type, start=0), asks, **row)


CHANGES = (
    Pull("s6", state="maint"),
    Pull("s2", state="drain"),
    Pull("s6", state="ready"),
    Pull("s2", state="ready"),
)
WEIGHED = (Pull("s6", weight=4), Pull("s6", weight=0), Pull("s4", weight=9), Pull("s6", weight=10))

HASH_KEYS: tuple[tuple[HashKey, int], ...] = (
    ("id", 3255924102),
    ("id32", 3409414966),
    ("addr", 3495214144),
    ("addr-port", 3738033484),
)

HAPROXY = [
    *hashed("uri", Uri, uris, *hash_types()),
    *hashed("uri whole", lambda **more: Uri(whole=True, **more), uris, "consistent"),
    *hashed("uri len 9", lambda **more: Uri(len=9, **more), uris),
    *hashed("uri depth 2", lambda **more: Uri(depth=2, **more), uris),
    *hashed("uri whole depth 3 len 20", lambda **more: Uri(whole=True, depth=3, len=20, **more), uris),
    *hashed("uri path-only", lambda **more: Uri(path_only=True, **more), uris),
    *hashed("source", Source, addresses, "map-based sdbm avalanche", "consistent", "consistent sdbm"),
    *hashed("url_param user", lambda **more: UrlParam("user", **more), params, "consistent"),
    *hashed("hdr(x-user)", lambda **more: Hdr("X-User", **more), users, "consistent", "map-based wt6"),
    *hashed("hdr(x-host) use_domain_only", lambda **more: Hdr("x-host", use_domain_only=True, **more), hosts),
    *hashed("hash src", lambda **more: Hash(samples.src, **more), addresses, "consistent"),
    *hashed("hash path", lambda **more: Hash(samples.path, **more), uris),
    *hashed("hash req.hdr(x-user)", lambda **more: Hash(samples.hdr("x-user"), **more), users),
    *hashed("hash req.hdr(x-user,1)", lambda **more: Hash(samples.hdr("x-user", 1), **more), users),
    *hashed("hash url_param(user)", lambda **more: Hash(samples.url_param("user"), **more), params),
    Row(
        "a map without two of its servers",
        ("balance uri", "hash-type map-based"),
        Uri(),
        uris,
        disabled=(3, 6),
    ),
    Row(
        "a ring without two of its servers",
        ("balance uri", "hash-type consistent"),
        Uri(hash_type="consistent"),
        uris,
        disabled=(3, 6),
    ),
    Row("a map while servers go and come", ("balance uri",), Uri(), uris, pulls=CHANGES),
    Row(
        "a ring while servers go and come",
        ("balance uri", "hash-type consistent djb2 avalanche"),
        Uri(hash_type="consistent djb2 avalanche"),
        uris,
        pulls=CHANGES,
    ),
    Row(
        "a ring while weights change",
        ("balance uri", "hash-type consistent"),
        Uri(hash_type="consistent"),
        uris,
        pulls=WEIGHED,
    ),
    Row(
        "keys that are numbers",
        ("balance hdr(x-user)", "hash-type map-based none"),
        Hdr("x-user", hash_type="map-based none"),
        numbers,
        recorded=3170895516,
    ),
    *(
        Row(
            f"a ring by {key}",
            ("balance uri", "hash-type consistent"),
            Uri(hash_type="consistent", hash_key=key),
            uris,
            server=f"hash-key {key}",
            recorded=recorded,
        )
        for key, recorded in HASH_KEYS
    ),
    *(
        Row(f"static-rr {weights}", ("balance static-rr",), StaticRR(start=0), equal_requests, weights)
        for weights in ((1, 1, 1), (3, 1, 2), (5, 5, 3), (7, 4, 2, 9), (2, 3, 3), (30, 10, 20, 11), WEIGHTS)
    ),
    *(
        Row(f"roundrobin {weights}", ("balance roundrobin",), RoundRobin(start=0), equal_requests, weights)
        for weights in ((7, 4, 2, 9), (30, 10, 20, 11), WEIGHTS)
    ),
    *(
        Row(
            f"roundrobin {weights} while {what}, {asks.__name__} ask",
            ("balance roundrobin",),
            RoundRobin(start=0),
            asks,
            weights,
            pulls=pulls,
        )
        for weights in (WEIGHTS, EQUAL, (7, 4, 2, 9, 1, 1))
        for what, pulls in (("servers go and come", CHANGES), ("weights change", WEIGHED))
        for asks in (equal_requests, few)  # later, and while some servers have not had a turn
    ),
    Row(
        "static-rr while servers go and come", ("balance static-rr",), StaticRR(start=0), equal_requests, pulls=CHANGES
    ),
]


@dataclass(frozen=True)
class Held:
    """Requests that stay in flight until the test ends some of them."""

    id: str
    lines: tuple[str, ...]
    balance: Balance
    weights: tuple[int, ...] = (1, 1, 1, 1)
    maxconn: int = 0


def bounded(percent: int) -> tuple[tuple[str, ...], Balance]:
    lines = ("balance uri", "hash-type consistent", f"hash-balance-factor {percent}")
    return lines, Uri(hash_type="consistent", hash_balance_factor=percent)


HELD = [
    Held("leastconn", ("balance leastconn",), LeastConn()),
    Held("leastconn by weight", ("balance leastconn",), LeastConn(), (1, 2, 3, 4)),
    Held("first", ("balance first",), First(), maxconn=12),
    Held("hash-balance-factor 110", *bounded(110)),
    Held("hash-balance-factor 150", *bounded(150)),
    Held("hash-balance-factor 130 by weight", *bounded(130), (1, 2, 3, 4)),
]


def configured(
    rows: Sequence[Row], folder: Path, listeners: Sequence[socket.socket], holders: Sequence[socket.socket] = ()
) -> str:
    """haproxy.cfg, with a backend for each row, and a frontend for each server, which responds with its name."""
    lines = [
        "global",
        "  nbthread 1",
        f"  stats socket {folder}/admin mode 600 level admin",
        "defaults",
        "  mode http",
        *(f"  timeout {what} {DEADLINE:.0f}s" for what in ("client", "server", "queue", "connect")),
        "frontend entrance",
        f"  bind unix@{folder}/entrance",
        "  http-request set-src hdr(x-src)",
        "  use_backend b%[req.hdr(x-row)]",
    ]
    for number, listener in enumerate(listeners, 1):
        lines += [f"frontend s{number}", f"  bind fd@{listener.fileno()}"]
        lines += [f"  http-request return status 200 hdr x-server s{number}"]
    for number, row in enumerate(rows):
        lines += [f"backend b{number}", *(f"  {line}" for line in row.lines)]
        for nth, (listener, weight) in enumerate(zip(listeners, row.weights, strict=False), 1):
            host, port = listener.getsockname()
            disabled = " disabled" if nth in row.disabled else ""
            lines.append(f"  server s{nth} {host}:{port} weight {weight} {row.server}{disabled}")
    for number, held in enumerate(HELD if holders else ()):
        lines += [f"backend bheld{number}", "  http-reuse never", *(f"  {line}" for line in held.lines)]
        for nth, (holder, weight) in enumerate(zip(holders, held.weights, strict=True), 1):
            host, port = holder.getsockname()
            lines.append(f"  server s{nth} {host}:{port} weight {weight} maxconn {held.maxconn}")
    return "\n".join((*lines, ""))


class HAProxy:
    """A running HAProxy."""

    def __init__(
        self, folder: Path, known: Sequence[Row], targets: Sequence[str], holders: Sequence[socket.socket]
    ) -> None:
        self.known = known
        self.targets = targets
        self.holders = holders
        self.folder = folder

    def command(self, text: str) -> str:
        with closing(socket.socket(socket.AF_UNIX)) as connection:
            connection.settimeout(DEADLINE)
            connection.connect(str(self.folder / "admin"))
            connection.sendall(text.encode() + b"\n")
            return b"".join(iter(lambda: connection.recv(65536), b"")).decode()

    def chosen(self, row: Row) -> list[str]:
        number = self.known.index(row)
        found: list[str] = []
        for step in row.steps:
            if isinstance(step, Pull):
                what = f"state {step.state}" if step.state is not None else f"weight {step.weight}"
                assert self.command(f"set server b{number}/{step.server} {what}").strip() == ""
            else:
                found += answers(self.folder / "entrance", [ask.sent(x_row=number) for ask in step])
        return found


@pytest.fixture(scope="module")
def haproxy(part: Callable[[str], str], until: Callable[[Callable[[], object], str], None]) -> Iterator[HAProxy]:
    program = part("haproxy")
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        # an address each, so that they differ in the address as well
        listeners = [
            stack.enter_context(closing(socket.create_server((f"127.0.0.{number}", 0)))) for number in range(1, 11)
        ]
        holders = [stack.enter_context(closing(socket.create_server(("127.0.0.1", 0)))) for _ in range(4)]
        descriptors = [listener.fileno() for listener in listeners]
        config = folder / "haproxy.cfg"

        def is_known(row: Row) -> bool:
            config.write_text(configured([row], folder, listeners))
            checked = subprocess.run([program, "-c", "-q", "-f", config], capture_output=True, pass_fds=descriptors)
            return checked.returncode == 0

        known = [row for row in HAPROXY if row.recorded is None or is_known(row)]
        config.write_text(configured(known, folder, listeners, holders))
        output_file = folder / "output_file"
        with output_file.open("wb") as output:
            process = subprocess.Popen(
                [program, "-db", "-q", "-f", config],
                pass_fds=descriptors, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip
        try:
            until(lambda: process.poll() is not None or answering(folder / "entrance"), "HAProxy is there")
            assert process.poll() is None, output_file.read_text()
            targets = [f"http://{host}:{port}" for host, port in (each.getsockname() for each in listeners)]
            yield HAProxy(folder, known, targets, holders)
            assert process.poll() is None, output_file.read_text()
        finally:
            process.kill()
            process.wait()


def differences(row: Row, theirs: Sequence[str], ours: Sequence[str]) -> list[tuple[int, Ask, str, str]]:
    asks = [ask for step in row.steps if not isinstance(step, Pull) for ask in step]
    assert len(asks) == len(theirs) == len(ours)
    return [
        (number, ask, witnessed, own)
        for number, (ask, witnessed, own) in enumerate(zip(asks, theirs, ours, strict=True))
        if witnessed != own
    ]


@pytest.mark.parametrize("row", [pytest.param(row, id=row.id) for row in HAPROXY])
def test_haproxy_chooses_as_we_do(haproxy: HAProxy, row: Row) -> None:
    if row.recorded is not None:
        fixed_targets = [f"http://127.0.0.{number}:8000" for number in range(1, SERVERS + 1)]
        assert zlib.crc32(" ".join(in_our_words(row, fixed_targets)).encode()) == row.recorded
        if row not in haproxy.known:
            return
    theirs = haproxy.chosen(row)
    assert len(set(theirs)) > 1, "one server for all proves nothing"
    assert differences(row, theirs, in_our_words(row, haproxy.targets)) == []


class Zero:
    """A source of randomness that always returns the first choice."""

    def randrange(self, stop: int, /) -> int:
        return 0

    def random(self) -> float:
        return 0.0

    def getrandbits(self, k: int, /) -> int:
        return 0


class Flight:
    """Requests through a witness to servers that hold them, and the same requests among servers of our algorithm.

    `wait_for_release`: wait until the witness has only so many requests in flight.
    """

    def __init__(
        self,
        held: Held,
        entrance: Path,
        name: str,
        holders: Sequence[socket.socket],
        wait_for_release: Callable[[int], None] = lambda count: None,
    ) -> None:
        self._held = held
        self._entrance = entrance
        self._name = name
        self._holders = holders
        self._wait_for_release = wait_for_release
        self._both: list[tuple[socket.socket, socket.socket, Server]] = []
        self.servers = [
            Server(f"s{nth}", "http://127.0.0.1", weight=weight) for nth, weight in enumerate(held.weights, 1)
        ]
        self.algorithm = held.balance.build(self.servers, Zero())

    def __contains__(self, server: object) -> bool:
        assert isinstance(server, Server)
        return 0 < self._held.maxconn <= len(server.in_flight)

    def begin(self, ask: Ask) -> tuple[str, str]:
        """Begin a request; return the servers that the witness and our algorithm choose for it."""
        request: Any = ask
        own = self.algorithm.choose(request, self)
        assert own is not None
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(DEADLINE)
        client.connect(str(self._entrance))
        client.sendall(ask.sent(x_row=self._name))
        with selectors.DefaultSelector() as selector:
            for holder in self._holders:
                selector.register(holder, selectors.EVENT_READ)
            ((key, _),) = selector.select(DEADLINE)
        number = next(number for number, holder in enumerate(self._holders) if holder is key.fileobj)
        connection, _ = self._holders[number].accept()
        witnessed = self.servers[number]
        # our side follows the witness's choice, so that one difference does not cause others
        witnessed.in_flight.append(None)
        self.algorithm.acquired(witnessed)
        self._both.append((client, connection, witnessed))
        return witnessed.name, own.name

    def end(self, number: int) -> None:
        """End the `number`th request, and wait until the witness has released it."""
        client, connection, server = self._both.pop(number)
        connection.sendall(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
        connection.close()
        assert client.recv(65536).startswith(b"HTTP/1.1 204 ")
        client.close()
        self._wait_for_release(len(self._both))
        server.in_flight.pop()
        self.algorithm.released(server)

    def __len__(self) -> int:
        return len(self._both)

    def close(self) -> None:
        for client, connection, _ in self._both:
            client.close()
            connection.close()

    def compare(self) -> None:
        """Compare the choices for sixty requests, of which some end in between."""
        chance = random.Random(self._held.id)
        together: list[tuple[str, str]] = []
        for ask in list(uris(chance))[:60]:
            together.append(self.begin(ask))
            if len(self) > 8 and chance.random() < 0.5:
                self.end(chance.randrange(len(self)))
        assert len({witnessed for witnessed, _ in together}) > 2, "one or two servers for all prove little"
        assert [own for _, own in together] == [witnessed for witnessed, _ in together]


@pytest.mark.parametrize("held", [pytest.param(held, id=held.id) for held in HELD])
def test_haproxy_chooses_as_we_do_while_requests_stay(
    haproxy: HAProxy, until: Callable[[Callable[[], object], str], None], held: Held
) -> None:
    name = f"held{HELD.index(held)}"

    def current() -> int:
        stat = haproxy.command(f"show stat b{name} 4 -1").splitlines()
        column = stat[0].removeprefix("# ").split(",").index("scur")
        return sum(int(line.split(",")[column]) for line in stat[1:] if line)

    def wait_for_release(count: int) -> None:
        until(lambda: current() == count, "HAProxy has let the request go")

    with closing(Flight(held, haproxy.folder / "entrance", name, haproxy.holders, wait_for_release)) as flight:
        flight.compare()


# -- nginx


def single_users(chance: random.Random) -> Iterator[Ask]:
    """Return requests with the header, with an empty one, or without it."""
    for _ in range(KEYS):
        drawn = chance.random()
        headers = () if drawn < 0.1 else (("x-user", "" if drawn < 0.2 else word(chance, 30)),)
        yield Ask(headers=headers)


def request_uri(request: Request) -> str:
    return f"{request.path}?{request.query}" if request.query else request.path


def user(request: Request) -> str | None:
    return next(iter(request.header("x-user")), None)


NGINX = [
    *(
        Row(f"round robin {weights}", (), Smooth(start=0), equal_requests, weights)
        for weights in ((1, 1, 1), (3, 1, 1, 1), (5, 3, 1, 1), (2, 3, 3), (7, 4, 2, 9), (30, 10, 20, 11), WEIGHTS)
    ),
    Row("round robin, two down", (), Smooth(start=0), equal_requests, disabled=(1, 6)),
    Row("ip_hash", ("ip_hash",), IpHash(start=0), addresses),
    Row("ip_hash among equals", ("ip_hash",), IpHash(start=0), addresses, EQUAL),
    Row("ip_hash, two down", ("ip_hash",), IpHash(start=0), addresses, disabled=(3, 6)),
    Row("ip_hash, all but one down", ("ip_hash",), IpHash(start=0), addresses, (1, 1, 1, 1), disabled=(1, 2, 4)),
    Row("hash", ("hash $http_x_user",), NginxHash(user, start=0), single_users),
    Row("hash by URI", ("hash $request_uri",), NginxHash(request_uri, start=0), uris, EQUAL),
    Row("hash, two down", ("hash $http_x_user",), NginxHash(user, start=0), single_users, disabled=(3, 6)),
    Row("hash consistent", ("hash $http_x_user consistent",), NginxHash(user, True, 0), single_users),
    Row("hash consistent by URI", ("hash $request_uri consistent",), NginxHash(request_uri, True, 0), uris, EQUAL),
    Row("hash consistent, two down", ("hash $request_uri consistent",), NginxHash(request_uri, True, 0), uris,
        disabled=(3, 6)),
    Row("least_conn, nobody busy", ("least_conn",), NginxLeastConn(start=0), equal_requests),
]  # fmt: skip
NGINX_HELD = [
    Held("least_conn", ("least_conn",), NginxLeastConn()),
    Held("least_conn by weight", ("least_conn",), NginxLeastConn(), (1, 2, 3, 4)),
]


def nginx_configured(folder: Path, places: Sequence[str], holders: Sequence[socket.socket]) -> str:
    """nginx.conf, with an upstream for each row, and a `server` for each server, which responds with its name."""
    paths = (f"{kind}_temp_path {folder}/{kind}" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    lines = ["daemon off", "master_process off", f"pid {folder}/pid", f"error_log {folder}/output_file"]
    http = ["access_log off", *paths, "real_ip_header X-Src", "set_real_ip_from unix:"]
    servers = [
        f"server {{ listen {place.removeprefix('http://')}; add_header X-Server s{number}; return 204; }}"
        for number, place in enumerate(places, 1)
    ]
    upstreams: list[str] = []
    for number, row in enumerate(NGINX):
        members = [
            f"server {place} weight={weight}{' down' if nth in row.disabled else ''}"
            for nth, (place, weight) in enumerate(zip(places, row.weights, strict=False), 1)
        ]
        upstreams.append(f"upstream row{number} {{ {'; '.join((*row.lines, *members))}; }}")
    for number, held in enumerate(NGINX_HELD):
        members = [
            f"server {holder.getsockname()[0]}:{holder.getsockname()[1]} weight={weight}"
            for holder, weight in zip(holders, held.weights, strict=True)
        ]
        upstreams.append(f"upstream held{number} {{ {'; '.join((*held.lines, *members))}; }}")
    entrance = f"server {{ listen unix:{folder}/entrance; keepalive_requests 100000; "
    entrance += "location / { proxy_pass http://$http_x_row; } }"
    directives = [f"{line};" for line in lines]
    inner = [f"{line};" for line in http]
    return "\n".join((*directives, "events {}", "http {", *inner, *upstreams, *servers, entrance, "}", ""))


@dataclass(frozen=True)
class Nginx:
    """A running nginx."""

    folder: Path
    places: Sequence[str]
    holders: Sequence[socket.socket]

    def chosen(self, row: Row) -> list[str]:
        (asks,) = [step for step in row.steps if not isinstance(step, Pull)]
        return answers(self.folder / "entrance", [ask.sent(x_row=f"row{NGINX.index(row)}") for ask in asks])


@pytest.fixture(scope="module")
def nginx(part: Callable[[str], str], until: Callable[[Callable[[], object], str], None]) -> Iterator[Nginx]:
    program = part("nginx")
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        with ExitStack() as listening:
            # nginx derives its points from the text of the address: an address and a port, or a path
            taken = [
                listening.enter_context(closing(socket.create_server((f"127.0.0.{number}", 0))))
                for number in range(1, SERVERS)
            ]
            places = ["{}:{}".format(*listener.getsockname()) for listener in taken]
        places.append(f"unix:{folder}/s10")
        holders = [stack.enter_context(closing(socket.create_server(("127.0.0.1", 0)))) for _ in range(4)]
        config = folder / "nginx.conf"
        config.write_text(nginx_configured(folder, places, holders))
        process = subprocess.Popen(
            [program, "-c", config, "-p", folder, "-e", folder / "output_file"], stdin=subprocess.DEVNULL
        )
        try:
            until(lambda: process.poll() is not None or answering(folder / "entrance"), "nginx is there")
            assert process.poll() is None, (folder / "output_file").read_text()
            yield Nginx(folder, places, holders)
            assert process.poll() is None, (folder / "output_file").read_text()
        finally:
            process.kill()
            process.wait()


@pytest.mark.parametrize("row", [pytest.param(row, id=row.id) for row in NGINX])
def test_nginx_chooses_as_we_do(nginx: Nginx, row: Row) -> None:
    theirs = nginx.chosen(row)
    if not row.id.endswith("all but one down"):
        assert len(set(theirs)) > 1, "one server for all proves nothing"
    targets = [place if place.startswith("unix:") else f"http://{place}" for place in nginx.places]
    assert differences(row, theirs, in_our_words(row, targets)) == []


@pytest.mark.parametrize("held", [pytest.param(held, id=held.id) for held in NGINX_HELD])
def test_nginx_chooses_as_we_do_while_requests_stay(nginx: Nginx, held: Held) -> None:
    name = f"held{NGINX_HELD.index(held)}"
    with closing(Flight(held, nginx.folder / "entrance", name, nginx.holders)) as flight:
        flight.compare()


def test_every_row_has_a_name_of_its_own() -> None:
    for rows in (HAPROXY, NGINX):
        names = [row.id for row in rows]
        assert sorted(set(names)) == sorted(names)
