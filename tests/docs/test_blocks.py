"""What the documentation shows is run: Python blocks all but the fragments, blocks of a shell where they are marked."""

from __future__ import annotations

import ast
import asyncio
import inspect
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import trustme

from tests.docs import preludes
from tests.docs.blocks import ALL, LANGUAGES, PAGES, ROOT, Block, chains

#: How many blocks of Python are not run. A new fragment is counted here, with its reason in the page.
FRAGMENTS = 0

#: Seconds for a block of a shell: for hangs only.
HANG = 1800.0

#: A block that contains this is run a second time with `sticky_wsgi` in place of `sticky_asgi`.
BOTH_FACES = "from sticky_wsgi: the same names"

CHAINS = [
    pytest.param(chain, face, id=f"{chain[0]}, {face}")
    for chain in chains()
    for face in ("asgi", "wsgi")
    if face == ("wsgi" if "sticky_wsgi import" in chain[0].code else "asgi") or BOTH_FACES in chain[0].code
]


@pytest.fixture(autouse=True)
def nothing_leaves_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse connections and look-ups, which no block needs."""

    def refuse(*args: object, **_: object) -> None:
        raise AssertionError(f"a block of the documentation uses the network: {args!r}")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="session")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ca: trustme.CA) -> None:
    """What the blocks find: a secret, and in the current directory `ca.pem`."""
    monkeypatch.setenv("STICKY_SECRET", preludes.SECRET)
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("chain, face", CHAINS)
def test_block_runs(
    chain: list[Block], face: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("documentation")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # dataclasses look their module up
    namespace = vars(module)
    namespace.update(getattr(preludes, face)())

    async def run() -> None:
        for block in chain:
            source = block.code.replace("sticky_asgi", "sticky_wsgi") if face == "wsgi" else block.code
            # Empty lines before it, so that a traceback has the page's line.
            code = compile("\n" * (block.line - 1) + source, str(block.page), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            running = eval(code, namespace)
            if inspect.iscoroutine(running):
                await running

    asyncio.run(run())
    for name, test in list(namespace.items()):
        if name.startswith("test_"):
            call_test(test, request)


def call_test(test: Callable[..., object], request: pytest.FixtureRequest) -> None:
    """Call a test that a block defines, with the fixtures that it names."""
    test(**{name: request.getfixturevalue(name) for name in inspect.signature(test).parameters})


@pytest.mark.parametrize("block", [pytest.param(block, id=str(block)) for block in ALL if block.mark == "run"])
def test_shell_block_runs(block: Block) -> None:
    assert block.language == "sh"
    scripts = os.path.dirname(sys.executable)
    ran = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.code],
        cwd=ROOT,
        env=os.environ | {"PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=HANG,
    )
    assert ran.returncode == 0, ran.stdout


def test_there_are_blocks() -> None:
    """An empty reading would let every test above pass."""
    assert len(CHAINS) > 20


def test_every_block_names_a_language_that_is_known() -> None:
    assert [(str(block), block.language) for block in ALL if block.language not in LANGUAGES] == []


def test_every_fragment_gives_its_reason_and_is_counted() -> None:
    fragments = [block for block in ALL if block.mark == "fragment"]
    assert [str(block) for block in fragments if not block.reason] == []
    assert len([block for block in fragments if block.language == "python"]) == FRAGMENTS, list(map(str, fragments))


@pytest.mark.parametrize("page", [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES])
def test_every_fence_of_a_page_is_read(page: Path) -> None:
    """A fence that is indented or closed in another way would be left out silently."""
    opened = [line for line in page.read_text(encoding="utf-8").splitlines() if line.lstrip().startswith("```")]
    assert len(opened) == 2 * len([block for block in ALL if block.page == page])
