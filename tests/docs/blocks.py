"""The fenced blocks of README.md, CONTRIBUTING.md and docs/, and how each is meant to be run.

An HTML comment on the lines before a fence, which no reader of the rendered page sees, says what is special about it:

- `<!-- continues -->`: the block is run after the block before it, in the same namespace.
- `<!-- fragment: reason -->`: the block only shows a part of something and is not run.
- `<!-- run -->`: a block of a shell that is run. Other blocks of a shell are not.
- `<!-- app: name/path -->`: a file of an app, which `tests/apps` runs.
- `<!-- commands: name -->`: a block of a shell with the command lines that serve this app.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

#: The languages that a fence may name.
LANGUAGES = ("haproxy", "ini", "nginx", "python", "sh", "text", "toml", "yaml")

_FENCE = re.compile(
    r"^(?P<indent> *)(?P<fence>```+)(?P<language>[^\n`]*)\n(?P<code>.*?)^ *(?P=fence)[ \t]*$", re.MULTILINE | re.DOTALL
)
_MARK = re.compile(r"<!-- (app|commands|continues|run|fragment)(?:: ([^\n]*?))? -->\s*\Z")


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: Path
    line: int  #: of the first line of code
    language: str
    code: str
    mark: str = ""  #: `app`, `commands`, `continues`, `fragment` or `run`; empty for none
    reason: str = ""  #: why it is a fragment; the file of an app; the apps of command lines

    @property
    def id(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def __str__(self) -> str:
        return self.id


def blocks_of(page: Path) -> Iterator[Block]:
    """Return the fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    for found in _FENCE.finditer(text):
        before = text[: found.start()]
        mark = _MARK.search(before)
        indent = found["indent"]
        code = "".join(line.removeprefix(indent) for line in found["code"].splitlines(keepends=True))
        yield Block(
            page,
            before.count("\n") + 2,
            found["language"].strip(),
            code,
            mark[1] if mark else "",
            (mark[2] or "") if mark else "",
        )


ALL = [block for page in PAGES for block in blocks_of(page)]


def chains() -> Iterator[list[Block]]:
    """Return the Python blocks that are run, each with those that continue it."""
    for page in PAGES:
        chain: list[Block] = []
        for block in blocks_of(page):
            if block.language != "python" or block.mark in ("app", "fragment"):
                continue
            if block.mark == "continues":
                assert chain, f"{block}: there is no block before it to continue"
                chain.append(block)
            else:
                if chain:
                    yield chain
                chain = [block]
        if chain:
            yield chain
