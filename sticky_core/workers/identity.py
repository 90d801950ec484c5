"""The identity of an app: by which name processes know that they run the same one.

A module-level function or class has a name of its own: `main:app`. Any other app is an object that code has made
(`FastAPI()`, a closure of a decorator in some library): it is named by the module that constructs the middleware
and its type, `main:FastAPI`, and a number where that module makes several. The file's path is no part of it: it changes
with each release.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import PurePath
from types import FrameType
from typing import Final

_OWN_PACKAGES: Final = frozenset({"sticky_core", "sticky_asgi", "sticky_wsgi"})
#: the module that a process was started with, and the name of that module in a child of multiprocessing
_MAIN: Final = ("__main__", "__mp_main__")

_made: Counter[tuple[str, str]] = Counter()  # apps that this process has named, by their module and type


def app_identity(app: object) -> str:
    """Return the identity of `app`, around which the caller of this package's code constructs a middleware."""
    module, name = getattr(app, "__module__", None), getattr(app, "__qualname__", None)
    if isinstance(module, str) and isinstance(name, str) and "." not in name and not hasattr(app, "__self__"):
        return f"{_public_name(module)}:{name}"
    owner = getattr(app, "__self__", app)  # a method, such as Flask's `wsgi_app`, belongs to its object
    module = _constructing_module()
    kind = name.partition(".")[0] if isinstance(name, str) and owner is app else type(owner).__qualname__
    key = ("__main__" if module in _MAIN else module), kind
    _made[key] += 1
    number = f"#{_made[key]}" if _made[key] > 1 else ""
    return f"{_public_name(module)}:{kind}{number}"


def _constructing_module() -> str:
    """Return the name of the module that has called this package."""
    frame: FrameType | None = sys._getframe(1)  # pyright: ignore[reportPrivateUsage] - `inspect` takes long to import
    while frame is not None:
        module = frame.f_globals.get("__name__")
        if isinstance(module, str) and module.partition(".")[0] not in _OWN_PACKAGES:
            return module
        frame = frame.f_back
    return ""


def _public_name(module: str) -> str:
    """Return the name by which other processes import a module: `python main.py`, `python -m main` and its children of
    multiprocessing run what others import as `main`.
    """
    if module not in _MAIN:
        return module
    main = sys.modules.get(module)
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return str(spec.name).removesuffix(".__main__")
    file = getattr(main, "__file__", None)
    return PurePath(file).stem if isinstance(file, str) else "__main__"
