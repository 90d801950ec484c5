"""Whether gevent or eventlet has replaced the threads and sockets of this process: workers can't serve their peers with
those.
"""

from __future__ import annotations

import sys
from typing import Any, Final

#: the modules with the functions that say what is replaced, the names of these functions, and what they call the
#: modules that workers need
_LIBRARIES: Final = (
    ("gevent", "gevent.monkey", "is_module_patched", ("socket", "threading", "selectors")),
    ("eventlet", "eventlet.patcher", "is_monkey_patched", ("socket", "thread", "select")),
)


def patching_library() -> str | None:
    """Return `"gevent"` or `"eventlet"`, whichever has replaced threads or sockets in this process; None: neither has.
    Nothing is imported: a library that is not loaded has replaced nothing.
    """
    for library, module, function, names in _LIBRARIES:
        is_patched: Any = getattr(sys.modules.get(module), function, None)
        if is_patched is not None and any(is_patched(name) for name in names):
            return library
    return None


def patching_problem() -> str | None:
    """Return why StickyWorkers can't work in this process, and what to do; None if no library has patched it."""
    library = patching_library()
    if library is None:
        return None
    return (
        f"StickyWorkers: {library} has replaced the threads and sockets of this process, and workers would wait for "
        "each other without end: run gunicorn -k gthread --threads 100, or an ASGI app under uvicorn or gunicorn -k "
        "asgi. With one worker, leave StickyWorkers out"
    )
