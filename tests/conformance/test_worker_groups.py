"""Which processes of real servers are workers of one group."""

import json
import tempfile

import pytest

ALONE = "uvicorn --no-access-log workers_asgi:app"


@pytest.fixture
def options():
    """Options of StickyWorkers for a group with a name, as JSON, and its directory."""
    with tempfile.TemporaryDirectory(prefix="sticky-") as folder:
        yield json.dumps({"name": "pair", "directory": f"{folder}/run"})


def test_app_that_has_the_name_of_another_apps_workers_is_refused_at_its_start(serve, launch, until, options):
    first = serve(*ALONE.split(), variables={"STICKY": options})
    assert first.client().request("/echo").status == 200
    other = launch(*ALONE.replace("workers_asgi", "workers_second_asgi").split(), variables={"STICKY": options})
    assert other.process.wait() != 0
    until(lambda: "this process serves workers_second_asgi:Starlette" in other.output, "the reason")
    assert "name='pair' is that of workers that serve workers_asgi:Starlette" in other.output
    assert f"(process {first.process.pid})" in other.output


def test_default_cookies_of_two_apps_on_one_host_name_are_apart(serve):
    with tempfile.TemporaryDirectory(prefix="sticky-") as folder:
        options = [json.dumps({"name": name, "directory": f"{folder}/run"}) for name in ("shop", "cart")]
        apps = [serve(*ALONE.split(), variables={"STICKY": each}) for each in options]
        clients = [served.client() for served in apps]
        clients[1].jar = clients[0].jar
        assert [bool(client.request("/count?client=c").values("set-cookie")) for client in clients] == [True, True]
        assert len(clients[0].jar) == 2
        for client in clients * 2:
            assert client.request("/count?client=c").values("set-cookie") == []
