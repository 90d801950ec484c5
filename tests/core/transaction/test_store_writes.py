"""Writes that a request has queued for shared stores."""

from sticky_core.backend.backend import Backend
from sticky_core.errors import StoreFailure
from sticky_core.server.server import Server
from sticky_core.stores.redis import Redis
from sticky_core.stores.store import StoreCommand, StoreQuery
from sticky_core.transaction.store_writes import complete_writes, pending_writes
from tests.core.fakes import ScriptedTransaction


def app(environ: object, start_response: object) -> list[bytes]:
    return []


class RecordedTable:
    """A table that records the replies to its writes."""

    def __init__(self) -> None:
        self.written: list[tuple[str, object]] = []

    def query(self, command: StoreCommand) -> StoreQuery:
        return StoreQuery(command, 0)

    def on_written(self, key: str, query: StoreQuery, now: float) -> None:
        self.written.append((key, query.reply))


def test_queued_writes_are_sent_in_order_and_each_table_gets_its_reply():
    request = ScriptedTransaction(Backend("web", [Server("s1", app)]))
    assert not request.has_writes and list(pending_writes(request)) == []
    one, other = RecordedTable(), RecordedTable()
    store = Redis("redis://cache")
    commands = [StoreCommand(store, ("a",)), StoreCommand(store, ("b",))]
    request.queue_write(one, "x", commands[0])
    request.queue_write(other, "y", commands[1])
    assert request.has_writes and list(pending_writes(request)) == commands
    complete_writes(request, [b"s1", "s2"])
    assert (one.written, other.written) == ([("x", "s1")], [("y", "s2")])
    assert not request.has_writes and list(pending_writes(request)) == []


def test_reply_to_a_write_that_is_no_text_is_a_failure_of_the_store():
    request = ScriptedTransaction(Backend("web", [Server("s1", app)]))
    table = RecordedTable()
    request.queue_write(table, "x", StoreCommand(Redis("redis://cache"), ("a",)))
    complete_writes(request, [[b"s1"]])
    ((key, reply),) = table.written
    assert key == "x" and isinstance(reply, StoreFailure)
