"""The pytest fixture `sticky_cluster`: makes clusters of ASGI and of WSGI apps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from sticky_core.errors import ConfigError
from sticky_core.target import App, Factory, possible_kinds, require_factory, require_made_app

if TYPE_CHECKING:
    from sticky_core.testing.cluster import Cluster, ClusterFactory


@pytest.fixture
def sticky_cluster() -> Iterator[ClusterFactory]:
    """Make clusters: `cluster = sticky_cluster(create_app, replicas=3)`. A cluster starts at once, and ends with the
    test. Whether the app is an ASGI or a WSGI app is recognised by its arguments.
    """
    with ExitStack() as stack:

        def start(create_app: Factory, *args: Any, **options: Any) -> Cluster[Any]:
            require_factory(create_app, "sticky_cluster", "sticky_cluster(create_app)")
            app = create_app()
            if not possible_kinds(app) & {"asgi", "wsgi"}:
                require_made_app(app, create_app, "asgi")
            made = [app]  # becomes the first replica: `create_app` is called once for each
            cluster = _cluster_class(app)(lambda: made.pop() if made else create_app(), *args, **options)
            return stack.enter_context(cluster)

        yield start


def _cluster_class(app: App) -> Any:
    """Return the `Cluster` of the face that serves `app`. Only that face is imported: the test client of the other may
    not be installed.
    """
    found = possible_kinds(app)
    if "asgi" in found and "wsgi" not in found:
        from sticky_asgi.testing import Cluster as ASGICluster

        return ASGICluster
    if "wsgi" in found and "asgi" not in found:
        from sticky_wsgi.testing import Cluster as WSGICluster

        return WSGICluster
    raise ConfigError(
        f"{app!r} does not show whether it is an ASGI app (3 arguments) or a WSGI app (2): "
        "use Cluster of sticky_asgi.testing or of sticky_wsgi.testing"
    )
