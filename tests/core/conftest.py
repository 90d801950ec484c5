"""What the tests of the core share: a request and a reply that are nothing but values; and properties are not
hurried, since a busy machine is no defect."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import settings

settings.register_profile("unhurried", parent=settings.default, deadline=None)
settings.load_profile("unhurried")


class Asked:
    """A request as the core sees it."""

    def __init__(self, cookies: Sequence[str] = (), method: str = "GET", secure: bool = False) -> None:
        self.cookie_key: Hashable = tuple(cookies) or None
        self.kept: Sequence[object] | None = None
        self.method = method
        self.secure = secure
        self._came = tuple(cookies)

    @property
    def cookies(self) -> tuple[str, ...]:
        return self._came if self.kept is None else tuple(map(str, self.kept))

    def keep(self, texts: Sequence[str]) -> None:
        self.kept = list(texts)


@dataclass
class Told:
    """The head of an answer, as a list of headers."""

    status: int = 200
    headers: list[tuple[str, str]] = field(default_factory=list)

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name]

    @property
    def sets_cookies(self) -> bool:
        return self.set_cookies != []

    @property
    def set_cookies(self) -> list[str]:
        return self.values("set-cookie")

    @property
    def cache_control(self) -> str:
        return ",".join(self.values("cache-control"))

    def edit_cookies(self, new: Callable[[str], str | None]) -> None:
        edited = [(key, new(value) if key == "set-cookie" else value) for key, value in self.headers]
        self.headers = [(key, value) for key, value in edited if value is not None]

    def add(self, name: str, value: str) -> None:
        self.headers.append((name, value))


# Each call makes a new one, so properties may use them: hypothesis wants fixtures that outlive an example.


@pytest.fixture(scope="session")
def ask() -> type[Asked]:
    return Asked


@pytest.fixture(scope="session")
def tell() -> type[Told]:
    return Told
