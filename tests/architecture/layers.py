"""The floors of the packages, lowest first. A part imports parts on lower floors only, and none on its own."""

from __future__ import annotations

CORE: tuple[frozenset[str], ...] = (
    frozenset({"cache", "clock", "deferred", "durations", "errors", "fork"}),
    frozenset({"options"}),
    frozenset({"dns", "health", "stores", "target"}),
    frozenset({"http"}),
    frozenset({"samples", "server"}),
    frozenset({"balance", "stick_table", "upstream"}),
    frozenset({"persistence"}),
    frozenset({"decision"}),
    frozenset({"backend"}),
    frozenset({"routing", "runtime", "testing", "transaction"}),
    frozenset({"workers"}),
    frozenset({"exports", "pytest_plugin"}),
)

# A command, what it shows, and WebSockets need ASGI.
ONLY_IN_ASGI = {
    "cli",
    "demo",
    "lifespan",
    "open_websocket",
    "upstream/flow_control",
    "upstream/sweep",
    "upstream/websockets",
    "background/task",
    "workers/order",
}

# The threads of checks; what gunicorn's workers and libraries that patch threads do to WSGI apps only.
ONLY_IN_WSGI = {
    "background/threads",
    "gunicorn",
    "workers/gunicorn",
    "workers/patching",
}
