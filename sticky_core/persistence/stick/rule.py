"""One stick rule: the samples that return a key, the table, and whether the key is matched, stored, or both."""

from __future__ import annotations

from sticky_core.deferred.dataclass import dataclass
from sticky_core.http.messages import BodyNeeded, Request, ResponseHead
from sticky_core.persistence.rules import Condition, holds
from sticky_core.samples import response as res
from sticky_core.samples.request import Sample
from sticky_core.stick_table.table import StickTable

#: a key as a stick table holds it
TableKey = int | str | bytes


@dataclass(frozen=True, slots=True)
class StickRule:
    """A rule of the stick engine.

    - `table`: the stick table.
    - `request_samples`: samples of the request. The first that returns a key counts.
    - `response_samples`: samples of the response; the key is stored. The first that returns a key counts.
    - `matches`: a client goes to the server that the table has for the key of its request.
    - `stores`: the key of the request is stored with the server that responds.
    - `updates_only`: an existing entry moves to the server that responds; the rule makes no entry.
    - `when`: the condition under which the rule applies; None: always.
    """

    table: StickTable
    request_samples: tuple[Sample, ...] = ()
    response_samples: tuple[res.Sample, ...] = ()
    matches: bool = False
    stores: bool = False
    updates_only: bool = False
    when: Condition | None = None

    def request_key(self, request: Request) -> TableKey | None:
        """Return the key of a request, or None if no sample returns one."""
        for sample in self.request_samples:
            try:
                key = self.table.key(sample(request))
            except Exception as error:
                request.function_failed("the key of a stick rule", sample, error)
                continue
            if key is not None:
                return key
        return None

    def response_key(self, response: ResponseHead, request: Request) -> TableKey | None:
        """Return the key in the response to `request`, or None if no sample returns one."""
        for sample in self.response_samples:
            try:
                key = self.table.key(sample(response))
            except Exception as error:
                request.function_failed("the key of a stick rule, from a response", sample, error)
                continue
            if key is not None:
                return key
        return None

    def applies_to(self, request: Request) -> bool:
        """Return whether the rule applies to `request`."""
        return self.when is None or holds(self.when, request, "the condition of a stick rule")

    def is_ended_by(self, response: ResponseHead, now: float) -> bool:
        """Return whether a response deletes the cookie with the key. `now`: in seconds since the epoch."""
        return any(sample.ends(response, now) for sample in self.response_samples if isinstance(sample, res.cook))

    def applies_to_response_of(self, request: Request) -> bool:
        """Return whether the rule applies to the response to `request`. It does not if its condition needs a body that
        was not kept.
        """
        try:
            return self.applies_to(request)
        except BodyNeeded:
            return False
