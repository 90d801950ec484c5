"""BackendConfig: text is parsed, defaults are applied, and configurations are compared as values."""

import pytest

from sticky_core.backend.backend import Backend, BackendConfig
from sticky_core.balance import LeastConn, Random, RoundRobin
from sticky_core.errors import ConfigError
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.server.config import ServerConfig
from tests.core.backend.backends import servers


@pytest.mark.parametrize(
    "written, words",
    [
        ("conn-failure", ("conn-failure",)),
        ("conn-failure empty-response 503", ("conn-failure", "empty-response", "503")),
        (("conn-failure", "503"), ("conn-failure", "503")),
        (["503", 504], ("503", "504")),
        ("", ()),
        ("none", ("none",)),
    ],
)
def test_retry_on_is_text_or_a_list_of_words(written: str | list[str], words: tuple[str, ...]):
    assert Backend("web", servers("s1"), retry_on=written).config.retry_on == words


def test_configuration_is_a_value():
    one, other = servers("s1"), servers("s1")
    asked = {"balance": "leastconn", "persist": Cookie("SRV", signed=False), "retries": 5}
    config = Backend("web", one, **asked).config  # type: ignore[arg-type]
    assert config == Backend("web", other, **asked).config  # type: ignore[arg-type]
    assert config == BackendConfig(
        name="web", servers=(one[0].config,), balance=LeastConn(), persist=(Cookie("SRV", signed=False),), retries=5
    )
    assert config != Backend("web", servers("s1"), balance="random").config
    with pytest.raises(AttributeError):
        config.retries = 4  # type: ignore[misc]


@pytest.mark.parametrize(
    "balance, expected",
    [("leastconn", LeastConn()), ("random(3)", Random(3)), (RoundRobin(start=4), RoundRobin(start=4))],
)
def test_balance_is_text_or_a_value(balance: str | RoundRobin, expected: object):
    assert Backend("web", servers("s1"), balance=balance).config.balance == expected


def test_defaults_are_those_of_the_documentation():
    config = Backend("web", servers("s1")).config
    assert (config.balance, config.persist, config.retries, config.unavailable) == (RoundRobin(), (), 3, "redispatch")


class CountedName(str):
    """A name that counts how often names are compared."""

    __slots__ = ()
    comparisons = 0

    def __eq__(self, other: object) -> bool:
        CountedName.comparisons += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__


def test_names_of_servers_are_not_compared_each_with_each():
    configs = tuple(ServerConfig(name=CountedName(f"s{number}"), target="http://10.0.0.1") for number in range(200))
    CountedName.comparisons = 0
    BackendConfig(name="web", servers=configs, balance=RoundRobin())
    assert CountedName.comparisons < len(configs)


def test_a_name_that_several_servers_have_is_reported_once():
    configs = tuple(ServerConfig(name=name, target="http://10.0.0.1") for name in ("b", "a", "b", "c", "a", "b"))
    with pytest.raises(ConfigError) as refused:
        BackendConfig(name="web", servers=configs, balance=RoundRobin())
    assert [problem.rpartition(":")[0] for problem in refused.value.problems] == [
        "backend web: has 2 servers called a",
        "backend web: has 3 servers called b",
    ]
