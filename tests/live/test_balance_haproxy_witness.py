"""Balance algorithms compared with HAProxy: the same servers and requests, in order, must come to the same choices.

HAProxy is also its own servers, over UNIX sockets, and requests are sent many at a time. Where a keyword is newer than
the HAProxy that is installed, the choices are compared with a recorded checksum.
"""

import socket
import subprocess
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from sticky_core.balance import (
    First,
    Hash,
    Hdr,
    LeastConn,
    RoundRobin,
    Source,
    StaticRR,
    Uri,
    UrlParam,
)
from sticky_core.balance.algorithm import Balance
from sticky_core.balance.hashing import HashKey
from sticky_core.samples import request as samples
from tests.live.balance_rows import (
    DEADLINE,
    EQUAL,
    SERVERS,
    WEIGHTS,
    Change,
    HeldRequests,
    HeldRow,
    Row,
    accepts_connections,
    addresses,
    chosen_servers,
    differences,
    few,
    hosts,
    many,
    numbers,
    params,
    servers_of_responses,
    uris,
    users,
)

pytestmark = pytest.mark.live

FUNCTIONS = ("sdbm", "djb2", "wt6", "crc32")


def hash_types() -> Iterator[str]:
    yield "consistent"
    for method in ("map-based", "consistent"):
        for function in FUNCTIONS:
            yield f"{method} {function}"
            yield f"{method} {function} avalanche"


def rows_by_hash_type(
    text: str, balance: Callable[..., Balance], requests: Any, *types: str, **row: Any
) -> Iterator[Row]:
    """Return a row for each of the hash types, the default among them."""
    for hash_type in ("map-based", *types):
        lines = (f"balance {text}", f"hash-type {hash_type}")
        yield Row(f"{text}, {hash_type}", lines, balance(hash_type=hash_type, start=0), requests, **row)


STATE_CHANGES = (
    Change("s6", state="maint"),
    Change("s2", state="drain"),
    Change("s6", state="ready"),
    Change("s2", state="ready"),
)
WEIGHT_CHANGES = (Change("s6", weight=4), Change("s6", weight=0), Change("s4", weight=9), Change("s6", weight=10))

HASH_KEYS: tuple[tuple[HashKey, int], ...] = (
    ("id", 3255924102),
    ("id32", 3409414966),
    ("addr", 3495214144),
    ("addr-port", 3738033484),
)

HAPROXY = [
    *rows_by_hash_type("uri", Uri, uris, *hash_types()),
    *rows_by_hash_type("uri whole", lambda **more: Uri(whole=True, **more), uris, "consistent"),
    *rows_by_hash_type("uri len 9", lambda **more: Uri(len=9, **more), uris),
    *rows_by_hash_type("uri depth 2", lambda **more: Uri(depth=2, **more), uris),
    *rows_by_hash_type("uri whole depth 3 len 20", lambda **more: Uri(whole=True, depth=3, len=20, **more), uris),
    *rows_by_hash_type("uri path-only", lambda **more: Uri(path_only=True, **more), uris),
    *rows_by_hash_type("source", Source, addresses, "map-based sdbm avalanche", "consistent", "consistent sdbm"),
    *rows_by_hash_type("url_param user", lambda **more: UrlParam("user", **more), params, "consistent"),
    *rows_by_hash_type("hdr(x-user)", lambda **more: Hdr("X-User", **more), users, "consistent", "map-based wt6"),
    *rows_by_hash_type(
        "hdr(x-host) use_domain_only", lambda **more: Hdr("x-host", use_domain_only=True, **more), hosts
    ),
    *rows_by_hash_type("hash src", lambda **more: Hash(samples.src, **more), addresses, "consistent"),
    *rows_by_hash_type("hash path", lambda **more: Hash(samples.path, **more), uris),
    *rows_by_hash_type("hash req.hdr(x-user)", lambda **more: Hash(samples.hdr("x-user"), **more), users),
    *rows_by_hash_type("hash req.hdr(x-user,1)", lambda **more: Hash(samples.hdr("x-user", 1), **more), users),
    *rows_by_hash_type("hash url_param(user)", lambda **more: Hash(samples.url_param("user"), **more), params),
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
    Row("a map while servers go and come", ("balance uri",), Uri(), uris, changes=STATE_CHANGES),
    Row(
        "a ring while servers go and come",
        ("balance uri", "hash-type consistent djb2 avalanche"),
        Uri(hash_type="consistent djb2 avalanche"),
        uris,
        changes=STATE_CHANGES,
    ),
    Row(
        "a ring while weights change",
        ("balance uri", "hash-type consistent"),
        Uri(hash_type="consistent"),
        uris,
        changes=WEIGHT_CHANGES,
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
        Row(f"static-rr {weights}", ("balance static-rr",), StaticRR(start=0), many, weights)
        for weights in ((1, 1, 1), (3, 1, 2), (5, 5, 3), (7, 4, 2, 9), (2, 3, 3), (30, 10, 20, 11), WEIGHTS)
    ),
    *(
        Row(f"roundrobin {weights}", ("balance roundrobin",), RoundRobin(start=0), many, weights)
        for weights in ((7, 4, 2, 9), (30, 10, 20, 11), WEIGHTS)
    ),
    *(
        Row(
            f"roundrobin {weights} while {what}, {requests.__name__} requests",
            ("balance roundrobin",),
            RoundRobin(start=0),
            requests,
            weights,
            changes=changes,
        )
        for weights in (WEIGHTS, EQUAL, (7, 4, 2, 9, 1, 1))
        for what, changes in (("servers go and come", STATE_CHANGES), ("weights change", WEIGHT_CHANGES))
        for requests in (many, few)  # long after the start, and before each server was chosen once
    ),
    Row("static-rr while servers go and come", ("balance static-rr",), StaticRR(start=0), many, changes=STATE_CHANGES),
]


def balance_factor(percent: int) -> tuple[tuple[str, ...], Balance]:
    lines = ("balance uri", "hash-type consistent", f"hash-balance-factor {percent}")
    return lines, Uri(hash_type="consistent", hash_balance_factor=percent)


HELD_ROWS = [
    HeldRow("leastconn", ("balance leastconn",), LeastConn()),
    HeldRow("leastconn by weight", ("balance leastconn",), LeastConn(), (1, 2, 3, 4)),
    HeldRow("first", ("balance first",), First(), maxconn=12),
    HeldRow("hash-balance-factor 110", *balance_factor(110)),
    HeldRow("hash-balance-factor 150", *balance_factor(150)),
    HeldRow("hash-balance-factor 130 by weight", *balance_factor(130), (1, 2, 3, 4)),
]


def haproxy_config(
    rows: Sequence[Row], folder: Path, listeners: Sequence[socket.socket], holding_sockets: Sequence[socket.socket] = ()
) -> str:
    """Return haproxy.cfg, with a backend for each row, and a frontend for each server, which names itself."""
    lines = [
        "global",
        "  nbthread 1",
        f"  stats socket {folder}/admin mode 600 level admin",
        "defaults",
        "  mode http",
        *(f"  timeout {what} {DEADLINE:.0f}s" for what in ("client", "server", "queue", "connect")),
        "frontend http_socket",
        f"  bind unix@{folder}/http_socket",
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
    for number, held in enumerate(HELD_ROWS if holding_sockets else ()):
        lines += [f"backend bheld{number}", "  http-reuse never", *(f"  {line}" for line in held.lines)]
        for nth, (holding_socket, weight) in enumerate(zip(holding_sockets, held.weights, strict=True), 1):
            host, port = holding_socket.getsockname()
            lines.append(f"  server s{nth} {host}:{port} weight {weight} maxconn {held.maxconn}")
    return "\n".join((*lines, ""))


class HAProxy:
    """A running HAProxy."""

    def __init__(
        self, folder: Path, supported: Sequence[Row], targets: Sequence[str], holding_sockets: Sequence[socket.socket]
    ) -> None:
        self.supported = supported
        self.targets = targets
        self.holding_sockets = holding_sockets
        self.folder = folder

    def command(self, text: str) -> str:
        with closing(socket.socket(socket.AF_UNIX)) as connection:
            connection.settimeout(DEADLINE)
            connection.connect(str(self.folder / "admin"))
            connection.sendall(text.encode() + b"\n")
            return b"".join(iter(lambda: connection.recv(65536), b"")).decode()

    def servers(self, row: Row) -> list[str]:
        number = self.supported.index(row)
        found: list[str] = []
        for step in row.steps:
            if isinstance(step, Change):
                what = f"state {step.state}" if step.state is not None else f"weight {step.weight}"
                assert self.command(f"set server b{number}/{step.server} {what}").strip() == ""
            else:
                found += servers_of_responses(self.folder / "http_socket", [each.encode(x_row=number) for each in step])
        return found


@pytest.fixture(scope="module")
def haproxy(part: Callable[[str], str], until: Callable[[Callable[[], object], str], None]) -> Iterator[HAProxy]:
    program = part("haproxy")
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        # each with an address of its own, which some algorithms hash
        listeners = [
            stack.enter_context(closing(socket.create_server((f"127.0.0.{number}", 0)))) for number in range(1, 11)
        ]
        holding_sockets = [stack.enter_context(closing(socket.create_server(("127.0.0.1", 0)))) for _ in range(4)]
        descriptors = [listener.fileno() for listener in listeners]
        config = folder / "haproxy.cfg"

        def is_supported(row: Row) -> bool:
            config.write_text(haproxy_config([row], folder, listeners))
            checked = subprocess.run([program, "-c", "-q", "-f", config], capture_output=True, pass_fds=descriptors)
            return checked.returncode == 0

        supported = [row for row in HAPROXY if row.recorded is None or is_supported(row)]
        config.write_text(haproxy_config(supported, folder, listeners, holding_sockets))
        log = folder / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [program, "-db", "-q", "-f", config],
                pass_fds=descriptors, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip
        try:
            until(
                lambda: process.poll() is not None or accepts_connections(folder / "http_socket"),
                "HAProxy accepts connections",
            )
            assert process.poll() is None, log.read_text()
            targets = [f"http://{host}:{port}" for host, port in (each.getsockname() for each in listeners)]
            yield HAProxy(folder, supported, targets, holding_sockets)
            assert process.poll() is None, log.read_text()
        finally:
            process.kill()
            process.wait()


@pytest.mark.parametrize("row", [pytest.param(row, id=row.id) for row in HAPROXY])
def test_haproxy_chooses_the_same_servers(haproxy: HAProxy, row: Row) -> None:
    if row.recorded is not None:
        fixed_targets = [f"http://127.0.0.{number}:8000" for number in range(1, SERVERS + 1)]
        assert zlib.crc32(" ".join(chosen_servers(row, fixed_targets)).encode()) == row.recorded
        if row not in haproxy.supported:
            return
    theirs = haproxy.servers(row)
    assert len(set(theirs)) > 1, "one server for all requests proves nothing"
    assert differences(row, theirs, chosen_servers(row, haproxy.targets)) == []


@pytest.mark.parametrize("held", [pytest.param(held, id=held.id) for held in HELD_ROWS])
def test_haproxy_chooses_the_same_servers_while_requests_stay_in_flight(
    haproxy: HAProxy, until: Callable[[Callable[[], object], str], None], held: HeldRow
) -> None:
    name = f"held{HELD_ROWS.index(held)}"

    def current() -> int:
        stat = haproxy.command(f"show stat b{name} 4 -1").splitlines()
        column = stat[0].removeprefix("# ").split(",").index("scur")
        return sum(int(line.split(",")[column]) for line in stat[1:] if line)

    def wait_until_released(count: int) -> None:
        until(lambda: current() == count, "HAProxy has released the request")

    with closing(
        HeldRequests(held, haproxy.folder / "http_socket", name, haproxy.holding_sockets, wait_until_released)
    ) as flight:
        flight.compare()


def test_ids_of_rows_are_unique() -> None:
    ids = [row.id for row in HAPROXY]
    assert sorted(set(ids)) == sorted(ids)
