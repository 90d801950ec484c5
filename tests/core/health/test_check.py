"""Options of a check, and results as text."""

from collections.abc import Callable
from typing import Any

import pytest

from sticky_core.errors import ConfigError
from sticky_core.health.agent import AgentCheck
from sticky_core.health.check import Check, CheckResult, CheckStatus, probe_result

FAIL = CheckResult(CheckStatus.L7STS, 503, "Service Unavailable")


# -- results


def test_a_result_is_formatted_as_in_haproxy_s_log():
    assert str(CheckResult(CheckStatus.L7STS, 503, "Service Unavailable", 0.0031)) == (
        'Layer7 wrong status, code: 503, info: "Service Unavailable", check duration: 3ms'
    )


@pytest.mark.parametrize("returned, status", [(True, "L7OK"), (None, "L7OK"), (False, "L7RSP"), (FAIL, "L7STS")])
def test_the_return_value_of_a_probe_function_is_a_result(returned: object, status: str):
    assert probe_result(returned).status is CheckStatus[status]


# -- invalid options


@pytest.mark.parametrize(
    "make, problem",
    [
        (lambda: Check(expect="status 200"), "expect has no effect without a path"),
        (lambda: Check(method="HEAD"), "method has no effect without a path"),
        (lambda: Check(disable_on_404=True), "disable_on_404 has no effect without a path"),
        (lambda: Check("/", error_limit=3), "error_limit has no effect without observe"),
        (lambda: Check("/", on_error="mark-down"), "on_error has no effect without observe"),
        (lambda: Check("health"), "path 'health' is not valid"),
        (lambda: Check("/a b"), "path '/a b' is not valid"),
        (lambda: Check("/", probe=bool), "has both a path and a probe"),
        (lambda: Check(probe=bool, port=80), "port has no effect with a probe"),
        (lambda: Check("/", inter=0), "inter 0 is not above 0"),
        (lambda: Check("/", fastinter="soon"), "fastinter: 'soon' is not a duration"),
        (lambda: Check("/", rise=0), "rise 0 is not a whole number from 1 on"),
        (lambda: Check("/", spread=60), "spread 60 is not within 0..50"),
        (lambda: Check("/", port=0), "port 0 is not within"),
        (lambda: Check("/", observe="layer5"), "observe 'layer5' is none of layer4, layer7"),  # type: ignore[arg-type]
        (lambda: Check(startup="waits"), "startup 'waits' is none of proceed, wait: write 'wait'"),  # type: ignore[arg-type]
        (lambda: Check(startup=True), "startup True is none of proceed, wait"),  # type: ignore[arg-type]
        (lambda: Check(startup=None), "startup None is none of proceed, wait"),  # type: ignore[arg-type]
        (
            lambda: Check(startup="wait", init_state="fully-up"),
            "takes no server down with init_state='fully-up' and fall=3: write init_state='up', or fall=1",
        ),
        (
            lambda: Check(startup="wait", init_state="fully-down", rise=5),
            "brings no server up with init_state='fully-down' and rise=5: write init_state='down', or rise=1",
        ),
        (lambda: Check("/", expect="status 20"), "'20' is neither a status nor a range"),
        (lambda: Check("/", headers={"a b": "c"}), "header 'a b'"),
        (lambda: AgentCheck(0), "port 0 is not within"),
    ],
)
def test_invalid_options_are_refused(make: Callable[[], object], problem: str):
    with pytest.raises(ConfigError) as refused:
        make()
    (only,) = refused.value.problems
    assert problem in only


@pytest.mark.parametrize(
    "options", [{"init_state": "down"}, {"init_state": "fully-up", "fall": 1}, {"init_state": "fully-down", "rise": 1}]
)
def test_start_can_wait_for_a_check_that_decides(options: dict[str, Any]):
    assert Check(startup="wait", **options).startup == "wait"


def test_all_problems_are_reported_at_once():
    with pytest.raises(ConfigError) as refused:
        Check(inter=0, rise=0, fall=True, expect="nothing", on_error="never")  # type: ignore[arg-type]
    assert len(refused.value.problems) == 7
