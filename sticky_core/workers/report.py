"""The report of a worker: what the directory of its group shows, and what only this worker knows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from sticky_core.clock import Clock
from sticky_core.deferred.dataclass import dataclass
from sticky_core.server.counters import Total
from sticky_core.server.server import Server
from sticky_core.workers.keys import KeyTable
from sticky_core.workers.slots import WorkerSlots
from sticky_core.workers.survey import GroupStatus, WorkerStatus, age, aligned, read_group

if TYPE_CHECKING:
    from sticky_core.persistence.accepted import AcceptedCount


@dataclass(frozen=True, slots=True)
class PeerReport:
    """Another worker slot, as this worker sees it.

    - `slot`: `w1`, `w2`, …
    - `status`: `UP` or `DOWN`, as this worker has noticed it last.
    - `in_flight`: how many requests this worker has handed over to it that are not over.
    - `handed_over`: how many requests this worker has handed over to that worker slot, those in flight included.
    """

    slot: str
    status: str
    in_flight: int
    handed_over: int


@dataclass(frozen=True, slots=True)
class WorkersReport:
    """What one worker knows of its group, and of its own work since it has started. `str()` of it is for people.

    - `slot`: the worker slot of this worker: `w1`, `w2`, …
    - `group`: what the directory of the group shows, as the command `sticky workers` does.
    - `peers`: the worker slots that are UP or have had requests from here.
    - `in_flight`: how many requests are in flight in the app here, those of peers included.
    - `served_own`: how many requests this worker has accepted and served.
    - `served_for_peers`: how many requests it has served that peers have accepted.
    - `handed_over`: how many requests it has accepted and peers have served.
    - `lost_sessions`: how many requests it has accepted of clients with a worker that has ended.
    - `known_keys`: how many keys it knows the owner of; None where workers do not learn keys.
    - `accepted_marks`: how many requests that it has accepted came with each mark that the cookie accepts beside itself
      (`Cookie(accepts=...)`).
    """

    slot: str
    group: GroupStatus
    peers: tuple[PeerReport, ...]
    in_flight: int
    served_own: int
    served_for_peers: int
    handed_over: int
    lost_sessions: int
    known_keys: int | None
    accepted_marks: tuple[AcceptedCount, ...] = ()

    def __str__(self) -> str:
        keys = "" if self.known_keys is None else f", {self.known_keys} keys known"
        own = (
            f"{self.slot} of {self.group.title}: {self.in_flight} in flight, {self.served_own} served here, "
            f"{self.served_for_peers} served for peers, {self.handed_over} handed over, "
            f"{self.lost_sessions} lost sessions{keys}"
        )
        running: dict[str, WorkerStatus] = {worker.slot: worker for worker in self.group.workers}
        known = {peer.slot: peer for peer in self.peers}
        rows: list[Sequence[str]] = [("worker", "process", "age", "state", "in flight", "handed over")]
        for slot in sorted(running.keys() | known.keys(), key=lambda slot: (len(slot), slot)):
            worker, peer = running.get(slot), known.get(slot)
            shown = (worker.pid_text, age(worker.age), worker.state) if worker is not None else ("", "", "ended")
            rows.append((slot, *shown, f"{peer.in_flight}" if peer else "", f"{peer.handed_over}" if peer else ""))
        return "\n".join([own, *aligned(rows), *map(str, self.accepted_marks), *self.group.notes])


class ReportingWorkers(Protocol):
    """The workers as one of them sees them, for its report: `Workers`."""

    own_server: Server
    slots: WorkerSlots
    keys: KeyTable | None
    clock: Clock

    @property
    def servers(self) -> Sequence[Server]: ...
    @property
    def accepted_marks(self) -> Sequence[AcceptedCount]: ...


def report_of(workers: ReportingWorkers, listens: Callable[[str], bool]) -> WorkersReport:
    """Return the report of the worker that has these peers. `listens`: returns whether a process listens at the socket
    with this path. OSError if the directory of the group is missing.
    """
    own = workers.own_server
    own_total = own.total
    received = own.counters[Total.FROM_PEER]
    peers = tuple(
        PeerReport(server.name, server.status, len(server.in_flight), server.total - server.counters[Total.ECON])
        for server in workers.servers
        if server is not own and (server.usable or server.total)
    )
    return WorkersReport(
        slot=own.name,
        group=read_group(workers.slots.path, workers.clock, listens),
        peers=peers,
        in_flight=len(own.in_flight),
        served_own=own_total - received,
        served_for_peers=received,
        handed_over=sum(peer.handed_over for peer in peers),
        lost_sessions=own.counters[Total.LOST_SESSION],
        known_keys=len(workers.keys.table) if workers.keys is not None else None,
        accepted_marks=tuple(workers.accepted_marks),
    )
