"""url_param: a parameter of the query, or of a posted form, chooses the server."""

import pytest

from sticky_core.balance import Uri, UrlParam
from sticky_core.errors import ConfigError


@pytest.mark.parametrize(
    "query, value",
    [
        pytest.param("user=bob", "bob", id="alone"),
        pytest.param("a=1&user=bob&b=2", "bob", id="among others"),
        pytest.param("user=bob&user=alice", "bob", id="the first of two"),
        pytest.param("superuser=alice&user=bob", "bob", id="not the end of another name"),
        pytest.param("user=bob;x=1", "bob;x=1", id="a semicolon is no separator"),
        pytest.param("user=b%6Fb", "b%6Fb", id="as it was sent"),
        pytest.param("user=a=b", "a=b", id="with an equals sign"),
        pytest.param("user=", "", id="empty"),
        pytest.param("User=bob", None, id="another case"),
        pytest.param("user", None, id="without its equals sign"),
        pytest.param("superuser=alice", None, id="absent"),
        pytest.param("", None, id="no query"),
    ],
)
def test_url_param_hashes_the_value_of_the_parameter(bench, client, query, value):
    by_param = bench(UrlParam("user", start=0), [1] * 97)
    twice = [by_param.choose((), client(query=query)) for _ in range(2)]
    if value is None:
        assert twice == by_param.servers[:2], "requests without one take turns"
    else:
        by_path = bench(Uri(), [1] * 97)
        expected = by_path.number(by_path.choose((), client(path=value)))
        assert [by_param.number(server) for server in twice] == [expected, expected]


def test_an_empty_name_of_the_parameter_is_refused():
    with pytest.raises(ConfigError, match="the name of the parameter is empty"):
        UrlParam("")
