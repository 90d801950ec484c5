"""Print the one command that README.md gives under a heading: `python3 .ci/readme.py "Test it"`.

CI runs what a newcomer copies, and a second copy of the command somewhere else would drift. So the README is the
source, and this script fails if there is not exactly one fenced line to copy. It uses the standard library only,
because it runs before there is an environment.
"""

import re
import sys
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"

# A fence opens with backticks, optionally followed by a language, and closes with the same backticks.
FENCED = re.compile(r"^(?P<fence>```+)[^\n`]*\n(?P<inside>.*?)^(?P=fence)[ \t]*$", re.MULTILINE | re.DOTALL)


def command(readme: str, heading: str) -> str:
    """Return the only line of the only fenced block under `heading`."""
    # Fences are taken out first: inside one a line that starts with `## ` is a comment of a shell, not a heading.
    blocks: list[str] = []

    def take_out(match: re.Match[str]) -> str:
        blocks.append(match["inside"])
        return f"\0{len(blocks) - 1}\0"

    prose = FENCED.sub(take_out, readme)
    _before, *rest = re.split(rf"^## {re.escape(heading)}[ \t]*$", prose, flags=re.MULTILINE)
    if len(rest) != 1:
        raise SystemExit(f"README.md: {len(rest)} headings `## {heading}`, expected one")
    section = re.split(r"^##? ", rest[0], maxsplit=1, flags=re.MULTILINE)[0]
    fenced = [blocks[int(number)] for number in re.findall(r"\0(\d+)\0", section)]
    if len(fenced) != 1:
        raise SystemExit(f"README.md, `## {heading}`: {len(fenced)} fenced blocks, expected one")
    lines = [line for line in fenced[0].splitlines() if line.strip()]
    if len(lines) != 1:
        raise SystemExit(f"README.md, `## {heading}`: {len(lines)} fenced lines, expected one")
    return lines[0].strip()


if __name__ == "__main__":
    print(command(README.read_text(encoding="utf-8"), " ".join(sys.argv[1:])))
