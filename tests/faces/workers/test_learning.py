"""Keys that an app issues in the body of a response: the next request with one is served by the worker that has issued
it, whichever worker accepts the request.
"""

import pytest

from sticky_core.samples import response as res
from tests.faces.workers.groups import Response

JSON = [("Content-Type", "text/plain; charset=UTF-8")]
KEY = {"key": ["hdr(X-Session)", "url_param(sid)"], "cookie": None}


def session_app(worker, request):
    """Issues the id of a new session in its body, as Socket.IO does, and knows only its own sessions."""
    sid = request.query.partition("sid=")[2] or request.headers.get("x-session", "")
    if sid:
        return Response(200 if sid.startswith(f"s{id(worker)}-") else 400, JSON, b'"known"')
    return Response(200, JSON, f'0{{"sid":"s{id(worker)}-{len(worker.seen)}","upgrades":[]}}'.encode())


def sid_of(response):
    return response.body.decode().split('"')[3]


@pytest.mark.parametrize(
    "learn",
    [
        pytest.param(res.json_field("sid"), id="a sample"),
        pytest.param(["res.hdr(X-Session)", "res.json_field(sid)"], id="texts"),
    ],
)
def test_key_in_a_body_leads_to_the_worker_that_has_issued_it(start, learn):
    workers = [start(session_app, learn=learn, **KEY) for _ in range(3)]
    for accepting in workers:
        for worker in workers:
            sid = sid_of(worker.request())
            assert accepting.request(query=f"sid={sid}").status == 200
            assert accepting.request(headers=[("X-Session", sid)]).status == 200


def test_key_in_the_body_of_a_response_to_a_forwarded_request_is_known_in_the_worker_that_served_it(start):
    options = {"key": "url_param(sid)", "learn": res.json_field("sid")}
    one, other, third = (start(session_app, **options) for _ in range(3))
    mark = one.request().mark
    sid = sid_of(other.request(cookie=mark))
    other.stop()  # the worker that has forwarded it knows nothing of the key
    assert third.request(query=f"sid={sid}").status == 200
    assert [len(worker.seen) for worker in (one, other, third)] == [3, 0, 0]


def test_without_learn_the_key_is_claimed_where_it_arrives_and_the_log_names_learn_once(start, caplog):
    one, other = (start(session_app, **KEY) for _ in range(2))
    for _ in range(8):
        sid = sid_of(one.request())
        other.request()
        assert other.request(query=f"sid={sid}").status == 400
    records = [record for record in caplog.records if "no response has contained a key" in record.getMessage()]
    assert len(records) == 1 and "learn=res.json_field('sid')" in records[0].getMessage()


def test_nothing_is_logged_where_clients_make_keys_up(start, caplog):
    workers = [start(lambda worker, request: Response(), key="url_param(id)") for _ in range(2)]
    for number in range(20):
        for worker in workers:
            worker.request()
            worker.request(query=f"id={number}")
    assert not caplog.records


def test_key_in_a_header_with_any_case_is_learned(start):
    def give(worker, request):
        return Response(headers=[("X-Session", "abc")]) if "x-session" not in request.headers else Response()

    one, other = (start(give, key="hdr(X-Session)", cookie=None) for _ in range(2))
    one.request()
    other.request(headers=[("X-Session", "abc")])
    assert len(one.seen) == 2


def test_compressed_body_is_passed_on_and_named_in_the_log(start, caplog):
    def serve(worker, request):
        return Response(headers=[*JSON, ("Content-Encoding", "gzip")], body=b"compressed")

    worker = start(serve, learn=res.json_field("sid"), **KEY)
    assert [worker.request().body for _ in range(3)] == [b"compressed"] * 3
    assert [record.getMessage().count("content-encoding gzip") for record in caplog.records] == [1]
