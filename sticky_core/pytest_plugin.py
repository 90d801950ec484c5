"""The pytest fixture `sticky_cluster`: a factory of clusters, for ASGI and WSGI apps alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from sticky_core.errors import ConfigError
from sticky_core.target import App, Factory, possible_kinds, require_factory

if TYPE_CHECKING:
    from sticky_core.testing.cluster import Cluster, ClusterFactory


@pytest.fixture
def sticky_cluster() -> Iterator[ClusterFactory]:
    """`cluster = sticky_cluster(create_app, replicas=3)`: begun now, ended with the test. It tells ASGI apps from WSGI
    apps.
    """
    with ExitStack() as stack:

        def begin(create_app: Factory, *args: Any, **options: Any) -> Cluster[Any]:
            require_factory(create_app, "sticky_cluster")
            app = create_app()
            made = [app]  # the app that was looked at is the first replica's
            cluster = _kind(app)(lambda: made.pop() if made else create_app(), *args, **options)
            return stack.enter_context(cluster)

        yield begin


def _kind(app: App) -> Any:
    # imported late: who tests a Flask app need not have Starlette's test client, and the other way round
    found = possible_kinds(app)
    if "asgi" in found and "wsgi" not in found:
        from sticky_asgi.testing import Cluster as ASGICluster

        return ASGICluster
    if "wsgi" in found and "asgi" not in found:
        from sticky_wsgi.testing import Cluster as WSGICluster

        return WSGICluster
    raise ConfigError(
        f"{app!r} does not tell whether it is an ASGI app (3 arguments) or a WSGI app (2): "
        "use Cluster of sticky_asgi.testing or of sticky_wsgi.testing"
    )
