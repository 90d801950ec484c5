"""A request that was forwarded to a peer is replayed at another worker under the same rules as at any server."""

from tests.faces.workers.groups import Response


def test_response_of_a_peer_may_be_held_back_like_any_other(start):
    def serve(worker, request):
        server = request.decision.server
        return Response(503 if server == "w2" else 200, body=server.encode())

    front, owner = (start(serve, retry_on="503") for _ in range(2))
    mark = owner.request().mark
    assert mark.partition("=")[2].startswith("w2@")
    for _ in range(3):
        response = front.request(cookie=mark)
        assert (response.status, response.body) == (200, b"w1")
