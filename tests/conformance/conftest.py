"""Fixtures of the conformance tests: servers as processes, clients that show every byte, and upstreams that a test
controls.
"""

import gc
import json
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import anyio
import pytest
import trustme

from tests.conformance.origins import Origin, bound, tls_context
from tests.conformance.servers import KINDS, ROOT, ServerProcess, command_of, free_port, start, until, wait_until_stable
from tests.conformance.wire import DEADLINE, HOST, SiteClient


@pytest.fixture(scope="session", autouse=True)
def _accept_sigint() -> Iterator[None]:
    """Shells start background jobs with SIGINT ignored, which processes inherit: waitress would not end."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def no_open_resources() -> Iterator[None]:
    """Collect garbage after the test: what was left open, such as a socket or a task, warns then, which is an error."""
    yield
    gc.collect()


@pytest.fixture
def without_garbage_collector() -> Iterator[None]:
    """Reference counting only, so that cycles stay and are found."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def tasks() -> Callable[[], set[int]]:
    """Return a function that returns the running tasks, for a comparison at the end of a test."""
    return lambda: {task.id for task in anyio.get_running_tasks()}


@pytest.fixture(name="until")
def _until() -> Callable[[Callable[[], object], str], None]:
    """Wait for a condition that another process makes true."""
    return until


@pytest.fixture(name="wait_until_stable")
def _wait_until_stable() -> Callable[[Callable[[], int]], int]:
    """Wait until a number that another thread counts stops changing."""
    return wait_until_stable


@pytest.fixture
def launch(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Start a server that may fail to start. After the test it is killed; its output is shown if the test failed."""
    started: list[ServerProcess] = []

    def launched(
        kind: str,
        *arguments: str,
        cwd: Path = ROOT,
        variables: Mapping[str, str] | None = None,
        container: Sequence[str] = (),
    ) -> ServerProcess:
        port = free_port()
        command = [*container, *command_of(KINDS[kind], port, arguments)]
        served = ServerProcess(KINDS[kind], command, port, cwd, tmp_path / f"{kind}-{len(started)}.log", variables)
        started.append(served)
        return served

    yield launched
    for served in started:
        served.kill()
        request.node.add_report_section("teardown", " ".join(served.command), served.output)


@pytest.fixture
def serve(launch: Callable[..., ServerProcess]) -> Iterator[Callable[..., ServerProcess]]:
    """Start a server and wait until it accepts connections. After the test it is stopped, and has to end well."""
    serving: list[ServerProcess] = []

    def started(
        kind: str, *arguments: str, cwd: Path = ROOT, variables: Mapping[str, str] | None = None
    ) -> ServerProcess:
        served = start(lambda: launch(kind, *arguments, cwd=cwd, variables=variables))
        serving.append(served)
        return served

    yield started
    for served in serving:
        served.stop()


#: What a server in front makes impossible, or changes, and why. Everything that is not listed has to be right with all
#: servers.
IMPOSSIBLE: dict[str, dict[str, str]] = {
    "a lone question mark": dict.fromkeys(
        ("uvicorn httptools", "uvicorn h11", "hypercorn", "granian"), "ASGI has no empty query"
    ),
    "a fragment": {
        "uvicorn httptools": "llhttp cuts it off",
        "granian": "hyper cuts it off",
    },
    "characters that a URL should not have": {"granian": "hyper responds with 400"},
    "an absolute target without a path": {"uvicorn httptools": "responds with 400"},
    "a client without a Host": {"granian": "gives it an empty one"},
    "repeated request headers": {
        "gunicorn": "an environ has one value per name, joined by a comma",
        "waitress": "an environ has one value per name, joined by a comma",
    },
    "a chunked upload": {"waitress": "reads the upload before it calls, and then knows its length"},
    "an upload while it lasts": {"waitress": "reads the upload before it calls"},
    "an upload in small pieces": {
        "gunicorn": "has an input that blocks until it has as much as was requested",
        "waitress": "reads the upload before it calls",
    },
    "a response without chunks for HTTP/1.0": {"uvicorn httptools": "chunks every response without a length"},
    "a 100 that the origin sends": {
        "hypercorn": "sends it before it calls",
        "gunicorn": "sends it before it calls",
        "waitress": "sends it before it calls",
    },
    "a head before its body": {
        "hypercorn": "keeps the head until the first bytes of the body",
        "granian": "keeps the head until the first bytes of the body",
        "gunicorn": "keeps the head until the first bytes of the body (PEP 3333)",
        "waitress": "keeps the head until the first bytes of the body (PEP 3333)",
    },
}


@dataclass
class FrontServer:
    """A server in front of the sites (apps/sites.py)."""

    name: str
    served: ServerProcess
    clients: list[SiteClient] = field(default_factory=list)

    def client(self, site: str = "plain") -> SiteClient:
        """Return a client that has connected, and has sent nothing."""
        client = SiteClient(self.served.port, site)
        self.clients.append(client)
        return client

    def request(self, line: str, *fields: str, site: str = "plain", body: bytes = b"") -> SiteClient:
        """Return a client that has connected and sent a request."""
        client = self.client(site)
        client.request(line, *fields, body=body)
        return client

    def counts(self, site: str) -> dict[str, dict[str, int]]:
        """Return the counters of a site: of each server, and of its queue."""
        return self._all_counts()[site]

    def in_flight(self) -> int:
        """Return the number of requests in flight at all sites."""
        return sum(each["in_flight"] for site in self._all_counts().values() for each in site.values())

    def _all_counts(self) -> dict[str, dict[str, dict[str, int]]]:
        with closing(SiteClient(self.served.port, "look")) as client:
            client.request("GET /", "Connection: close")
            counts: dict[str, dict[str, dict[str, int]]] = json.loads(client.response().body)
        return counts

    def is_possible(self, what: str) -> bool:
        """Whether the server allows `what`."""
        return self.name not in IMPOSSIBLE[what]

    def skip_if_impossible(self, what: str) -> None:
        """Skip the test where the server makes `what` impossible."""
        reason = IMPOSSIBLE.get(what, {}).get(self.name)
        if reason is not None:
            pytest.skip(f"{what}: {self.name} {reason}")

    @property
    def is_asgi(self) -> bool:
        return "sites_asgi:app" in self.served.command


FRONTS = {
    "uvicorn httptools": "uvicorn --http httptools --no-proxy-headers sites_asgi:app",
    "uvicorn h11": "uvicorn --http h11 --no-proxy-headers sites_asgi:app",
    "hypercorn": "hypercorn sites_asgi:app",
    "granian": "granian sites_asgi:app",
    "gunicorn": "gunicorn -k gthread -w 1 --threads 8 --forwarded-allow-ips 192.0.2.1 sites_wsgi:app",
    "gunicorn with gevent": "gunicorn -k gevent -w 1 --forwarded-allow-ips 192.0.2.1 sites_wsgi:app",
    "waitress": (
        "waitress-serve --threads 8 --channel-request-lookahead 1 --no-clear-untrusted-proxy-headers sites_wsgi:app"
    ),
}


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    """The certificate authority that the sites trust."""
    return trustme.CA()


@pytest.fixture(name="every_origin", scope="session")
def _every_origin(authority: trustme.CA) -> Iterator[dict[str, Origin]]:
    """The origins by name, for the whole session: servers keep their addresses."""
    with tempfile.TemporaryDirectory(prefix="sticky-") as folder:
        origins = {
            "a": Origin(bound()),
            "b": Origin(bound()),
            "late": Origin(bound(address=("127.0.0.2", 0)), listens=False),
            "unix": Origin(bound(socket.AF_UNIX, f"{folder}/origin.sock")),
            "tls": Origin(bound(), tls_context(authority.issue_cert(HOST))),
            "named": Origin(bound(), tls_context(authority.issue_cert("origin.test"))),
            "mutual": Origin(bound(), tls_context(authority.issue_cert(HOST), clients=authority)),
        }
        yield origins
        for origin in origins.values():
            origin.close()


@pytest.fixture
def origins(every_origin: dict[str, Origin]) -> Iterator[dict[str, Origin]]:
    """The origins by name. After the test all their connections are closed."""
    yield every_origin
    for origin in every_origin.values():
        origin.close_connections()


@pytest.fixture
def a(origins: dict[str, Origin]) -> Origin:
    """The origin of server a, the first to be tried."""
    return origins["a"]


@pytest.fixture
def b(origins: dict[str, Origin]) -> Origin:
    """The origin of server b, tried if a has failed."""
    return origins["b"]


@pytest.fixture(scope="session")
def variables(
    every_origin: dict[str, Origin], authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """The environment variables that apps/sites.py reads."""
    folder = tmp_path_factory.mktemp("certificates")
    files = {name: str(folder / f"{name}.pem") for name in ("ca", "crt", "key")}
    client = authority.issue_cert("client@sites.test")
    authority.cert_pem.write_to_path(files["ca"])
    client.cert_chain_pems[0].write_to_path(files["crt"])
    client.private_key_pem.write_to_path(files["key"])
    urls = {name: origin.url for name, origin in every_origin.items()}
    full = bound()
    full.listen(0)
    with bound() as dead, full, socket.create_connection(full.getsockname(), DEADLINE):  # which fills the backlog
        for name, end in {"dead": dead, "full": full}.items():
            urls[name] = f"http://{HOST}:{end.getsockname()[1]}"
        yield {"ORIGINS": json.dumps(urls), "FILES": json.dumps(files)}


@pytest.fixture(name="sites", scope="session")
def _sites(
    variables: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], ServerProcess]]:
    """Return the server in front of the sites, by its name in FRONTS: started when it is first used, and kept."""
    folder = tmp_path_factory.mktemp("sites")
    serving: dict[str, ServerProcess] = {}

    def started(name: str) -> ServerProcess:
        if name not in serving or serving[name].process.poll() is not None:
            kind, *arguments = FRONTS[name].split()
            # an incomplete response ends in an exception, which servers print
            kind_of_front = replace(KINDS[kind], always_prints=(*KINDS[kind].always_prints, "Traceback"))

            def launch() -> ServerProcess:
                port = free_port()
                command = command_of(kind_of_front, port, arguments)
                return ServerProcess(kind_of_front, command, port, ROOT, folder / f"{name}-{port}.log", variables)

            serving[name] = start(launch)
        return serving[name]

    yield started
    try:
        for served in serving.values():
            if served.process.poll() is None:
                served.stop()
    finally:
        for served in serving.values():
            served.kill()


@pytest.fixture
def connect() -> Iterator[Callable[..., SiteClient]]:
    """Connect a client to a server's site. After the test it is closed."""
    clients: list[SiteClient] = []

    def connected(served: ServerProcess, site: str = "plain") -> SiteClient:
        clients.append(SiteClient(served.port, site))
        return clients[-1]

    yield connected
    for client in clients:
        client.close()


#: a few tests ask for it by name
WITH_GEVENT = "gunicorn with gevent"


@pytest.fixture(params=[name for name in FRONTS if name != WITH_GEVENT])
def front(
    request: pytest.FixtureRequest, sites: Callable[[str], ServerProcess], origins: dict[str, Origin]
) -> Iterator[FrontServer]:
    """A server in front of the sites. If a request is in flight after the test, the next test gets a new one."""
    served = sites(request.param)
    before = len(served.output)
    front = FrontServer(request.param, served)
    yield front
    for client in front.clients:
        client.close()
    for origin in origins.values():
        origin.close_connections()
    request.node.add_report_section("teardown", front.name, served.output[before:])
    try:
        until(lambda: front.in_flight() == 0, "nothing in flight")
    except AssertionError:
        served.kill()
        raise
