"""Stick rules that cannot work are reported."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sticky_core.errors import ConfigError
from sticky_core.persistence.stick.config import Learn, Stick
from sticky_core.samples import response as res
from sticky_core.samples.request import cook, hdr
from sticky_core.server.server import Server
from sticky_core.stick_table.table import StickTable
from tests.core.persistence.stick.backends import (
    make_backend,
)


@pytest.mark.parametrize(
    "wrong, problem",
    [
        (lambda: Stick.on(hdr), "stick on: hdr is a class and no sample: write hdr('name')"),  # type: ignore[arg-type]
        (lambda: Stick.on(7), "stick on: 7 is no sample"),  # type: ignore[arg-type]
        (lambda: Stick.match("src", None), "stick match: None is no table: write StickTable"),  # type: ignore[arg-type]
        (lambda: Stick.on("src", when="always"), "'always' is no condition"),  # type: ignore[arg-type]
        (lambda: Stick.on("dst"), "sample 'dst' is not known"),
        (lambda: Stick.store_response("cook(a)", StickTable()), "sample 'cook(a)' is not known"),
        (lambda: Learn((), cook("a")), "name at least one sample of responses"),
        (lambda: Learn(res.cook("a"), ()), "one of requests as lookup"),
        (lambda: Learn(["a"], [cook("a")]), "learn: 'a' is no sample: pass one, such as cook('JSESSIONID')"),  # type: ignore[list-item]
        (lambda: Learn.cookie("a b"), "can't be the name of a cookie"),
        (lambda: Learn.cookie("a", timeout="soon"), "expire: "),
    ],
)
def test_options_that_cannot_work_are_reported(wrong: Callable[[], object], problem: str):
    with pytest.raises(ConfigError) as refused:
        wrong()
    assert problem in str(refused.value)


def test_table_of_addresses_needs_servers_with_addresses():
    def app(environ: object, start_response: object) -> list[bytes]:
        return []

    servers = [Server("s1", "http://10.0.0.1"), Server("s2", app), Server("s3", "unix:/run/app.sock")]
    with pytest.raises(ConfigError) as refused:
        make_backend(Stick.on("src", StickTable("ip", srvkey="addr")), servers=servers)
    for name in ("s2", "s3"):
        assert f"server {name}: srvkey='addr' needs an address" in str(refused.value)
    assert "server s1" not in str(refused.value)
