"""A cluster of replicas under test: what both faces' `Cluster` decide, without a port, a sleep or chance that is not
seeded.
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
from sticky_core.errors import ConfigError, Failure, ServerFailure, raise_problems
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.persistence.persistence import Persist
from sticky_core.server.server import Server
from sticky_core.server.state import AdminState
from sticky_core.target import OTHER_FACE, App, Factory, Kind, possible_kinds, require_factory

#: good for tests and for nothing else
SECRET = "a secret for tests and nothing else"

Client = TypeVar("Client")


class RecordedRequest:
    """One request of a client, and what was decided about it."""

    def __init__(self, label: str, message: MutableMapping[str, Any], key: str) -> None:
        self.label = label
        self._message = message
        self._key = key

    @property
    def decision(self) -> Decision | None:
        """None if the request has not come as far as a dispatcher."""
        return self._message.get(self._key)

    def __str__(self) -> str:
        decision = self.decision
        if decision is None:
            return f"{self.label}: no decision"
        return f"{self.label}: {decision.server or 'no server'} ({decision.why}; status {decision.status})"


class ClusterOptions(TypedDict, total=False):
    """What a cluster may be given beside its app and the number of replicas."""

    persist: Persist | Sequence[Persist] | None
    balance: str | Balance
    retries: int
    unavailable: Unavailable
    seed: int
    name: str


class Cluster(Generic[Client]):
    """Several replicas of one app behind a dispatcher, in this process, to be killed and drained at will.

    `create_app`: makes one replica with a memory of its own; called once per replica, and again by `restart`.
    `persist`: how clients are known again; by default a signed cookie SERVERID. None: not at all, to see whether the
    app survives that.
    `balance`, `retries`, `unavailable`: as `Backend` has them; roundrobin begins with the first replica.
    `seed`: of everything that is left to chance. Two clusters of one seed and name are the same to the last character
    of a cookie; another seed stands for another process.

    The replicas are called r1, r2, …. `decisions` holds what was decided about each request that is over, in that
    order. Time stands still, but for `clock.advance(seconds)`; the jars of clients have a clock of their own. Used as a
    context manager it runs what its replicas want to run at their start and end.
    """

    kind: Kind  #: of app that the face serves

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
        require_factory(create_app, "cluster")
        raise_problems([f"cluster: {replicas} replicas can't serve anybody"] if replicas < 1 else ())
        self._create_app = create_app
        self._killed: set[str] = set()
        self._deaths: Counter[str] = Counter()  # by name: what was open at one does not come back with `revive`
        self.clock: Final = ManualClock()
        self.decisions: Final[list[Decision]] = []
        self._visits: list[tuple[Client, list[RecordedRequest]]] = []
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
            if self.kind not in possible_kinds(app):
                other = OTHER_FACE[self.kind]
                raise ConfigError(f"{app!r} is no {self.kind.upper()} app: use Cluster of {other}.testing")
            return self._mortal(name, app)

        return create

    # What each face adds

    def _mortal(self, name: str, app: App) -> App:
        """`app`, such that it dies when `name` is killed."""
        raise NotImplementedError

    def _alive(self, name: str) -> Callable[[], bool]:
        """Whether what begins at `name` now is still alive when it is asked; ServerFailure if it can't even begin."""
        if name in self._killed:
            raise ServerFailure(Failure.REFUSED, name)
        deaths = self._deaths[name]
        return lambda: self._deaths[name] == deaths

    def _client(self, visits: list[RecordedRequest], **options: Any) -> Client:
        """A client with a cookie jar of its own, each of whose requests is a visit."""
        raise NotImplementedError

    def _end_streams(self, name: str) -> None:
        """End what is open at the replica `name`."""
        raise NotImplementedError

    def _begin_anew(self, server: Server) -> None:
        """Give the server an app with an empty memory."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        raise NotImplementedError

    def __exit__(self, *exc_info: object) -> None:
        raise NotImplementedError

    # What a test does

    def client(self, **options: Any) -> Client:
        """A new client, with a cookie jar of its own. `options` are those of the face's own test client."""
        visits: list[RecordedRequest] = []
        client = self._client(visits, **options)
        self._visits.append((client, visits))
        return client

    def kill(self, name: str) -> None:
        """Kill a replica: who comes is refused, what is open ends. Its memory stays, for `revive`.

        Its health stays UP, as that of a process which died a moment ago: nobody has checked yet.
        """
        self._server(name)
        self._killed.add(name)
        self._deaths[name] += 1
        self._end_streams(name)

    def revive(self, name: str) -> None:
        """Undo `kill`: the replica answers again, with the memory it had."""
        self._server(name)
        self._killed.discard(name)

    def restart(self, name: str) -> None:
        """End a replica and begin another in its place: a new life, with an empty memory."""
        server = self._server(name)
        self.kill(name)
        self._begin_anew(server)
        self._killed.discard(name)

    def drain(self, name: str) -> None:
        """Let a replica keep its clients and take no new ones."""
        self._server(name).state = AdminState.DRAIN

    def maint(self, name: str) -> None:
        """Take a replica out: it gets nobody."""
        self._server(name).state = AdminState.MAINT

    def ready(self, name: str) -> None:
        """Put a replica back."""
        self._server(name).state = AdminState.READY

    def server_of(self, client: Client) -> str:
        """The name of the replica that a client was last sent to. LookupError if it was never sent to any."""
        for visit in reversed(self._visits_of(client)):
            decision = visit.decision
            if decision is not None and decision.server is not None:
                return decision.server
        raise LookupError("this client was not served yet: let it make a request first")

    def assert_sticky(self, client: Client) -> None:
        """AssertionError, with the client's story, unless all its requests were answered by one and the same replica,
        and it made two at least.
        """
        visits = self._visits_of(client)
        servers = {visit.decision.server if visit.decision is not None else None for visit in visits}
        if len(servers) == 1 and None not in servers and len(visits) > 1:
            return
        if len(visits) < 2:
            made = "no request" if not visits else "one request"
            raise AssertionError(f"a client that made {made} shows nothing: let it make two at least")
        story = "\n".join(f"  {number}. {visit}" for number, visit in enumerate(visits, 1))
        raise AssertionError(f"the client did not stay on one replica:\n{story}")

    def _visits_of(self, client: Client) -> list[RecordedRequest]:
        for known, visits in self._visits:
            if known is client:
                return visits
        raise LookupError("this client is not one of this cluster's: make it with cluster.client()")

    def _server(self, name: str) -> Server:
        try:
            return self.backend[name]
        except KeyError:
            names = ", ".join(server.name for server in self.backend.servers)
            raise LookupError(f"there is no replica {name!r}: they are called {names}") from None

    def __repr__(self) -> str:
        dead = f", killed: {', '.join(sorted(self._killed))}" if self._killed else ""
        return f"<{type(self).__name__} of {self.backend!r}{dead}>"


ClusterFactory = Callable[..., Cluster[Any]]
