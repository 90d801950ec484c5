"""What the pages of docs/recipes show: the files of the apps, and the command lines that serve them.

Both are what the tests here run. An HTML comment on the line before a fence says which app it belongs to:

- `<!-- app: fastapi/main.py -->`: the block is the file `main.py` of the app `fastapi`.
- `<!-- commands: fastapi -->`: the lines of this block of a shell that start with the name of a server each serve the
  app `fastapi`. A block may be of several apps: `<!-- commands: fastapi, chat -->`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache

from tests.docs.blocks import ROOT, Block, blocks_of

FOLDER = ROOT / "docs" / "recipes"

#: The servers, as a command line begins.
SERVERS = ("granian", "gunicorn", "hypercorn", "uvicorn", "waitress-serve")


def blocks(mark: str) -> Iterator[Block]:
    """Return the blocks of all recipes that have this mark."""
    for page in sorted(FOLDER.glob("*.md")):
        yield from (block for block in blocks_of(page) if block.mark == mark)


@cache
def files() -> Mapping[str, Mapping[str, str]]:
    """Return the files that the pages show: for each app, the text by the path in the app's folder."""
    found: dict[str, dict[str, str]] = {}
    for block in blocks("app"):
        app, _, path = block.reason.partition("/")
        assert path and path not in found.get(app, {}), f"{block}: say once <!-- app: name/path -->"
        found.setdefault(app, {})[path] = block.code
    return found


@cache
def commands() -> Mapping[str, list[str]]:
    """Return the command lines that the pages show for each app."""
    found: dict[str, list[str]] = {}
    for block in blocks("commands"):
        lines = [line.partition("  #")[0].strip() for line in block.code.splitlines() if line.startswith(SERVERS)]
        assert lines, f"{block}: no line starts with the name of a server"
        for app in block.reason.split(", "):
            found.setdefault(app, []).extend(lines)
    return found
