"""Read the imports of our packages: which module imports which, at what line, and whether at import time."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FACES = ("sticky_asgi", "sticky_wsgi")
PACKAGES = ("sticky_core", *FACES)


@dataclass(frozen=True)
class Import:
    """One import statement's target."""

    module: str  #: the importing module, dotted
    target: str  #: the imported module if it is ours, else the dotted name as written
    line: int
    at_import: bool  #: neither inside a function nor under TYPE_CHECKING

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.target}"


def modules_of(package: str) -> dict[str, Path]:
    """The modules of a package by dotted name; a package's `__init__` has the package's name."""
    files = sorted((ROOT / package).rglob("*.py"))
    return {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


OURS = {name: file for package in PACKAGES for name, file in modules_of(package).items()}


def read_imports(source: str, module: str, is_package: bool = False) -> Iterator[Import]:
    """Every import in `source`: at the top, in a function, under TYPE_CHECKING, relative or absolute."""

    def walk(node: ast.AST, at_import: bool) -> Iterator[Import]:
        match node:
            case ast.Import(names=names):
                for name in names:
                    yield Import(module, name.name, node.lineno, at_import)
            case ast.ImportFrom(module=origin, names=names, level=level):
                here = module.split(".") if is_package else module.split(".")[:-1]
                above = here[: len(here) - level + 1] if level else []
                package = ".".join([*above, *([origin] if origin else [])])
                # `from sticky_core.http import cookies` imports the module, not the package.
                targets = {full if (full := f"{package}.{name.name}") in OURS else package for name in names}
                for target in sorted(targets):
                    yield Import(module, target, node.lineno, at_import)
            case ast.If(test=ast.Name("TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")):
                for typed in node.body:
                    yield from walk(typed, False)
                for untyped in node.orelse:
                    yield from walk(untyped, at_import)
            case ast.If(test=ast.UnaryOp(op=ast.Not(), operand=ast.Name("TYPE_CHECKING"))):
                for untyped in node.body:
                    yield from walk(untyped, at_import)
                for typed in node.orelse:
                    yield from walk(typed, False)
            case _:
                inside = not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                for child in ast.iter_child_nodes(node):
                    yield from walk(child, at_import and inside)

    yield from walk(ast.parse(source), True)


def imports_of(*packages: str) -> Iterator[Import]:
    """Every import in every module of `packages`."""
    for package in packages:
        for module, file in modules_of(package).items():
            yield from read_imports(file.read_text(encoding="utf-8"), module, is_package=file.name == "__init__.py")


def part_of(module: str) -> str:
    """The sub-package or loose module directly below the package: `sticky_core.balance.hashing` is in `balance`."""
    return module.split(".")[1] if "." in module else ""


def loose_modules(package: str) -> list[str]:
    """The modules that lie directly in the package, `__init__` left out."""
    return sorted(file.stem for file in (ROOT / package).glob("*.py") if file.stem != "__init__")


def parts_of(package: str) -> set[str]:
    """The sub-packages and loose modules of `package`."""
    return {part_of(module) for module in modules_of(package)} - {""}


def import_graph(imports: Iterable[Import]) -> dict[str, set[str]]:
    """Which of our modules imports which other one."""
    graph: defaultdict[str, set[str]] = defaultdict(set)
    for each in imports:
        if each.target in OURS and each.target != each.module:
            graph[each.module].add(each.target)
    return graph


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """The groups of nodes that reach each other (strongly connected components of more than one; Tarjan)."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        order[node] = lowest[node] = len(order)
        stack.append(node)
        for target in sorted(graph.get(node, ())):
            if target not in order:
                visit(target)
                lowest[node] = min(lowest[node], lowest[target])
            elif target in stack:
                lowest[node] = min(lowest[node], order[target])
        if lowest[node] == order[node]:
            at = stack.index(node)
            group = sorted(stack[at:])
            del stack[at:]
            if len(group) > 1:
                found.append(group)

    for node in sorted(graph):
        if node not in order:
            visit(node)
    return found


def sizes() -> tuple[list[tuple[int, str]], list[tuple[int, str]]]:
    """Lines of every class, and of every file, of our packages, largest first."""
    classes: list[tuple[int, str]] = []
    files: list[tuple[int, str]] = []
    for module, file in OURS.items():
        text = file.read_text(encoding="utf-8")
        files.append((text.count("\n"), module))
        classes += (
            ((node.end_lineno or 0) - node.lineno + 1, f"{module}.{node.name}")
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.ClassDef)
        )
    return sorted(classes, reverse=True), sorted(files, reverse=True)
