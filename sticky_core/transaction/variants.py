"""Which transaction class serves the requests of a snapshot. What only some requests need is a mixin, so that the
others do not pay for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar, cast

from sticky_core.backend.snapshot import Snapshot
from sticky_core.transaction.reporting import Reporting
from sticky_core.transaction.transaction import Transaction

T = TypeVar("T", bound=Transaction[Any, Any])


class TransactionVariants(Generic[T]):
    """The transaction classes of one face.

    - `plain`: the face's transaction class.
    - `status_retry`: its subclass that may hold responses back.
    - `import_limited`: returns its subclass with a limit for all attempts, which stands in its place.
    """

    def __init__(self, plain: type[T], status_retry: type[T], import_limited: Callable[[], type[T]]) -> None:
        self._plain = plain
        self._status_retry = status_retry
        self._import_limited = import_limited
        self._built: dict[tuple[type, ...], type[T]] = {}

    def select(self, snapshot: Snapshot) -> type[T]:
        """Return the class for the requests of `snapshot`. Each combination is built once."""
        bases = self._bases(snapshot)
        variant = self._built.get(bases)
        if variant is None:
            built: type[T] = _build(bases, {})
            variant = self._built[bases] = built
        return variant

    def build_for_peers(
        self, snapshot: Snapshot, mixins: Sequence[type[Transaction[Any, Any]]], **attributes: object
    ) -> type[T]:
        """Build a class for requests that may be forwarded to other workers: with these mixins, and with class
        attributes that belong to one group of workers.
        """
        return _build((*mixins, *self._bases(snapshot)), attributes)

    def _bases(self, snapshot: Snapshot) -> tuple[type, ...]:
        """Return the base classes that `snapshot` needs. What comes first overrides what comes later."""
        bases: list[type] = []
        if snapshot.observes:
            bases.append(Reporting)
        if snapshot.total_timeout is not None:
            from sticky_core.transaction.total_timeout import TotalTimeout

            bases.append(TotalTimeout)
        if snapshot.retry_budget is not None:
            from sticky_core.transaction.budgeted_retry import BudgetedRetry

            bases.append(BudgetedRetry)
        if snapshot.retries.statuses:
            bases.append(self._status_retry)
        if snapshot.total_timeout is not None:
            bases.append(self._import_limited())
        elif not snapshot.retries.statuses:
            bases.append(self._plain)
        return tuple(bases)


def _build(bases: tuple[type, ...], attributes: dict[str, object]) -> type[Any]:
    if len(bases) == 1 and not attributes:
        return bases[0]
    name = "".join(base.__name__.removesuffix("Transaction") for base in bases)
    return cast("type[Any]", type(f"{name}Transaction", bases, {"__slots__": (), **attributes}))
