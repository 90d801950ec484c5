"""In HTTP/2, a client may split its Cookie header into fields. They arrive at an upstream as one header (RFC 9113,
8.2.3).
"""

from __future__ import annotations

import h2.config
import h2.connection
import h2.events
import pytest


def request(site: str, *cookies: str) -> bytes:
    """Return a request in HTTP/2 with these Cookie fields."""
    connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    connection.initiate_connection()
    head = [(":method", "GET"), (":scheme", "http"), (":authority", site), (":path", "/")]
    connection.send_headers(1, [*head, *(("cookie", text) for text in cookies)], end_stream=True)
    return connection.data_to_send()


@pytest.mark.parametrize("server", ["hypercorn", "granian"])
@pytest.mark.parametrize(
    ("site", "arrives"),
    [("plain", "a=1; b=2"), ("alone", "a=1; SERVERID=a; b=2")],
    ids=["behind a dispatcher", "an Upstream alone"],
)
def test_cookie_fields_of_http2_arrive_as_one_header(server, site, arrives, sites, connect, a):
    client = connect(sites(server))
    client.send(request(site, "a=1", "SERVERID=a", "b=2"))
    received = a.next_request()
    received.respond()
    assert received.values("cookie") == [arrives]
