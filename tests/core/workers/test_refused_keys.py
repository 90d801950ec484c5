"""When the warning comes that an app seems to issue keys where no worker reads them, and when it does not."""

import pytest

from sticky_core.samples import request as samples
from sticky_core.samples.path_template import PathTemplate
from sticky_core.workers.refused_keys import RefusedKeys

SID = (samples.url_param("sid"),)


def run(steps, key=SID, learns_more=False):
    """Count what each letter means: h a request without a key, r a key that is refused, a one that is accepted, i a
    response that issues a key.
    """
    keys = RefusedKeys(key, learns_more)
    for step in steps:
        match step:
            case "h" if keys.may_warn:
                keys.count_without_key()
            case "r":
                keys.count_claimed(400)
            case "a":
                keys.count_claimed(200)
            case "i":
                keys.key_issued()


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param("hr" * 5, id="five handshakes, five keys refused"),
        pytest.param("hhhrrahra" * 3, id="one of three by chance with the worker that has issued it"),
        pytest.param("hrha" * 5, id="every second, as with two workers"),
        pytest.param("rrrrr" + "h" * 9 + "r", id="later"),
        pytest.param("hr" * 50, id="and only once"),
    ],
)
def test_worker_warns_once_if_the_app_refuses_keys_and_no_response_has_issued_one(steps, caplog):
    run(steps)
    (record,) = caplog.records
    assert "keys (url_param(name='sid')) that no worker knew were refused" in record.getMessage()
    assert "learn=res.json_field('sid')" in record.getMessage()


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param("hr" * 4, id="four"),
        pytest.param("ha" * 50, id="keys that clients make up"),
        pytest.param("haahaar" * 20, id="a few of them wrong"),
        pytest.param("r" * 50 + "h", id="keys of sessions from before a restart"),
        pytest.param("rrrhihhhhrrrrrr", id="such keys, then those that responses issue"),
        pytest.param("hi" + "hr" * 50, id="a response has issued one"),
    ],
)
def test_no_warning_where_clients_make_keys_up_or_responses_issue_them(steps, caplog):
    run(steps)
    assert not caplog.records


@pytest.mark.parametrize(
    "sample", [PathTemplate("/rooms/{id}"), lambda request: "x", samples.src], ids=["path", "function", "address"]
)
def test_no_warning_for_keys_that_an_app_does_not_issue(sample, caplog):
    run("hr" * 50, (samples.hdr("x"), sample))
    assert not caplog.records


@pytest.mark.parametrize("status", [0, 101, 200, 302, 401, 403, 429, 500, 503])
def test_other_statuses_are_no_refusal_of_a_key(status, caplog):
    keys = RefusedKeys((samples.hdr("x"),), False)
    for _ in range(50):
        keys.count_without_key()
        keys.count_claimed(status)
    assert not caplog.records


def test_warning_names_learn_where_it_has_found_nothing(caplog):
    run("hr" * 5, learns_more=True)
    assert "the samples in learn= have found none" in caplog.text
