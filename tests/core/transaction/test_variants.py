"""Which transaction class serves a snapshot, for both faces."""

from typing import Any

import pytest

from sticky_asgi import apps as asgi
from sticky_core.backend.backend import Backend
from sticky_core.balance import Ewma
from sticky_core.http.timeouts import Timeouts
from sticky_core.server.server import Server
from sticky_core.transaction.budgeted_retry import BudgetedRetry
from sticky_core.transaction.reporting import Reporting
from sticky_core.transaction.status_retry import StatusRetry
from sticky_core.transaction.total_timeout import TotalTimeout
from sticky_wsgi import apps as wsgi


async def app(scope: object, receive: object, send: object) -> None: ...


@pytest.fixture(params=[asgi, wsgi], ids=["asgi", "wsgi"])
def face(request):
    return request.param


@pytest.mark.parametrize("observes", [False, True], ids=["", "observes"])
@pytest.mark.parametrize("retries", [False, True], ids=["", "retries statuses"])
@pytest.mark.parametrize("total", [None, 30], ids=["", "a limit"])
@pytest.mark.parametrize("budget", [None, 0.2], ids=["", "a budget"])
@pytest.mark.parametrize("url", [False, True], ids=["app", "URL"])
def test_class_has_the_mixins_that_a_snapshot_needs_and_no_others(face, observes, retries, url, budget, total):
    options: dict[str, Any] = ({"balance": Ewma()} if observes else {}) | ({"retry_on": "503"} if retries else {})
    options |= {"retry_budget": budget, "timeouts": Timeouts(total=total)}
    servers = [Server(name, "http://10.0.0.1" if url else app) for name in ("s1", "s2")]
    snapshot = Backend("web", servers, **options).snapshot
    variant = face.VARIANTS.select(snapshot)
    assert issubclass(variant, face.Transaction)
    assert issubclass(variant, Reporting) is observes
    assert issubclass(variant, StatusRetry) is retries
    assert issubclass(variant, BudgetedRetry) is (budget is not None)
    assert issubclass(variant, TotalTimeout) is (total is not None)
    assert variant.__name__.count("Limited") == (total is not None)
    assert not hasattr(variant(), "__dict__")
    assert face.VARIANTS.select(snapshot) is variant, "built once"


def test_snapshot_that_needs_nothing_has_the_plain_class(face):
    snapshot = Backend("web", [Server("s1", app)]).snapshot
    assert face.VARIANTS.select(snapshot) is face.Transaction
