"""Servers of a template follow the addresses of their name, and clients follow their server."""

from __future__ import annotations

import ssl
import time
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from sticky_core.dns.resolvers import Resolvers
from sticky_core.errors import ConfigError
from sticky_core.health.check import Check
from sticky_core.http.forwarding import Forward
from sticky_core.http.tls import TLS
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.server.server import Server
from sticky_core.server.state import AdminState
from tests.faces.discovery.dispatchers import (
    NAME,
    OFTEN,
    A,
    B,
    C,
    FakeResolver,
    Origins,
    addresses,
    check_result,
    resolving_threads,
    running,
    template,
)
from tests.faces.running import until

if TYPE_CHECKING:
    from tests.faces.conftest import Face


def test_servers_follow_the_answers_and_keep_the_clients_of_a_kept_address(face: Face, origins: Origins) -> None:
    resolver = FakeResolver(A, B)
    backend = face.backend(*template(origins, resolver), persist=Cookie("SERVERID", signed=False))
    with running(face, backend) as run:
        until(lambda: addresses(backend) == [A, B, None])
        bound = "SERVERID=web2"
        assert run.get(cookie=bound).body == B
        resolver.addresses = [C, B]
        until(lambda: addresses(backend) == [C, B, None])
        assert run.get(cookie=bound).body == B
        assert run.get(cookie="SERVERID=web1").body == C
        resolver.addresses = [C]
        until(lambda: addresses(backend) == [C, None, None])
        moved = run.get(cookie=bound)
        assert (moved.body, moved.mark, moved.letters) == (C, "SERVERID=web1", "DI")


def test_clients_with_a_dynamic_cookie_follow_the_address(face: Face, origins: Origins) -> None:
    resolver = FakeResolver(A, B)
    backend = face.backend(*template(origins, resolver, n=2), persist=Cookie("SERVERID", dynamic="key", signed=False))
    with running(face, backend) as run:
        until(lambda: addresses(backend) == [A, B])
        first = run.get()
        mark, address = first.mark, first.body
        other = B if address == A else A
        # the address is removed, and returns at the other server
        resolver.addresses = [other, C]
        until(lambda: address not in addresses(backend))
        assert run.get(cookie=mark).body != address
        resolver.addresses = [C, address]
        until(lambda: address in addresses(backend))
        response = run.get(cookie=mark)
        assert (response.body, response.letters[0]) == (address, "V")


def test_servers_keep_their_addresses_for_the_hold_time_of_a_failed_name(face: Face, origins: Origins) -> None:
    resolver = FakeResolver(A)
    backend = face.backend(*template(origins, resolver, hold_nx=0.2, timeout_retry=0.02))
    with running(face, backend) as run:
        assert run.address() == A
        before = len(resolver.queries)
        resolver.raises = LookupError("no such name")
        until(lambda: len(resolver.queries) > before + 1)
        until(lambda: addresses(backend) == [None, None, None])
        assert run.get().status == 503
        resolver.raises = None
        until(lambda: addresses(backend) == [A, None, None])
        assert run.address() == A


def test_server_is_checked_while_it_has_an_address(face: Face, origins: Origins) -> None:
    resolver = FakeResolver(A)
    servers = Server.template(
        "web",
        2,
        f"{NAME}:{origins.port}",
        resolvers=Resolvers(resolver=resolver, **OFTEN),
        check=Check("/health", inter=0.05, timeout=5, fall=1, rise=1),
    )
    backend = face.backend(*servers)
    with running(face, backend) as run:
        run.get()
        until(lambda: "Layer7 check passed" in check_result(backend["web1"]))
        assert check_result(backend["web2"]) == "Initializing"
        resolver.addresses = [B, A]
        until(lambda: "Layer7 check passed" in check_result(backend["web2"]))
        assert [server.status for server in backend.servers] == ["UP", "UP"]
        assert NAME in {each.partition(":")[0] for each in origins.hosts}


def test_template_that_is_added_at_run_time_is_resolved(face: Face, origins: Origins) -> None:
    resolver = FakeResolver(A)
    backend = face.backend(face.server("s1", weight=1))
    with running(face, backend) as run:
        assert run.get().body == "s1"
        backend.add(*template(origins, resolver, n=1))
        until(lambda: run.get().status == 200 and addresses(backend)[-1] == A)
        backend["s1"].state = AdminState.MAINT
        assert run.address() == A
        backend.remove("web1")
        until(lambda: resolving_threads() == [])
        times = len(resolver.queries)
        time.sleep(0.1)
        assert len(resolver.queries) <= times + 1


def test_host_of_the_upstream_is_the_name_and_not_the_address(face: Face, origins: Origins) -> None:
    origins.hosts.clear()
    backend = face.backend(*template(origins, FakeResolver(A)), forward=Forward(host="upstream"))
    with running(face, backend) as run:
        assert run.address() == A
    assert origins.hosts == {f"{NAME}:{origins.port}"}


def test_tls_verifies_the_name_and_sends_it(face: Face, tmp_path: Any) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(NAME).configure_cert(context)
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    origins = Origins([A], context)
    servers = Server.template(
        "web",
        1,
        f"https://{NAME}:{origins.port}",
        resolvers=Resolvers(resolver=FakeResolver(A), **OFTEN),
        tls=TLS(ca_file=str(ca_file)),
        check=Check("/health", inter=0.05, timeout=5, fall=1, rise=1),
    )
    backend = face.backend(*servers)
    try:
        with running(face, backend) as run:
            assert run.address() == A
            until(lambda: "Layer7 check passed" in check_result(backend["web1"]))
    finally:
        origins.close()
    assert f"{NAME}:{origins.port}" in origins.hosts


def test_name_of_a_service_can_not_be_verified_by_tls() -> None:
    with pytest.raises(ConfigError, match=r"write tls=TLS\(sni=...\)"):
        Server.template("web", 1, f"https://_https._tcp.{NAME}")
    [server] = Server.template("web", 1, f"https://_https._tcp.{NAME}", tls=TLS(sni=NAME))
    assert server.config.tls is not None and server.config.tls.sni == NAME
