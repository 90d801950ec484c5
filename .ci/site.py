"""Check a built documentation site: `site.py FOLDER`. No page loads anything from elsewhere, and search has an index.

A reader's browser then makes no request to another host, and the site works from a disk. Links to other sites are
links, and are not loaded. Standard library only.
"""

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

#: Elements, and the attribute that names what is loaded together with the page.
LOADED = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "link": "href",
}

#: `rel` of a link element that is not loaded.
NOT_LOADED = {"canonical", "next", "prev", "edit", "alternate"}

_URL_IN_CSS = re.compile(r"""(?:url\(|@import)\s*["']?(?:https?:)?//""")


class Loaded(HTMLParser):
    """Collect the addresses on other hosts that a page loads."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        address = given.get(LOADED.get(tag, "")) or ""
        if tag == "link" and NOT_LOADED & set((given.get("rel") or "").split()):
            return
        if address.startswith(("http:", "https:", "//")):
            self.found.append(address)


def problems(site: Path) -> list[str]:
    """Return what is wrong with the site, a line each."""
    found: list[str] = []
    pages = sorted(site.rglob("*.html"))
    if len(pages) < 20:
        found.append(f"{site} has {len(pages)} pages: was it built?")
    for page in pages:
        loaded = Loaded()
        loaded.feed(page.read_text(encoding="utf-8"))
        found += [f"{page.relative_to(site)} loads {address}" for address in loaded.found]
    for style in sorted(site.rglob("*.css")):
        if _URL_IN_CSS.search(style.read_text(encoding="utf-8")):
            found.append(f"{style.relative_to(site)} loads something from another host")
    index = site / "search" / "search_index.json"
    if not index.is_file() or not json.loads(index.read_text(encoding="utf-8"))["docs"]:
        found.append("there is no search index")
    return found


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    if wrong := problems(Path(sys.argv[1])):
        raise SystemExit("\n".join(wrong))
    print("the site loads nothing from other hosts")
