"""What one line of each face loads. Every worker process pays for it with time and memory: import what only some users
need where it begins to work, or change the list here and say in the commit why every worker needs the module.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.architecture.imports import ROOT

_CODE = """
import json, sys
exec(sys.argv[1])
before = set(sys.modules)
exec(sys.argv[2])
print(json.dumps(sorted(set(sys.modules) - before)))
"""

#: What a line loads of others, beside what the framework has loaded. itsdangerous signs cookies.
ASGI_OTHERS = {
    *("anyio._core._typedattr", "anyio.lowlevel"),
    *("anyio.abc._resources", "anyio.abc._streams", "anyio.abc._tasks"),
    *("importlib._abc", "importlib.util"),
    *("itsdangerous", "itsdangerous._json", "itsdangerous.encoding", "itsdangerous.exc", "itsdangerous.serializer"),
    *("itsdangerous.signer", "itsdangerous.timed", "itsdangerous.url_safe"),
}
WSGI_OTHERS = {"_posixsubprocess", "_queue", "fcntl", "multiprocessing.util", "queue", "shlex", "subprocess"}

#: each line, with how many of our modules it loads at most; lower the number when they become fewer
LINES = [
    pytest.param(
        "import uvicorn, starlette.applications",
        "from sticky_asgi import StickyWorkers",
        197,
        ASGI_OTHERS,
        id="StickyWorkers beside uvicorn and Starlette",
    ),
    pytest.param(
        "import uvicorn, starlette.applications",
        "from sticky_asgi import Backend, Server, StickyMiddleware",
        164,
        ASGI_OTHERS,
        id="StickyMiddleware beside uvicorn and Starlette",
    ),
    pytest.param(
        "import flask, multiprocessing",
        "from sticky_wsgi import StickyWorkers",
        196,
        WSGI_OTHERS,
        id="StickyWorkers beside Flask",
    ),
]

#: our modules that only some users need
OPTIONAL = {
    "sticky_asgi.cli",
    "sticky_asgi.demo",
    "sticky_asgi.stores.redis",
    "sticky_asgi.testing",
    "sticky_asgi.upstream.app",
    "sticky_asgi.upstream.websockets",
    "sticky_core.backend.plan",
    "sticky_core.balance.ewma",
    "sticky_core.balance.hashing",
    "sticky_core.balance.leastconn",
    "sticky_core.balance.nginx",
    "sticky_core.balance.random",
    "sticky_core.persistence.aws",
    "sticky_core.persistence.foreign",
    "sticky_core.persistence.nginx",
    "sticky_core.persistence.token",
    "sticky_core.pytest_plugin",
    "sticky_core.stores.redis",
    "sticky_core.testing",
    "sticky_core.workers.report",
    "sticky_core.workers.survey",
    "sticky_wsgi.stores.redis",
    "sticky_wsgi.testing",
    "sticky_wsgi.upstream.app",
}


def loaded_by(line: str, framework: str) -> set[str]:
    """Return the modules that `line` loads where `framework` is loaded."""
    run = subprocess.run(
        [sys.executable, "-c", _CODE, framework, line], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(json.loads(run.stdout))


@pytest.mark.parametrize("framework, line, ours, others", LINES)
def test_line_loads_what_is_listed(framework: str, line: str, ours: int, others: set[str]) -> None:
    found = loaded_by(line, framework)
    own = {module for module in found if module.startswith("sticky_")}
    assert sorted(own & OPTIONAL) == []
    assert sorted(found - own - others) == []  # fewer is good, and differs between versions of Python and anyio
    assert len(own) <= ours, f"{len(own)} modules instead of {ours}:\n" + "\n".join(sorted(own))


def test_app_that_does_not_use_starlette_gets_none_of_its_requests_and_forms() -> None:
    found = loaded_by("from sticky_asgi import Backend, Server, StickyMiddleware, StickyWorkers", "import uvicorn")
    assert sorted(module for module in found if module.startswith(("starlette.", "python_multipart"))) == [
        "starlette.types"
    ]
