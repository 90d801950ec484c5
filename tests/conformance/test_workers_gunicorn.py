"""StickyWorkers and the heartbeats of gunicorn's workers: a worker that waits for another is not taken for one that
hangs, and one that hangs is ended as it is without StickyWorkers.
"""

import json
import os
import signal
import tempfile
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

#: In seconds: after so long without a heartbeat, gunicorn ends a worker.
TIMEOUT = 4
#: in seconds: how long the app takes for a request that is no problem for gunicorn
WORK = TIMEOUT / 8
#: how many of these, one after another, take longer than gunicorn waits for a heartbeat
MANY = 12

#: in seconds: after so long without a heartbeat a worker has been ended for certain, as gunicorn looks once a second
ENDED = TIMEOUT + 3

SERVERS = {
    "sync": f"gunicorn -w 4 --timeout {TIMEOUT}",
    "sync, preloaded": f"gunicorn -w 4 --timeout {TIMEOUT} --preload",
    "gthread": f"gunicorn -k gthread --threads 1 -w 4 --timeout {TIMEOUT}",
}


@pytest.fixture
def started(serve):
    """Starts gunicorn by its name in SERVERS. `options`: those of StickyWorkers."""

    def start(name, **options):
        served = serve(*SERVERS[name].split(), "workers_wsgi:app", variables={"STICKY": json.dumps(options)})
        served.kind = replace(served.kind, always_prints=("ResourceWarning",))  # a sync worker leaves its socket open
        return served

    return start


def children(served):
    """Return the ids of the processes that a server has started."""
    parent = served.process.pid
    return {int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()}


def get_json(client, target):
    response = client.request(target)
    assert response.status == 200, (target, response)
    return json.loads(response.body)


def bind(served):
    """Return a client that is bound to a worker, and the process id of this worker."""
    client = served.client()
    return client, get_json(client, "/left")["pid"]


class Requests:
    """Requests of one client that are sent at the same time, each over a connection of its own."""

    def __init__(self, client, targets):
        self.responses: list[Any] = []
        self._threads = [threading.Thread(target=self._send, args=(replace(client), target)) for target in targets]
        for each in self._threads:
            each.start()

    def _send(self, client, target):
        try:
            response = client.request(target)
        except OSError as error:
            self.responses.append(error)
        else:
            self.responses.append((response.status, json.loads(response.body) if response.status == 200 else None))

    def wait(self):
        """Wait for all responses, and return them."""
        for each in self._threads:
            each.join()
        return self.responses


@pytest.mark.parametrize("name", SERVERS)
def test_requests_that_wait_for_each_other_longer_than_the_timeout_are_served_and_no_worker_is_ended(
    started, until, name
):
    served = started(name)
    until(lambda: len(children(served)) == 4, "all workers")
    workers = children(served)
    client, pid = bind(served)
    responses = Requests(client, [f"/work?client=a&seconds={WORK}"] * MANY).wait()
    assert [status for status, _ in responses] == [200] * MANY, served.output
    assert {content["pid"] for _, content in responses} == {pid}
    assert get_json(client, "/count?client=a")["n"] == MANY + 1
    assert children(served) == workers
    assert "TIMEOUT" not in served.output


@pytest.fixture
def pair(serve):
    """Starts two servers with one worker each, which are peers. `timeout`: that of the first."""
    with tempfile.TemporaryDirectory(prefix="w") as directory:

        def start(timeout):
            options = {"STICKY": json.dumps({"name": "kin", "directory": directory, "cookie": "KIN"})}
            first, second = (
                serve("gunicorn", "-w", "1", "--timeout", str(each), "workers_wsgi:app", variables=options)
                for each in (timeout, TIMEOUT)
            )
            for served in (first, second):
                served.kind = replace(served.kind, always_prints=("ResourceWarning",))
            client, pid = bind(first)
            bind(second)
            return first, second, replace(client, port=second.port), pid

        yield start


def test_worker_that_waits_for_a_stopped_peer_longer_than_the_timeout_is_not_ended(pair):
    _, second, client, pid = pair(0)
    workers = children(second)
    assert get_json(client, "/count?client=a")["pid"] == pid
    os.kill(pid, signal.SIGSTOP)
    try:
        waiting = Requests(client, ["/count?client=a"])
        threading.Event().wait(ENDED)
    finally:
        os.kill(pid, signal.SIGCONT)
    ((status, content),) = waiting.wait()
    assert (status, content["pid"], content["n"]) == (200, pid, 2)
    assert children(second) == workers


def test_worker_whose_app_hangs_with_the_request_of_a_peer_is_ended_and_only_this_one(pair, until):
    first, second, client, pid = pair(TIMEOUT)
    workers = children(second)
    ((status, _),) = Requests(client, ["/work?client=a&seconds=1000"]).wait()
    assert status == 502
    until(lambda: pid not in children(first), "the end of the worker")
    assert "the app works on a request of another worker for more than" in first.output
    assert get_json(client, "/count?client=a")["n"] == 1  # by another worker
    assert children(second) == workers
    bind(first)  # a worker that is about to start would miss the signal to end
    first.kind = replace(first.kind, always_prints=("ResourceWarning", "Traceback"))
