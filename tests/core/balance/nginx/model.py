"""The smooth round robin as nginx describes it, for comparison."""

from collections.abc import Sequence


class PlainModel:
    """nginx's `ngx_http_upstream_get_peer`: the credit of every server grows, the highest pays for all."""

    def __init__(self, weights: Sequence[int]) -> None:
        self.weights = list(weights)
        self.current = [0] * len(weights)

    def next(self, avoid: Sequence[int] = (), bound: int | None = None) -> int | None:
        if bound is not None and self.current[bound] <= self.weights[bound] - sum(self.weights):
            return bound
        taking = [n for n, weight in enumerate(self.weights) if weight and n not in avoid]
        if not taking:
            return None
        for number in taking:
            self.current[number] += self.weights[number]
        best = max(taking, key=lambda number: (self.current[number], -number)) if bound is None else bound
        self.current[best] -= sum(self.weights[number] for number in taking)
        return best
