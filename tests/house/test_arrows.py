"""Arrows run one way: faces → core, and inside the core from the doors down to the words. A picture of the
house is worth what holds it: here the imports themselves are read.

Each room of `sticky_core` has its place in `LAYERS`. It may know the rooms below it and those beside it,
never one above; an import for types only is knowing too. No modules wait for each other at import.
"""

import ast
import graphlib
import importlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FACES = ("sticky_asgi", "sticky_wsgi")
PACKAGES = ("sticky_core", *FACES)

# From the top down. A subpackage is one room: `balance` is all of sticky_core/balance/.
LAYERS = (
    {"testing", "pytest_plugin"},
    {"admin", "config", "frontend", "log", "stats", "workers"},
    {"discovery", "replicas", "transaction"},
    {"backend", "change", "in_force", "plan"},
    {"backend_config", "balance", "claim", "decision", "forwarding", "http1", "persistence", "probe"}
    | {"doors", "queue", "server", "stick_table", "upstream"},
    {
        "agent_check",
        "allocator",
        "check",
        "cookies",
        "counters",
        "entries",
        "events",
        "expect",
        "frames",
        "life",
        "nameservers",
        "page",
        "pool",
        "proxies",
        "res",
        "resolvers",
        "retries",
        "samples",
        "signing",
        "slots",
    }
    | {"timeouts", "tls"},
    {"clock", "durations", "errors", "fork", "recent", "request", "stores", "target", "xxh64"},
)
HEIGHT = {room: height for height, layer in enumerate(reversed(LAYERS)) for room in layer}

# The core has no I/O, no event loop, no thread of its own. It knows one third party, which only computes.
# (`threading` is not among these: a lock makes a decision safe to share. Another test looks for threads.)
NOT_IN_CORE = {"asyncio", "concurrent", "multiprocessing", "select", "selectors", "signal", "socket", "ssl"}
THIRD_PARTIES_IN_CORE = {"itsdangerous"}

# A context for TLS is a value made of files, which both faces need; sockets are wrapped in it elsewhere.
KNOWS_SSL = "sticky_core.tls"

# Rooms that only one face has: a command and what it shows need one server, and uvicorn is it; WSGI has no WebSockets,
# no event loop that owns what runs beside requests, and no word for a client that has left.
ONLY_ONE = {"cli", "demo", "websockets", "running", "clients"}


# The fixture that makes clusters of either face looks at both, when a test asks it to, and at pytest.
LOOKS_AT_ALL = "sticky_core.pytest_plugin"


@dataclass(frozen=True)
class Arrow:
    room: str  # the module that imports, dotted
    target: str  # what it imports: one of our modules, or the dotted name as written
    line: int
    at_import: bool  # not inside a function, not for types only

    def __str__(self) -> str:
        return f"{self.room}:{self.line} imports {self.target}"


def modules_of(package: str) -> dict[str, Path]:
    files = sorted((ROOT / package).rglob("*.py"))
    return {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


OURS = {name: file for package in PACKAGES for name, file in modules_of(package).items()}


def read(source: str, room: str, is_package: bool = False) -> Iterator[Arrow]:
    """Every import in `source`: at the top, in a function, under TYPE_CHECKING, relative or not."""

    def walk(node: ast.AST, at_import: bool) -> Iterator[Arrow]:
        match node:
            case ast.Import(names=names):
                for name in names:
                    yield Arrow(room, name.name, node.lineno, at_import)
            case ast.ImportFrom(module=module, names=names, level=level):
                here = room.split(".") if is_package else room.split(".")[:-1]
                above = here[: len(here) - level + 1] if level else []
                origin = ".".join([*above, *([module] if module else [])])
                # `from sticky_core import cookies` means the module, not the porch.
                targets = {full if (full := f"{origin}.{name.name}") in OURS else origin for name in names}
                for target in sorted(targets):
                    yield Arrow(room, target, node.lineno, at_import)
            case ast.If(test=ast.Name("TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")):
                for typed in node.body:
                    yield from walk(typed, False)
                for untyped in node.orelse:
                    yield from walk(untyped, at_import)
            case _:
                inside = not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                for child in ast.iter_child_nodes(node):
                    yield from walk(child, at_import and inside)

    yield from walk(ast.parse(source), True)


def arrows(*packages: str) -> Iterator[Arrow]:
    for package in packages:
        for room, file in modules_of(package).items():
            yield from read(file.read_text(encoding="utf-8"), room, is_package=file.name == "__init__.py")


def room_of(module: str) -> str:
    """`sticky_core.balance.hashing` is in the room `balance`; `sticky_core` itself, the porch, is in none."""
    return module.split(".")[1] if "." in module else ""


def told(arrows: list[Arrow]) -> str:
    return "\n".join(map(str, arrows))


def test_every_import_is_read():
    source = """
from typing import TYPE_CHECKING
import a.b, c as d
from .. import beside
from . import inner
if TYPE_CHECKING:
    from e import f
else:
    import g
def later():
    import h
try:
    import i
except ImportError:
    pass
"""
    seen = {arrow.target: arrow.at_import for arrow in read(source, "house.wing.room")}
    assert seen == {
        "typing": True,
        "a.b": True,
        "c": True,
        "house": True,  # from .. import beside
        "house.wing": True,  # from . import inner
        "e": False,
        "g": True,
        "h": False,
        "i": True,
    }


def test_there_is_a_house():
    """An empty reading would let every test below pass."""
    assert [package for package in PACKAGES if not modules_of(package)] == []


def test_every_room_of_the_core_has_its_place():
    rooms = {room_of(module) for module in modules_of("sticky_core")} - {""}
    homeless = sorted(rooms - set(HEIGHT))
    assert not homeless, f"give {', '.join(homeless)} a place in LAYERS: which rooms may know it, which does it know?"


def test_no_room_of_the_core_knows_one_above_it():
    upwards = [
        arrow
        for arrow in arrows("sticky_core")
        if arrow.target in OURS and (above := room_of(arrow.target)) and (below := room_of(arrow.room))
        if HEIGHT.get(above, 0) > HEIGHT.get(below, 0)
    ]
    assert not upwards, told(upwards)


def test_no_room_of_the_core_comes_in_by_the_porch():
    """`sticky_core/__init__.py` shows the rooms to those outside: it looks at all, so none may look at it."""
    porch = [arrow for arrow in arrows("sticky_core") if arrow.target == "sticky_core"]
    assert not porch, told(porch)


@pytest.mark.parametrize("package", PACKAGES)
def test_no_rooms_wait_for_each_other_at_import(package):
    waits = graphlib.TopologicalSorter[str]()
    for arrow in arrows(package):
        if arrow.at_import and arrow.target in OURS and arrow.target != arrow.room:
            waits.add(arrow.room, arrow.target)
    waits.prepare()


def test_the_core_knows_no_face_no_event_loop_and_no_socket():
    strangers = [
        arrow
        for arrow in arrows("sticky_core")
        if arrow.room != LOOKS_AT_ALL
        if (arrow.room, arrow.target) != (KNOWS_SSL, "ssl")
        if (root := arrow.target.split(".")[0]) in NOT_IN_CORE | set(FACES)
        or not (root in sys.stdlib_module_names or root == "sticky_core" or root in THIRD_PARTIES_IN_CORE)
    ]
    assert not strangers, told(strangers)


def test_the_core_starts_no_thread():
    """Knowing one is no sin: the counters ask whether the thread that counted is still alive."""
    started = [
        f"{module}:{node.lineno} {ast.unparse(node.func)}"
        for module, file in modules_of("sticky_core").items()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).split(".")[-1] in ("Thread", "Timer", "start_new_thread")
    ]
    assert not started, "\n".join(started)


def test_only_the_clock_knows_the_time():
    knowing = {arrow.room for arrow in arrows("sticky_core") if arrow.target.split(".")[0] == "time"}
    assert knowing <= {"sticky_core.clock"}


@pytest.mark.parametrize(("face", "other"), [FACES, FACES[::-1]])
def test_a_face_does_not_know_the_other(face, other):
    across = [arrow for arrow in arrows(face) if arrow.target.split(".")[0] == other]
    assert not across, told(across)


@pytest.mark.parametrize("package", PACKAGES)
def test_import_isolation(package):
    """Arrows tell what we import, this what comes along; in a new process, since here all are long loaded."""
    strangers = {
        "sticky_core": {"anyio", "starlette", "werkzeug", *FACES},
        "sticky_asgi": {"werkzeug", "sticky_wsgi"},
        "sticky_wsgi": {"anyio", "starlette", "sticky_asgi"},
    }[package]
    loaded = f"import sys, {package}; print(*sorted(set(sys.modules) & {strangers!r}))"
    alone = subprocess.run([sys.executable, "-c", loaded], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    assert alone.stdout.split() == []


def test_faces_have_the_same_rooms():
    def rooms(face: str) -> set[Path]:
        files = (file.relative_to(ROOT / face) for file in (ROOT / face).rglob("*") if file.is_file())
        return {
            file for file in files if "__pycache__" not in file.parts and file.parts[0].split(".")[0] not in ONLY_ONE
        }

    assert rooms("sticky_asgi") ^ rooms("sticky_wsgi") == set()


def test_faces_have_the_same_words():
    asgi, wsgi = (importlib.import_module(face) for face in FACES)
    assert sorted(asgi.__all__) == sorted(wsgi.__all__)
    assert [word for word in asgi.__all__ if not (hasattr(asgi, word) and hasattr(wsgi, word))] == []
