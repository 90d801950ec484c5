"""Keys that an app issues in the bodies of its responses: from which responses they are learned, and for how long."""

from dataclasses import dataclass

import pytest

from sticky_core.clock import ManualClock
from sticky_core.samples import response as res
from sticky_core.samples.request import url_param
from sticky_core.workers.keys import KeyTable
from sticky_core.workers.learning import BodyLearner
from tests.core.fakes import RecordedResponse
from tests.core.workers.test_keys import W1, W2, FakeMembership


@dataclass(frozen=True)
class AnyRequest:
    key: str | None = None


@pytest.fixture
def keys():
    return KeyTable(FakeMembership(), url_param("sid"), (res.json_field("sid"), res.hdr("x")))


def learn(keys, *pieces, status=200, key=None, **headers):
    """Learn from the response to a request, and return how many pieces were read, and the request."""
    request = AnyRequest(key)
    learner = BodyLearner.of(keys, request)
    if learner is None:
        return 0, request
    given = {"content-type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
    learner.begin(status, RecordedResponse(headers=list(given.items())))
    count = 0
    for number, piece in enumerate(pieces, 1):
        if not learner.is_done:
            learner.read(piece, number == len(pieces))
            count += 1
    return count, request


def test_key_in_the_body_of_a_response_is_owned_by_this_worker(keys):
    count, _ = learn(keys, b'{"si', b'd": "k"', b"}", b"more", b"and more")
    assert (keys.last_owner("k"), count) == (W1, 3)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"status": 404}, id="an error, which may repeat a key"),
        pytest.param({"status": 302}, id="a redirect"),
        pytest.param({"key": "other"}, id="a request that has a key"),
        pytest.param({"content_type": "text/html"}, id="another content type"),
        pytest.param({"content_encoding": "gzip"}, id="compressed"),
    ],
)
def test_nothing_is_read_of(keys, options):
    count, _ = learn(keys, b'{"sid": "k"}', **options)
    assert (keys.last_owner("k"), count) == (None, 0)


def test_nothing_is_read_where_no_sample_is_of_a_body():
    keys = KeyTable(FakeMembership(), url_param("sid"), (res.hdr("x"),))
    assert BodyLearner.of(keys, AnyRequest()) is None
    assert BodyLearner.of(None, AnyRequest()) is None


def test_compressed_response_is_reported_once_for_each_encoding(keys, caplog):
    for encoding in ("gzip", "br", "gzip", "identity", "GZIP"):
        learn(keys, b'{"sid": "k"}', content_encoding=encoding)
    learn(keys, b"<p>", content_encoding="deflate", content_type="text/html")  # it would not be read anyway
    assert [record.args[0] for record in caplog.records] == ["gzip", "br"]
    assert "json_field(name='sid'" in caplog.text


def test_encodings_that_an_app_makes_up_do_not_fill_the_log(keys, caplog):
    for number in range(50):
        learn(keys, b"{}", content_encoding=f"x-{number}")
    assert len(caplog.records) == 8


def test_key_of_another_live_worker_stays_with_it(keys):
    keys.learn("k", W2)
    learn(keys, b'{"sid": "k"}')
    assert keys.last_owner("k") == W2
    keys.learn("lost", "w2@an-earlier-instance")
    learn(keys, b'{"sid": "lost"}')
    assert keys.last_owner("lost") == W1


def test_key_is_kept_while_the_response_that_has_issued_it_goes_on(keys):
    keys.table.clock = clock = ManualClock()
    _, request = learn(keys, b'{"sid": "k"}')
    for _ in range(3):
        clock.advance(3 * 3600)
        assert keys.last_owner("k") == W1
    keys.end_use(request)
    clock.advance(3600 * 1.2)
    assert keys.last_owner("k") is None


def test_body_without_a_head_is_not_read(keys):
    learner = BodyLearner.of(keys, AnyRequest())
    assert learner is not None
    learner.read(b'{"sid": "k"}', True)
    assert learner.is_done and keys.last_owner("k") is None


def test_key_that_is_longer_than_keys_are_is_cut_as_that_of_a_request(keys):
    learn(keys, b'{"sid": "' + b"k" * 300 + b'"}')
    assert keys.last_owner(keys.table_key("k" * 300)) == W1
