"""Imports point downwards: faces to core, and inside the core from backends down to the words of HTTP. `layers` lists
the floors; the imports themselves are read, those for types included.
"""

import ast
import importlib
import subprocess
import sys
from collections import defaultdict

import pytest

from tests.architecture.figures import FLOOR_OF
from tests.architecture.imports import (
    FACES,
    OURS,
    PACKAGES,
    ROOT,
    Import,
    circles,
    import_graph,
    imports_of,
    modules_of,
    part_of,
    parts_of,
    read_imports,
)
from tests.architecture.layers import ONLY_IN_ASGI, ONLY_IN_WSGI

# The core has no I/O, no event loop, no thread of its own. It imports one third party, which only computes.
# (`threading` is not among these: a lock makes a decision safe to share. Another test looks for threads.)
NOT_IN_CORE = {"asyncio", "concurrent", "multiprocessing", "select", "selectors", "signal", "socket", "ssl"}
THIRD_PARTIES_IN_CORE = {"itsdangerous"}

# A context for TLS is a value made of files, which both faces need; sockets are wrapped in it elsewhere.
IMPORTS_SSL = "sticky_core.http.tls"

# The fixture that makes clusters of either face imports both, when a test asks it to, and pytest.
IMPORTS_FACES = "sticky_core.pytest_plugin"


def listed(imports: list[Import]) -> str:
    return "\n".join(map(str, imports))


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
    seen = {each.target: each.at_import for each in read_imports(source, "package.folder.module")}
    assert seen == {
        "typing": True,
        "a.b": True,
        "c": True,
        "package": True,  # from .. import beside
        "package.folder": True,  # from . import inner
        "e": False,
        "g": True,
        "h": False,
        "i": True,
    }


def test_circles_are_found():
    graph = {"a": {"b"}, "b": {"c", "d"}, "c": {"a"}, "d": {"e"}, "e": set[str]()}
    assert circles(graph) == [["a", "b", "c"]]


def test_the_packages_have_modules():
    """An empty reading would let every test below pass."""
    assert [package for package in PACKAGES if not modules_of(package)] == []


def test_every_part_of_the_core_has_a_floor_and_every_floor_lists_only_what_exists():
    assert parts_of("sticky_core") == set(FLOOR_OF)


def test_no_module_of_the_core_imports_the_package_itself():
    whole = [each for each in imports_of("sticky_core") if each.target == "sticky_core"]
    assert not whole, listed(whole)


@pytest.mark.parametrize("package", PACKAGES)
def test_no_modules_import_each_other_in_a_circle(package):
    """Imports for types are imports too: a circle of knowledge is one however it is loaded."""
    assert circles(import_graph(imports_of(package))) == []


@pytest.mark.parametrize("face", FACES)
def test_no_parts_of_a_face_import_each_other_in_a_circle(face):
    graph: defaultdict[str, set[str]] = defaultdict(set)
    for each in imports_of(face):
        if each.target in OURS and each.target.startswith(f"{face}.") and part_of(each.module) != part_of(each.target):
            graph[part_of(each.module)].add(part_of(each.target))
    assert circles(graph) == []


def test_the_core_imports_no_face_no_event_loop_and_no_socket():
    foreign = [
        each
        for each in imports_of("sticky_core")
        if each.module != IMPORTS_FACES
        if (each.module, each.target) != (IMPORTS_SSL, "ssl")
        if (root := each.target.split(".")[0]) in NOT_IN_CORE | set(FACES)
        or not (root in sys.stdlib_module_names or root == "sticky_core" or root in THIRD_PARTIES_IN_CORE)
    ]
    assert not foreign, listed(foreign)


def test_the_core_starts_no_thread():
    """To import `threading` is allowed: the counters ask whether the thread that counted is still alive."""
    started = [
        f"{module}:{node.lineno} {ast.unparse(node.func)}"
        for module, file in modules_of("sticky_core").items()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).split(".")[-1] in ("Thread", "Timer", "start_new_thread")
    ]
    assert not started, "\n".join(started)


def test_only_the_clock_imports_time():
    importing = {each.module for each in imports_of("sticky_core") if each.target.split(".")[0] == "time"}
    assert importing <= {"sticky_core.clock"}


@pytest.mark.parametrize(("face", "other"), [FACES, FACES[::-1]])
def test_a_face_does_not_import_the_other(face, other):
    across = [each for each in imports_of(face) if each.target.split(".")[0] == other]
    assert not across, listed(across)


@pytest.mark.parametrize("package", PACKAGES)
def test_import_isolation(package):
    """Source tells what we import, this what comes along; in a new process, since here all are long loaded."""
    unwanted = {
        "sticky_core": {"anyio", "starlette", "werkzeug", *FACES},
        "sticky_asgi": {"werkzeug", "sticky_wsgi"},
        "sticky_wsgi": {"anyio", "starlette", "sticky_asgi"},
    }[package]
    loaded = f"import sys, {package}; print(*sorted(set(sys.modules) & {unwanted!r}))"
    alone = subprocess.run([sys.executable, "-c", loaded], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    assert alone.stdout.split() == []


def files_of(face: str) -> set[str]:
    files = (file.relative_to(ROOT / face) for file in (ROOT / face).rglob("*.py"))
    return {file.with_suffix("").as_posix() for file in files}


def test_faces_have_the_same_files():
    assert files_of("sticky_asgi") - files_of("sticky_wsgi") == ONLY_IN_ASGI
    assert files_of("sticky_wsgi") - files_of("sticky_asgi") == ONLY_IN_WSGI


def test_faces_export_the_same_names():
    asgi, wsgi = (importlib.import_module(face) for face in FACES)
    assert sorted(asgi.__all__) == sorted(wsgi.__all__)
    assert [name for name in asgi.__all__ if not (hasattr(asgi, name) and hasattr(wsgi, name))] == []
