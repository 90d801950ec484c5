"""How workers start under a WSGI server, and what stops them from it."""

import pytest

from sticky_core.errors import ConfigError
from sticky_wsgi import StickyWorkers
from tests.faces.workers.wsgi import FakeServer, RecordingApp


@pytest.mark.parametrize(
    "variables",
    [
        pytest.param({"wsgi.multiprocess": False}, id="one process"),
        pytest.param({"wsgi.run_once": True}, id="a process for each request"),
    ],
)
def test_worker_without_peers_serves_and_sets_no_cookie(folder, variables):
    app = RecordingApp()
    alone = FakeServer(StickyWorkers(app, directory=folder), **variables)
    response = alone.request()
    assert alone.cookie is None and "sticky.decision" not in app.seen[-1]
    assert response.status == "200 OK" and alone.app.workers is None


def test_config_error_has_every_problem():
    with pytest.raises(ConfigError) as caught:
        StickyWorkers(RecordingApp(), threads=0, on_lost="sorry", name="a b")  # type: ignore[arg-type]
    assert len(caught.value.problems) == 3
