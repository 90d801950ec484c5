"""ServerConfig: names, cookie ids, limits and what only a URL has; every problem is reported at once."""

from typing import Any

import pytest

from sticky_core.dns.resolvers import Resolvers
from sticky_core.errors import ConfigError
from sticky_core.http.tls import TLS
from sticky_core.server.config import ServerConfig
from sticky_core.server.server import Server


def app(environ: object, start_response: object) -> list[bytes]:
    return []


@pytest.mark.parametrize("name", ["s1", "web.1", "a-b_c", "10.0.0.1:8080", "S", "7"])
def test_name_is_made_of_haproxys_letters(name: str):
    assert Server(name, app).name == name


@pytest.mark.parametrize("name", ["", " ", "a b", "s1\n", "s/1", "s;1", "s|1", "s~1", "s@1", "é", "s\x00", "²"])
def test_other_names_are_refused(name: str):
    with pytest.raises(ConfigError, match="a name is made of letters"):
        Server(name, app)


@pytest.mark.parametrize(
    "server, cookie_id",
    [
        pytest.param(Server("s1", app), "s1", id="its name"),
        pytest.param(Server("s1", app, cookie="A"), "A", id="what it was given"),
        pytest.param(Server("s1", app, cookie=""), "", id="none, if it was given none"),
        pytest.param(Server("s1", app, backup=True), "", id="none for a backup"),
        pytest.param(Server("s1", app, backup=True, cookie="A"), "A", id="a backup's own"),
    ],
)
def test_cookie_id_is(server: Server, cookie_id: str):
    assert server.config.cookie_id == cookie_id


@pytest.mark.parametrize("cookie", ["a b", "a;b", "a,b", 'a"b', "a\\b", "é", "a\n", " "])
def test_cookie_id_that_cannot_be_written_is_refused(cookie: str):
    with pytest.raises(ConfigError, match="can't be written in a cookie"):
        Server("s1", app, cookie=cookie)


def test_every_problem_is_reported_at_once_with_the_servers_name():
    with pytest.raises(ConfigError) as refused:
        Server("s 1", weight=300, cookie="a b")
    assert len(refused.value.problems) == 4
    assert all(problem.startswith("server s 1: ") for problem in refused.value.problems)
    for part in ("letters", "neither a target", "weight 300 is not within 0..256", "cookie 'a b'"):
        assert part in str(refused.value)


def test_url_cannot_be_stateless():
    with pytest.raises(ConfigError, match="stateless is for apps"):
        Server("s1", "http://10.0.0.1", stateless=True)


def test_configuration_is_a_value_and_a_server_is_not():
    config = ServerConfig(name="s1", target=app, weight=3)
    assert config == ServerConfig(name="s1", target=app, weight=3)
    assert Server.of(config).config is config
    assert Server.of(config) != Server.of(config)
    with pytest.raises(AttributeError):
        config.weight = 4  # type: ignore[misc]


@pytest.mark.parametrize(
    "options, problem",
    [
        pytest.param({"maxconn": -1}, "maxconn -1 is below 0", id="maxconn below 0"),
        pytest.param({"maxconn": 1.5}, "maxconn 1.5", id="a part of a request"),
        pytest.param({"maxconn": "5"}, "maxconn '5'", id="maxconn as a text"),
        pytest.param({"maxconn": None}, "maxconn None", id="no maxconn"),
        pytest.param({"maxconn": 1, "maxqueue": -1}, "maxqueue -1 is below 0", id="maxqueue below 0"),
        pytest.param({"maxconn": 1, "maxqueue": "5"}, "maxqueue '5'", id="maxqueue as a text"),
        pytest.param({"maxqueue": 5}, "maxqueue has no effect without maxconn", id="a queue for nothing"),
    ],
)
def test_invalid_maxconn_and_maxqueue_are_refused(options: dict[str, Any], problem: str):
    with pytest.raises(ConfigError) as refused:
        Server("s1", app, **options)
    (only,) = refused.value.problems
    assert only.startswith(f"server s1: {problem}")


@pytest.mark.parametrize(
    "options, problem",
    [
        pytest.param({"name": 5}, "server 5: name=5 has the wrong type: write a text", id="a number for a name"),
        pytest.param({"cookie": 5}, "cookie=5 has the wrong type: write its id in cookies", id="a number for a cookie"),
        pytest.param(
            {"check": "/health"}, "check='/health' has the wrong type: write check=Check('/health')", id="a path"
        ),
        pytest.param({"check": True}, "check=True has the wrong type", id="a yes for a check"),
        pytest.param(
            {"agent_check": 9000}, "agent_check=9000 has the wrong type: write agent_check=AgentCheck", id="a port"
        ),
        pytest.param(
            {"track": 5}, "track=5 has the wrong type: write the other server, or its name", id="a number to track"
        ),
        pytest.param({"tls": True}, "tls=True has the wrong type: write tls=TLS", id="a yes for tls"),
        pytest.param({"max_fails": "3"}, "max_fails='3' has the wrong type", id="a text to count"),
        pytest.param({"fail_rate": "50%"}, "fail_rate='50%' has the wrong type: write 0.5", id="a text for a share"),
        pytest.param(
            {"fail_rate": 0.5, "fail_volume": 2.5}, "fail_volume=2.5 has the wrong type", id="a part of a request"
        ),
        pytest.param(
            {"formerly": "s0"}, "formerly='s0' is no list: write formerly=['s0']", id="a text for a list of texts"
        ),
        pytest.param({"formerly": {"s0"}}, "formerly={'s0'} is no list: write formerly=['s1'", id="a set of texts"),
        pytest.param({"formerly": None}, "formerly=None is no list", id="no list"),
        pytest.param({"formerly": ["s0", 5]}, "formerly: 5 is no text", id="a number in a list of texts"),
        pytest.param({"pool_max_conn": "3"}, "pool_max_conn='3' has the wrong type", id="a text for a pool"),
    ],
)
def test_options_of_the_wrong_type_are_refused_with_what_to_write(options: dict[str, Any], problem: str):
    with pytest.raises(ConfigError) as refused:
        Server(**{"name": "s1", "target": "https://10.0.0.1", **options})
    (only,) = refused.value.problems
    assert problem in only


@pytest.mark.parametrize(
    "options, problem",
    [
        pytest.param({"fail_rate": 0}, "fail_rate 0 is not a share above 0 and up to 1", id="no share"),
        pytest.param({"fail_rate": 50}, "fail_rate 50 is not a share", id="percent"),
        pytest.param({"fail_rate": True}, "fail_rate True is not a share", id="a yes"),
        pytest.param({"fail_rate": float("nan")}, "fail_rate nan is not a share", id="no number"),
        pytest.param({"fail_volume": 20}, "fail_volume has no effect without fail_rate", id="a volume for nothing"),
        pytest.param({"fail_rate": 0.5, "fail_volume": 0}, "fail_volume 0 is not a whole number", id="no volume"),
        pytest.param({"fail_rate": 0.5, "fail_volume": True}, "fail_volume True is not", id="a yes for a volume"),
        pytest.param({"fail_rate": 0.5, "fail_timeout": 0}, "fail_timeout 0 is not above 0", id="no window"),
    ],
)
def test_invalid_limits_of_failed_requests_are_refused(options: dict[str, Any], problem: str):
    with pytest.raises(ConfigError) as refused:
        Server("s1", app, **options)
    (only,) = refused.value.problems
    assert only.startswith(f"server s1: {problem}")


@pytest.mark.parametrize(
    "formerly, problem",
    [
        pytest.param(["s1", "s0", "s1"], "formerly has 's1' twice", id="twice"),
        pytest.param(["a b"], "formerly: 'a b' can't be what a client brings", id="a space"),
        pytest.param([""], "formerly: '' can't be what a client brings", id="nothing"),
        pytest.param(["s1\n"], "formerly: 's1\\n' can't be what a client brings", id="a line"),
        pytest.param(["http://"], "formerly: 'http://' names no host", id="a URL without a host"),
        pytest.param(["http://s1:0"], "formerly: 'http://s1:0': no server can listen at port 0", id="port 0"),
        pytest.param(["unix:"], "formerly: 'unix:' names no socket", id="a socket without a path"),
        pytest.param(
            ["10.0.0.1:99999"], "formerly: '10.0.0.1:99999' has no port from 1 to 65535", id="a port that is none"
        ),
    ],
)
def test_invalid_former_texts_are_refused(formerly: list[str], problem: str):
    with pytest.raises(ConfigError) as refused:
        Server("web1", app, formerly=formerly)
    (only,) = refused.value.problems
    assert only.startswith(f"server web1: {problem}")


def test_former_texts_are_a_tuple_however_they_were_written():
    given = Server("web1", app, formerly=["s1", "10.0.0.1:80"])
    assert given.config == ServerConfig(name="web1", target=app, formerly=("s1", "10.0.0.1:80"))
    assert given.config.formerly == ("s1", "10.0.0.1:80")


@pytest.mark.parametrize(
    "target, options, problem",
    [
        pytest.param(app, {"tls": TLS()}, "tls is for URLs: an app has no connections", id="tls to an app"),
        pytest.param(app, {"pool_max_conn": 5}, "pool_max_conn is for URLs", id="a pool for an app"),
        pytest.param(app, {"pool_max_conn": 0}, "pool_max_conn is for URLs", id="no pool for an app"),
        pytest.param(app, {"pool_purge_delay": "5s"}, "pool_purge_delay is for URLs", id="a delay for an app"),
        pytest.param("http://s1", {"tls": TLS()}, "tls has no effect on http://s1: write https://", id="tls to http"),
        pytest.param("unix:/s1", {"tls": TLS()}, "tls has no effect on unix:/s1", id="tls to a socket"),
        pytest.param("http://s1", {"pool_max_conn": -1}, "pool_max_conn -1 is below 0", id="a pool below 0"),
        pytest.param("http://s1", {"pool_purge_delay": 0}, "pool_purge_delay 0 is not above 0", id="no time at all"),
        pytest.param("http://s1", {"pool_purge_delay": -1}, "pool_purge_delay", id="a time before"),
        pytest.param("http://s1", {"pool_purge_delay": float("nan")}, "pool_purge_delay nan is not", id="no time"),
        pytest.param("http://s1", {"pool_purge_delay": "soon"}, "pool_purge_delay: 'soon'", id="a word for a time"),
    ],
)
def test_connection_options_without_effect_are_refused(target: Any, options: dict[str, Any], problem: str):
    with pytest.raises(ConfigError) as refused:
        Server("s1", target, **options)
    (only,) = refused.value.problems
    assert only.startswith(f"server s1: {problem}")


@pytest.mark.parametrize(
    "target, options",
    [
        ("https://s1", {"tls": TLS(verify=False)}),
        ("https://s1", {}),
        ("http://s1", {"pool_max_conn": 0}),
        ("unix:/s1", {"pool_max_conn": 1, "pool_purge_delay": "100ms"}),
        ("http://s1", {"maxconn": 1, "maxqueue": 1, "pool_purge_delay": 0.5}),
        (app, {"maxconn": 1, "maxqueue": 0}),
    ],
)
def test_connection_options_are_kept_as_given(target: Any, options: dict[str, Any]):
    config = Server("s1", target, **options).config
    assert {name: getattr(config, name) for name in options} == options


def test_all_problems_of_limits_and_connections_are_reported_at_once():
    with pytest.raises(ConfigError) as refused:
        Server("s1", "http://s1", maxconn=-1, maxqueue=-2, tls=TLS(), pool_max_conn=-3, pool_purge_delay="soon")
    problems = refused.value.problems
    assert len(problems) == 5 and all(problem.startswith("server s1: ") for problem in problems)
    for part in ("maxconn -1", "maxqueue -2", "tls has no effect", "pool_max_conn -3", "pool_purge_delay: 'soon'"):
        assert part in str(refused.value)
    with pytest.raises(ConfigError) as refused:
        Server("s1", app, tls=TLS(), pool_max_conn=-3, pool_purge_delay="soon")
    assert len(refused.value.problems) == 3, "an app has none of it, be it right or wrong"


def test_resolvers_without_a_name_are_refused():
    with pytest.raises(ConfigError, match="resolvers have no effect"):
        ServerConfig(name="web1", target="http://10.0.0.1", resolvers=Resolvers())
