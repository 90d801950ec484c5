"""BackendConfig: text is parsed, defaults are applied, and configurations are compared as values."""

import pytest

from sticky_core.backend.backend import Backend, BackendConfig
from sticky_core.balance import LeastConn, Random, RoundRobin
from sticky_core.persistence.cookie.config import Cookie
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
