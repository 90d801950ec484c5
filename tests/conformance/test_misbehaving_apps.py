"""Apps that break ASGI, under real servers: handed over to another worker, the client gets what it gets without
StickyWorkers, and the server logs as many errors.
"""

import json
import tempfile

import pytest

from tests.conformance.servers import start

SERVERS = {
    "uvicorn": ("uvicorn --no-access-log misbehaving_asgi:app", "Exception in ASGI application"),
    "hypercorn": ("hypercorn misbehaving_asgi:app", "Error in ASGI Framework"),
    "granian": ("granian misbehaving_asgi:app", "Application callable raised an exception"),
}
PATHS = [
    "/after-the-end",
    "/after-the-end:caught",
    "/head-after-the-end:caught",
    "/two-heads",
    "/two-heads:caught",
    "/no-head",
    "/nothing",
    "/unknown-key",
    "/raises-after-the-end",
    "/raises",
]


@pytest.fixture
def served(launch):
    """Starts a server by its name in SERVERS."""
    with tempfile.TemporaryDirectory(prefix="sticky-") as folder:
        group = {"name": "group", "directory": f"{folder}/run"}

        def served(name, sticky):
            options = json.dumps(group if sticky else None)
            return start(lambda: launch(*SERVERS[name][0].split(), variables={"STICKY": options}))

        yield served


def open_as(client, server, path):
    """Send a request with the cookies of `client` to `server`."""
    sender = server.client()
    sender.jar = client.jar
    return sender.open(path)


@pytest.mark.parametrize("name", SERVERS)
def test_client_and_log_get_what_they_get_without_sticky_workers(served, until, name):
    plain, one, other = served(name, False), served(name, True), served(name, True)
    client = one.client()
    client.request("/")
    seen = []
    for server in (plain, one, other):
        responses = []
        for path in PATHS:
            received = open_as(client, server, path).read_all()
            responses.append((path, received[9:12], received.endswith((b"ok", b"\r\nok\r\n0\r\n\r\n"))))
        open_as(client, server, "/marker").read_all()
        until(lambda server=server: "the last request" in server.output, "the log of the last request")
        seen.append((responses, server.output.count(SERVERS[name][1])))
    assert seen[1] == seen[0]
    assert seen[2] == seen[0]
