"""Server templates: how many servers they make, under which names, and with which options."""

import inspect
from typing import get_type_hints

import pytest

from sticky_core.dns.resolvers import Resolvers
from sticky_core.errors import ConfigError
from sticky_core.health.check import Check
from sticky_core.http.tls import TLS
from sticky_core.server.config import TemplateOptions
from sticky_core.server.server import Server
from sticky_core.server.template import expand_template


def test_template_makes_several_servers_with_one_name():
    servers = Server.template("web", 3, "myservice.local:80")
    assert [server.name for server in servers] == ["web1", "web2", "web3"]
    assert {server.config.template for server in servers} == {"http://myservice.local:80"}
    assert all(server.is_unresolved for server in servers)


@pytest.mark.parametrize("n, names", [("2", ["web1", "web2"]), ("3-5", ["web3", "web4", "web5"]), ("7-7", ["web7"])])
def test_numbers_are_written_as_in_haproxy(n, names):
    assert [server.name for server in Server.template("web", n, "myservice.local:80")] == names


@pytest.mark.parametrize("n", [0, -1, "", "5-3", "a-b", "1-"])
def test_template_without_servers_is_refused(n):
    with pytest.raises(ConfigError, match="is not a number of servers"):
        Server.template("web", n, "myservice.local:80")


@pytest.mark.parametrize(
    "where, problem",
    [
        ("10.0.0.1:80", "is an address already"),
        ("https://[::1]/", "is an address already"),
        ("unix:/run/app.sock", "has no name to resolve"),
        ("http://", "names no host"),
        ("myservice.local:0", "no server can listen at port 0"),
    ],
)
def test_url_without_a_name_to_resolve_is_refused(where, problem):
    with pytest.raises(ConfigError, match=problem):
        Server.template("web", 1, where)


def test_every_server_gets_the_options():
    servers = Server.template("web", 2, "https://myservice.local", weight=5, maxconn=7, check=Check("/up"), backup=True)
    assert [(each.config.weight, each.maxconn, each.config.backup) for each in servers] == [(5, 7, True)] * 2
    with pytest.raises(ConfigError, match="weight 300"):
        Server.template("web", 2, "myservice.local:80", weight=300)


def test_template_takes_the_options_of_a_server():
    """Except those that it sets itself, those of apps, and what only one server can have been called."""
    of_server = set(inspect.signature(Server).parameters) - {"name", "target", "factory", "stateless", "formerly"}
    assert set(get_type_hints(TemplateOptions)) == of_server


@pytest.mark.parametrize(
    "where, url",
    [
        ("myservice.local:80", "http://myservice.local:80"),
        ("http://myservice.local/base", "http://myservice.local/base"),
        ("https://myservice.local", "https://myservice.local"),
    ],
)
def test_scheme_of_a_template_is_http_if_it_is_not_written(where: str, url: str):
    resolvers = Resolvers()
    (config,) = expand_template("web", 1, where, resolvers, {})
    assert (config.template, config.target) == (url, None)
    assert config.resolvers is resolvers


@pytest.mark.parametrize(
    "where, tls, expected",
    [
        ("https://myservice.local", None, TLS(sni="myservice.local")),
        ("https://myservice.local", TLS(verify=False), TLS(verify=False, sni="myservice.local")),
        ("https://myservice.local", TLS(sni="other.local"), TLS(sni="other.local")),
        ("https://_https._tcp.myservice.local", TLS(sni="myservice.local"), TLS(sni="myservice.local")),
        ("myservice.local:80", None, None),
    ],
    ids=["none", "without sni", "with sni", "service", "http"],
)
def test_tls_verifies_the_host_name_of_the_template(where: str, tls: TLS | None, expected: TLS | None):
    options: TemplateOptions = {} if tls is None else {"tls": tls}
    assert [config.tls for config in expand_template("web", 2, where, None, options)] == [expected] * 2


def test_name_of_a_service_is_not_verified_by_tls():
    with pytest.raises(ConfigError, match="TLS can't verify the name of a service"):
        expand_template("web", 1, "https://_https._tcp.myservice.local", None, {})
