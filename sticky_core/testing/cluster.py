"""A cluster of replicas under test: what the `Cluster` of both faces have in common. It opens no port, never sleeps,
and seeds all its random choices.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any, Final, Generic, Self, TypedDict, TypeVar

from sticky_core.backend.backend import Backend, Unavailable
from sticky_core.balance import RoundRobin
from sticky_core.balance.algorithm import Balance
from sticky_core.clock import ManualClock
from sticky_core.decision import Decision
from sticky_core.errors import Failure, ServerFailure, raise_problems
from sticky_core.options.spelling import name_unknown_options
from sticky_core.options.types import type_problem
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.persistence.persistence import Persist
from sticky_core.server.server import Server
from sticky_core.server.state import AdminState
from sticky_core.target import OTHER_FACE, App, Factory, Kind, require_factory, require_made_app

#: signs the cookies of tests, and must sign no others
SECRET = "a secret for tests and nothing else"

Client = TypeVar("Client")


class RecordedRequest:
    """One request of a test client, and the decision about it."""

    def __init__(self, label: str, raw_request: MutableMapping[str, Any], key: str) -> None:
        """`label`: method and path. `key`: where `raw_request`, a scope or environ, has the decision."""
        self.label = label
        self._raw_request = raw_request
        self._key = key

    @property
    def decision(self) -> Decision | None:
        """The decision; None if the request has not reached the dispatcher."""
        return self._raw_request.get(self._key)

    def __str__(self) -> str:
        decision = self.decision
        if decision is None:
            return f"{self.label}: no decision"
        return f"{self.label}: {decision.server or 'no server'} ({decision.why}; status {decision.status})"


class ClusterOptions(TypedDict, total=False):
    """The options of a cluster besides its app and the number of replicas."""

    persist: Persist | Sequence[Persist] | None
    balance: str | Balance
    retries: int
    unavailable: Unavailable
    seed: int
    name: str


@name_unknown_options
class Cluster(Generic[Client]):
    """Several replicas of one app behind a dispatcher, in this process, which a test can kill, drain and restart.

    - `create_app`: a function that makes one replica, with a memory of its own; called once for each replica, and again
      by `restart`. No default.
    - `replicas`: how many; an int; default 3. They are named r1, r2, ….
    - `persist`: how clients are recognised, as with `Backend`; default: a signed cookie SERVERID. None: they are not
      recognised, to see whether the app works without stickiness. HAProxy `cookie`, `stick`.
    - `balance`: as with `Backend`; default `"roundrobin"`, which begins with r1. HAProxy `balance`.
    - `retries`: as with `Backend`; an int; default 3. HAProxy `retries`.
    - `unavailable`: as with `Backend`; default `"redispatch"`. HAProxy `option redispatch`.
    - `seed`: seeds all random choices; an int; default 0. Two clusters with the same seed and name behave identically,
      to the last character of a cookie; another seed behaves like another process.
    - `name`: of the backend; default `"cluster"`.

    `decisions` lists the decision about each request that has ended, in this order. The clock stands still except for
    `clock.advance(seconds)`; the cookie jars of clients use the system's clock. Used as a context manager, the cluster
    runs the lifespans of its replicas (ASGI), or makes the replicas at once (WSGI).
    """

    kind: Kind  #: the kind of app that the face serves

    def __init__(
        self,
        create_app: Factory,
        replicas: int = 3,
        *,
        persist: Persist | Sequence[Persist] | None = Cookie("SERVERID", secret=SECRET),  # noqa: B008 - frozen
        balance: str | Balance = "roundrobin",
        retries: int = 3,
        unavailable: Unavailable = "redispatch",
        seed: int = 0,
        name: str = "cluster",
    ) -> None:
        require_factory(create_app, "cluster", "Cluster(create_app)")
        problem = type_problem("replicas", replicas, int, "how many replicas")
        raise_problems([f"cluster: {problem}"] if problem is not None else ())
        raise_problems([f"cluster: {replicas} replicas can't serve requests: at least 1 can"] if replicas < 1 else ())
        self._create_app = create_app
        self._killed: set[str] = set()
        self._kills: Counter[str] = Counter()  # by name: a request that a kill has ended stays ended after `revive`
        self.clock: Final = ManualClock()
        self.decisions: Final[list[Decision]] = []
        self._requests: list[tuple[Client, list[RecordedRequest]]] = []
        servers = [Server(f"r{number}", factory=self._factory(f"r{number}")) for number in range(1, replicas + 1)]
        self.backend: Final = Backend(
            name,
            servers,
            balance=RoundRobin(start=0) if balance == "roundrobin" else balance,
            persist=() if persist is None else persist,
            retries=retries,
            unavailable=unavailable,
            log=self.decisions.append,
            clock=self.clock,
            rng=random.Random(seed),
        )

    def _factory(self, name: str) -> Factory:
        def create() -> App:
            app = self._create_app()
            require_made_app(app, self._create_app, self.kind, f"use Cluster of {OTHER_FACE[self.kind]}.testing")
            return self._make_killable(name, app)

        return create

    # What each face adds

    def _make_killable(self, name: str, app: App) -> App:
        """Return `app`, wrapped so that its requests end when the replica `name` is killed."""
        raise NotImplementedError

    def _begin_request(self, name: str) -> Callable[[], bool]:
        """Begin a request at the replica `name`: return a function that returns whether the replica is still alive.
        ServerFailure if it is killed already.
        """
        if name in self._killed:
            raise ServerFailure(Failure.REFUSED, name)
        kills = self._kills[name]
        return lambda: self._kills[name] == kills

    def _make_client(self, requests: list[RecordedRequest], **options: Any) -> Client:
        """Make a client with a cookie jar of its own, and append its requests to `requests`."""
        raise NotImplementedError

    def _end_streams(self, name: str) -> None:
        """End the requests in flight at the replica `name`."""
        raise NotImplementedError

    def _restart_app(self, server: Server) -> None:
        """Replace the server's app by a new one, with an empty memory."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        raise NotImplementedError

    def __exit__(self, *exc_info: object) -> None:
        raise NotImplementedError

    # What a test calls

    def client(self, **options: Any) -> Client:
        """Make a client with a cookie jar of its own. `options` are those of the test client's class."""
        requests: list[RecordedRequest] = []
        client = self._make_client(requests, **options)
        self._requests.append((client, requests))
        return client

    def kill(self, name: str) -> None:
        """Kill a replica: new requests are refused, requests in flight end. It keeps its memory, for `revive`.

        Its health stays UP, like that of a process that has just died: no check has run yet.
        """
        self._server(name)
        self._killed.add(name)
        self._kills[name] += 1
        self._end_streams(name)

    def revive(self, name: str) -> None:
        """Undo `kill`: the replica serves again, with the memory it had."""
        self._server(name)
        self._killed.discard(name)

    def restart(self, name: str) -> None:
        """Replace a replica by a new instance, with an empty memory."""
        server = self._server(name)
        self.kill(name)
        self._restart_app(server)
        self._killed.discard(name)

    def drain(self, name: str) -> None:
        """Let a replica keep its clients and accept no new ones (admin state DRAIN)."""
        self._server(name).state = AdminState.DRAIN

    def maint(self, name: str) -> None:
        """Take a replica out: it gets no requests (admin state MAINT)."""
        self._server(name).state = AdminState.MAINT

    def ready(self, name: str) -> None:
        """Let a replica accept all clients again (admin state READY)."""
        self._server(name).state = AdminState.READY

    def server_of(self, client: Client) -> str:
        """Return the name of the replica that got the client's latest request. LookupError if no replica got one."""
        for request in reversed(self._requests_of(client)):
            decision = request.decision
            if decision is not None and decision.server is not None:
                return decision.server
        raise LookupError("this client was not served yet: let it make a request first")

    def assert_sticky(self, client: Client) -> None:
        """Raise AssertionError, with the list of the client's requests, unless one replica served all of them, and
        there were two at least.
        """
        requests = self._requests_of(client)
        servers = {request.decision.server if request.decision is not None else None for request in requests}
        if len(servers) == 1 and None not in servers and len(requests) > 1:
            return
        if len(requests) < 2:
            made = "no request" if not requests else "one request"
            raise AssertionError(f"a client that made {made} shows nothing: let it make two at least")
        lines = "\n".join(f"  {number}. {request}" for number, request in enumerate(requests, 1))
        raise AssertionError(f"the client did not stay on one replica:\n{lines}")

    def _requests_of(self, client: Client) -> list[RecordedRequest]:
        for known, requests in self._requests:
            if known is client:
                return requests
        raise LookupError("this client is not one of this cluster's: make it with cluster.client()")

    def _server(self, name: str) -> Server:
        try:
            return self.backend[name]
        except KeyError:
            names = ", ".join(server.name for server in self.backend.servers)
            raise LookupError(f"there is no replica {name!r}: the replicas are {names}") from None

    def __repr__(self) -> str:
        killed = f", killed: {', '.join(sorted(self._killed))}" if self._killed else ""
        return f"<{type(self).__name__} of {self.backend!r}{killed}>"


ClusterFactory = Callable[..., Cluster[Any]]
