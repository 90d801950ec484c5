"""Workers: a backend that has the worker processes of one app as servers. The server of this process is the app itself;
the others are peers, to which requests are forwarded.

The worker that accepts a request looks at its mark. A request of a client that belongs to a peer is forwarded there,
once and no further; a new client is served where its request was accepted. The mark carries the instance of the worker,
so a client of a worker that has ended is distinguished from one that never had a worker (`Reason.OTHER_INSTANCE`).
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from sticky_core.backend.backend import Backend
from sticky_core.balance.local import Local
from sticky_core.clock import Clock, Rng, SystemClock
from sticky_core.decision import Decision
from sticky_core.http import cookies
from sticky_core.server import instance
from sticky_core.server.server import Server
from sticky_core.server.state import Health
from sticky_core.target import App
from sticky_core.workers.config import WorkersConfig
from sticky_core.workers.generated_secret import shared_secret
from sticky_core.workers.keys import PREFIX, KeyTable
from sticky_core.workers.persistence import LearnedKeys, RefreshedCookie
from sticky_core.workers.record import WorkerRecord
from sticky_core.workers.repair import FileRepair, RepairResult
from sticky_core.workers.siblings import report_presence
from sticky_core.workers.slots import MAX_WORKERS, WorkerSlot, WorkerSlots

if TYPE_CHECKING:
    from sticky_core.workers.report import WorkersReport

#: how many connections from peers may wait to be accepted
BACKLOG: Final = 2048
#: The timeout of a connection to a peer, in seconds. The kernel accepts it, however busy the peer is.
CONNECT_TIMEOUT: Final = 5.0
#: How long a peer may take to accept a connection and send its hello, in seconds: a busy worker is slow to accept, as
#: it is slow to serve its own requests. After that the request goes to another worker.
HELLO_TIMEOUT: Final = 60.0
#: How long the reply to a query of a key is awaited, in seconds. A peer that does not reply is taken for one that knows
#: no owner.
QUERY_TIMEOUT: Final = 5.0
#: The same for a claim of a key: longer, because the arbiter queries its peers meanwhile.
CLAIM_TIMEOUT: Final = 2 * QUERY_TIMEOUT + 1
#: how many idle connections to a peer are kept
MAX_IDLE: Final = 64
#: The weight of each worker. A worker has 16 points on the ring of a consistent hash for each unit: enough to spread
#: keys evenly.
_WEIGHT: Final = 100


class Workers(Backend):
    """The workers of one app, as one of them sees them. There is a server for each worker slot, with its number; a
    server is UP while a worker runs in its worker slot.

    - `config`: the options of the group.
    - `slots`: the worker slots of the group.
    - `slot`: the worker slot of this process.
    - `app`: the app, which is the target of this process's server.
    - `build_peer`: builds the app that forwards to the worker in another worker slot. It gets this object and the
      number of that worker slot.
    - `listens`: returns whether a process has a socket at this address.
    - `log`, `clock`, `rng`: as in `Backend`.
    """

    def __init__(
        self,
        config: WorkersConfig,
        slots: WorkerSlots,
        slot: WorkerSlot,
        app: App,
        build_peer: Callable[[Workers, int], App],
        listens: Callable[[str], bool],
        *,
        log: Callable[[Decision], None] | None = None,
        clock: Clock | None = None,
        rng: Rng | None = None,
    ) -> None:
        self.slots = slots
        self.slot = slot
        self._listens = listens
        #: whether a client gets a 410 instead of another worker when its worker has ended
        self.reports_lost = config.on_lost == "gone"
        self._refresh_lock = threading.Lock()
        servers = [
            Server(
                f"{PREFIX}{number}",
                app if number == slot.number else build_peer(self, number),
                weight=_WEIGHT,
            )
            for number in range(1, MAX_WORKERS + 1)
        ]
        #: the server that stands for this process
        self.own_server = servers[slot.number - 1]
        self.own_server.instance = slot.instance
        for server in servers:
            if server is not self.own_server:
                server.health = Health.DOWN
        secret = shared_secret(slots.path, slot.instance) if config.needs_generated_secret else ""
        self._repair = FileRepair(slots, slot, secret, listens, clock if clock is not None else SystemClock())
        cookie = config.build_cookie(secret)
        self.cookie = cookie
        sample = config.build_sample()
        #: whether a hash spreads keys over workers
        self.hashes_keys = sample is not None and config.slots is not None
        hashed = None
        if sample is not None and self.hashes_keys:
            from sticky_core.balance.hash import Hash

            hashed = Hash(sample, hash_type="consistent", hash_key="name")
        #: the keys that this worker knows, and their owners; None where workers do not learn keys
        self.keys = KeyTable(self, sample, config.build_learn()) if sample is not None and config.learns_keys else None
        super().__init__(
            config.name or "workers",
            servers,
            balance=Local(self.own_server.name, hashed, config.slots or 0),
            persist=(
                *((LearnedKeys(self.keys, self.reports_lost),) if self.keys is not None else ()),
                *((RefreshedCookie(cookie, self.refresh_peers),) if cookie is not None else ()),
            ),
            # a request with a key goes where its hash says, whatever its cookie says
            ignore_persist=(lambda request: sample(request) is not None) if sample and hashed and cookie else None,
            retry_on=config.retry_on,
            log=log,
            clock=clock,
            rng=rng,
        )
        # a generated secret ends with its workers, so marks from before a restart are nothing to log
        self.invalid_marks.logs_forged = not config.needs_generated_secret
        self.refresh_peers()

    def refresh_peers(self) -> None:
        """Read which workers run, and set their servers UP or DOWN. This costs one `stat` unless a worker has started
        or ended. A worker of which only the socket is missing stays UP: it makes that again.
        """
        with self._refresh_lock:
            instances = self.slots.changed_instances()
            if instances is None:
                return
            for server in self.servers:
                if server is self.own_server:
                    continue
                current = instances.get(server.id, "")
                if current == server.instance:
                    continue
                if not current and not self.slots.has_ended(server.id, server.instance):
                    continue
                self._set_instance(server, current)

    def _set_instance(self, server: Server, current: str) -> None:
        if not current:
            if self.slots.has_announced_end(server.id, server.instance):
                server.mark_down("its worker ends", was_announced=True)
            else:
                server.mark_down("its worker has ended without notice", was_announced=False)
        server.instance = current
        if current:
            server.health = Health.UP

    def repair_files(self) -> RepairResult:
        """Make again what other programs have removed of this worker, and read which workers run: that is needed if
        their sockets are removed, too. Call this each `REPAIR_INTERVAL`. Return what the face has to do.
        """
        result = self._repair.run()
        self.refresh_peers()
        return result

    def has_ended(self, server: Server, instance: str) -> bool:
        """Return whether `instance` of `server`, of which the socket is missing, has ended, rather than that another
        program has removed the socket and the worker will make it again.
        """
        self.refresh_peers()
        return server.instance != instance or bool(self.slots.has_ended(server.id, instance))

    def forget_peer(self, server: Server, ended: str) -> bool:
        """Remove the socket of `ended`, an instance of `server`, unless it listens after all. Return whether the
        sessions there are lost, because `server` has another instance now, or none.
        """
        listens = self._listens(self.slots.socket_path(server.id, ended))
        if not listens:
            self.slots.remove_socket(server.id, ended)
        self.refresh_peers()
        with self._refresh_lock:
            if not listens and server.instance == ended:  # nothing but its silence shows it: its lock file is missing
                self._set_instance(server, "")
        return server.instance != ended

    def live_peers(self) -> list[Server]:
        """Read which workers run, and return the servers of all but this one."""
        self.refresh_peers()
        return [server for server in self.servers if server is not self.own_server and server.usable]

    def report(self) -> WorkersReport:
        """Return what the directory of the group shows, and what only this worker knows; `str()` of it is for people.
        This reads a file for each worker: call it for an operator, not in each request. OSError if the directory is
        missing.
        """
        from sticky_core.workers.report import report_of

        return report_of(self, self._listens)

    def expired_cookie(self, secure: bool) -> str:
        """Return the Set-Cookie text that removes the mark from a client. `secure`: the client came over TLS."""
        cookie = self.cookie
        assert cookie is not None
        written = cookie.settings().written[0]
        attributes = cookies.attribute_text(
            path=written.path, domains=written.domains, secure=written.is_secure(is_tls=secure)
        )
        return cookies.delete_cookie(written.name, attributes)

    def after_fork(self) -> None:
        """Leave the worker slot, and the connections to peers, to the parent. Called in a forked child."""
        self._refresh_lock = threading.Lock()
        self.slot.after_fork()
        super().after_fork()


def group_slots(
    config: WorkersConfig,
    directory: str | os.PathLike[str] | None,
    clock: Clock | None = None,
    *,
    inherited_socket: int | None = None,
) -> WorkerSlots:
    """Return the worker slots of the group with this configuration.

    - `config`: the options of the group.
    - `directory`: the directory in which the workers find each other; None: in the system's temporary directory.
    - `clock`: as in `Backend`.
    - `inherited_socket`: the inode of the listening socket that the processes of the group have from their parent, if
      that is what makes them a group.

    ConfigError if no worker can run there.
    """
    app = config.app if inherited_socket is None else f"{config.app} {inherited_socket}"
    clock = clock if clock is not None else SystemClock()
    return WorkerSlots.of_group(config.name, app, config.face, clock, directory)


def report_unnamed_process(config: WorkersConfig, directory: str | os.PathLike[str] | None) -> None:
    """Log if another process serves the same app as this one, which is not known to be one of several workers. Nothing
    if the file system fails. `directory`: as for `group_slots`.
    """
    clock = SystemClock()
    report_presence(WorkerRecord(os.getpid(), "", clock.wall(), config.app, "", config.face), directory)


def join_workers(
    config: WorkersConfig,
    slots: WorkerSlots,
    app: App,
    build_peer: Callable[[Workers, int], App],
    listens: Callable[[str], bool],
    *,
    log: Callable[[Decision], None] | None = None,
    clock: Clock | None = None,
    rng: Rng | None = None,
) -> Workers:
    """Acquire a worker slot, and return the workers as seen from there. Call this in the process that serves, once
    `slots.needs_repair` is false or `REPAIR_TIMEOUT` is over; then listen at `slot.draft_path`, call
    `slot.publish()`, bind `slot.abstract_address`, and call `repair_files()` regularly.

    - `config`: the options of the group.
    - `slots`: the worker slots of the group.
    - `app`: the app that this process serves.
    - `build_peer`: builds the app that forwards to the worker in another worker slot.
    - `listens`: returns whether a process has a socket at this address.
    - `log`, `clock`, `rng`: as in `Backend`.

    ConfigError if no worker slot is free, or if workers with the same `name=` serve another app.
    """
    clock = clock if clock is not None else SystemClock()
    record = WorkerRecord(
        pid=os.getpid(),
        instance=instance.new_instance(clock, rng if rng is not None else random),
        started=clock.wall(),
        app=config.app,
        group=config.name or "",
        face=config.face,
    )
    slot = slots.acquire(record, listens)
    try:
        slots.require_same_app(record)
        return Workers(config, slots, slot, app, build_peer, listens, log=log, clock=clock, rng=rng)
    except BaseException:
        slot.release()
        raise
