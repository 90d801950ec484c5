"""A cluster of shops in each variant."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from sticky_core.testing.cluster import Cluster
from tests.faces.cluster.shop import VARIANTS, Shop, Variant


@pytest.fixture
def shop() -> Shop:
    return Shop()


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> Variant:
    return VARIANTS[request.param]


@pytest.fixture
def start(variant: Variant, shop: Shop) -> Iterator[Callable[..., Cluster[Any]]]:
    """A function that makes clusters of shops, which end with the test."""
    with ExitStack() as stack:

        def make(replicas: int = 3, **options: Any) -> Cluster[Any]:
            cluster = variant.cluster(variant.create(shop), replicas, **variant.options, **options)
            return stack.enter_context(cluster) if variant.started else cluster

        yield make


@pytest.fixture
def cluster(start: Callable[..., Cluster[Any]]) -> Cluster[Any]:
    """A cluster with three replicas and default options."""
    return start()
