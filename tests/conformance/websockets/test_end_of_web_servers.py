"""The decision about a WebSocket says that the middleware has ended it if the web server ends. A file of its own: the
servers of other tests stay up.
"""

from __future__ import annotations

import signal

import pytest

from tests.conformance.websockets.conftest import DEADLINE, SERVERS, Gateway, Origins, until


@pytest.mark.parametrize("name", [name for name in SERVERS if name != "granian"])  # which ends without its apps
def test_end_of_the_web_server(name: str, origins: Origins, tmp_path_factory: pytest.TempPathFactory) -> None:
    gateway = Gateway(SERVERS[name], origins.routes, tmp_path_factory.mktemp("ending") / "output.log")
    try:
        gateway.comes_up()
        client = gateway.request_websocket("/replica")
        assert client.head().status == 101
        gateway.process.send_signal(signal.SIGTERM)
        client.complete_close()
        client.close_socket()
        gateway.process.wait(DEADLINE)
        until(lambda: "closed_by" in gateway.output, "the log of the WebSocket")
        assert "closed_by=MIDDLEWARE; close_code=" in gateway.output
    finally:
        gateway.kill()
