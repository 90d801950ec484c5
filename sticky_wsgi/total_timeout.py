"""The transaction of a request with a limit for all its attempts (`Timeouts(total=...)`), on WSGI."""

from __future__ import annotations

from sticky_core.errors import Failure, ServerFailure
from sticky_wsgi.clients import disconnect_check
from sticky_wsgi.messages import Environ, Transaction


class LimitedTransaction(Transaction):
    """A transaction with an attempt at an upstream that ends when the time is over. It stands in the place of
    `Transaction`, after the mixins.

    WSGI can't interrupt a call: a request to an app in this process goes on, and its response is passed on.
    """

    __slots__ = ()

    def forwarded(self) -> Environ:
        environ = super().forwarded()
        server = self.tried[-1]
        if isinstance(server.config.target, str):
            client_gone = disconnect_check(environ)

            def check_both() -> bool:
                if self.seconds_left == 0 and not self.decision.status:
                    raise ServerFailure(Failure.TOTAL_TIMEOUT, server.name)
                return client_gone()

            # `disconnect_check` looks up this key first, so that an upstream's connection calls this function ten times
            # a second while it waits.
            environ["waitress.client_disconnected"] = check_both
        return environ
