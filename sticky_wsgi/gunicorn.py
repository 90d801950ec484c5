"""A hook of gunicorn that starts the workers before their first request. One line in gunicorn.conf.py:

from sticky_wsgi.gunicorn import post_worker_init
"""

from __future__ import annotations

from typing import Any

from sticky_wsgi.workers.gunicorn import announce_worker
from sticky_wsgi.workers.middleware import start_all


def post_worker_init(worker: Any) -> None:
    """Start every `StickyWorkers` of this process: take a worker slot and listen for peers, now rather than with the
    first request. `worker`: gunicorn's worker object. With a single worker, and no `name`, nothing is started.

    Raises ConfigError for what cannot work; then gunicorn does not start.
    """
    announce_worker(worker)
    start_all(spawned=worker.cfg.workers > 1)
