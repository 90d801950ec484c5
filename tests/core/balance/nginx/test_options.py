"""Options of the algorithms of nginx."""

from typing import Any, cast

import pytest

from sticky_core.balance import IpHash, NginxHash, NginxLeastConn, Smooth
from sticky_core.errors import ConfigError
from sticky_core.samples.request import path


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(lambda: Smooth(start=-1), id="smooth"),
        pytest.param(lambda: NginxLeastConn(start=-1), id="least_conn"),
        pytest.param(lambda: IpHash(start=-1), id="ip_hash"),
        pytest.param(lambda: NginxHash(path, start=-1), id="hash"),
    ],
)
def test_a_start_below_0_is_refused(wrong):
    with pytest.raises(ConfigError, match="start -1 is below 0"):
        wrong()


def test_a_key_that_is_not_callable_is_refused():
    with pytest.raises(ConfigError, match=r"'\$request_uri' is not a sample"):
        NginxHash(cast(Any, "$request_uri"))
