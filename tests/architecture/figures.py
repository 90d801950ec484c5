"""Print the figures of the architecture: `python -m tests.architecture.figures`.

A test holds them within bounds; this shows how far from the bounds they are, and which class and file are largest.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.architecture.imports import (
    FACES,
    OURS,
    PACKAGES,
    Import,
    circles,
    import_graph,
    imports_of,
    loose_modules,
    part_of,
    sizes,
)
from tests.architecture.layers import CORE

FLOOR_OF = {part: floor for floor, parts in enumerate(CORE) for part in parts}


@dataclass(frozen=True)
class Size:
    """A class or a file and its lines."""

    lines: int
    name: str

    def __str__(self) -> str:
        return f"{self.lines} lines ({self.name})"


@dataclass(frozen=True)
class Figures:
    """What is counted in the three packages."""

    circles: list[list[str]]
    upward: list[Import]
    loose: list[str]
    largest_class: dict[str, Size]
    largest_file: dict[str, Size]

    def __str__(self) -> str:
        lines = [
            f"import circles: {len(self.circles)}",
            f"upward imports: {len(self.upward)}",
            f"loose modules in sticky_core: {len(self.loose)} ({' '.join(self.loose)})",
            *(f"largest class in {package}: {size}" for package, size in self.largest_class.items()),
            *(f"largest file in {package}: {size}" for package, size in self.largest_file.items()),
        ]
        return "\n".join(lines)


def upward_imports() -> list[Import]:
    """Return the imports inside the core that point to the same floor or a higher one."""
    return [
        each
        for each in imports_of("sticky_core")
        if each.target in OURS and (target := part_of(each.target)) and (importing := part_of(each.module))
        if target != importing and FLOOR_OF[target] >= FLOOR_OF[importing]
    ]


def figures() -> Figures:
    """Count everything."""
    classes, files = sizes()

    def largest(of: list[tuple[int, str]], package: str) -> Size:
        return next(Size(lines, name) for lines, name in of if name.startswith(f"{package}."))

    return Figures(
        circles=circles(import_graph(imports_of("sticky_core", *FACES))),
        upward=upward_imports(),
        loose=loose_modules("sticky_core"),
        largest_class={package: largest(classes, package) for package in PACKAGES},
        largest_file={package: largest(files, package) for package in PACKAGES},
    )


if __name__ == "__main__":
    print(figures())
