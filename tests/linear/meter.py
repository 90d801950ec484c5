"""A meter of operations: it counts how often loops of the package run, and how many characters or items are looked at,
searched, copied or built.

`install` lets the modules of the package be imported with their code changed: each loop, each slice, sum, display and
call of a function of another package adds to a counter. Counts do not depend on the speed of the machine, so a reader
can be compared with itself: twice the input may take twice the count, not four times.

It has to be installed before the package is imported, so the readers are measured in a process of their own.
"""

from __future__ import annotations

import ast
import builtins
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType
from typing import Any

PACKAGES = ("sticky_core", "sticky_asgi", "sticky_wsgi")

_TEXTS = (str, bytes, bytearray)
_SIZED = (str, bytes, bytearray, list, tuple)
_BUILT = (*_SIZED, dict, set, frozenset)

#: functions that look at none of their arguments, or at a bounded part
_CHEAP = frozenset(
    (
        *("add", "append", "appendleft", "cast", "callable", "discard", "endswith", "get", "getattr", "hasattr"),
        *("hash", "id", "isinstance", "issubclass", "items", "iter", "keys", "len", "next", "popleft", "put"),
        *("setattr", "setdefault", "startswith", "values"),
    )
)


class Meter:
    """The counter, and the functions that the changed code calls."""

    def __init__(self) -> None:
        self.count = 0

    def iterate(self, items: Iterable[Any]) -> Iterator[Any]:
        """Yield the items of a loop, and count them."""
        for item in items:
            self.count += 1
            yield item

    def turn(self) -> None:
        """Count a turn of a `while`."""
        self.count += 1

    def built(self, value: Any) -> Any:
        """Count the size of a new value: a slice, a sum, a display."""
        if isinstance(value, _BUILT):
            self.count += len(value)
        return value

    def searched(self, value: Any) -> Any:
        """Count the size of what `in` searches."""
        if isinstance(value, _SIZED):
            self.count += len(value)
        return value

    def grown(self, value: Any) -> None:
        """Count the size of what `+=` has made: a list grows in place, a text is copied."""
        if isinstance(value, (str, bytes, tuple)):
            self.count += len(value)

    def call(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Call a function. One of another package counts the size of what it is called on, of its arguments and of its
        result; those of this package count by themselves.
        """
        result = function(*args, **options)
        self.count += 1
        if not (getattr(function, "__module__", None) or "").startswith(PACKAGES):
            self.count += _cost(function, args, result)
        return result


def _cost(function: Callable[..., Any], args: Sequence[Any], result: Any) -> int:
    name = getattr(function, "__name__", "")
    on: Any = getattr(function, "__self__", None)
    if name in _CHEAP:
        return 0
    if isinstance(on, re.Pattern):
        return _cost_of_pattern(name, args, result)
    if name == "raw_decode":  # of a JSON decoder
        return int(result[1]) - int(args[1])
    if name in ("find", "index") and isinstance(on, _TEXTS) and len(args) > 1:
        return (int(result) + 1 if result >= 0 else len(on)) - int(args[1])
    if name in ("rfind", "rindex") and isinstance(on, _TEXTS) and len(args) > 2:
        return max(int(args[2]), 0) - max(int(result), int(args[1]))
    if name == "extend" or (name == "pop" and not args):
        on = None
    total = sum(len(arg) for arg in args if isinstance(arg, _SIZED))
    if isinstance(on, _SIZED):
        total += len(on)
    if isinstance(result, _BUILT) and not isinstance(on, dict):
        total += len(result)
    return total


def _cost_of_pattern(name: str, args: Sequence[Any], result: Any) -> int:
    text = args[1] if name in ("sub", "subn") else args[0]
    start = args[1] if len(args) > 1 and name in ("match", "search", "fullmatch") else 0
    if isinstance(result, re.Match):
        return result.end() - start + 1
    return len(text) - start


class _Changes(ast.NodeTransformer):
    """Lets code call the meter."""

    def _call(self, what: str, *args: ast.expr) -> ast.Call:
        return ast.Call(ast.Attribute(ast.Name("__meter__", ast.Load()), what, ast.Load()), list(args), [])

    def visit_For(self, node: ast.For) -> ast.AST:
        self.generic_visit(node)
        node.iter = self._call("iterate", node.iter)
        return node

    def visit_While(self, node: ast.While) -> ast.AST:
        self.generic_visit(node)
        node.body.insert(0, ast.Expr(self._call("turn")))
        return node

    def visit_comprehension(self, node: ast.comprehension) -> ast.AST:
        self.generic_visit(node)
        if not node.is_async:
            node.iter = self._call("iterate", node.iter)
        return node

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        self.generic_visit(node)
        is_read_slice = isinstance(node.ctx, ast.Load) and isinstance(node.slice, ast.Slice)
        return self._call("built", node) if is_read_slice else node

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        return self._call("built", node) if isinstance(node.op, (ast.Add, ast.Mult, ast.Mod)) else node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        self.generic_visit(node)
        return self._call("built", node)

    def visit_FormattedValue(self, node: ast.FormattedValue) -> ast.AST:
        node.value = self.visit(node.value)  # the format is a JoinedStr that can't be anything else
        return node

    def visit_List(self, node: ast.List) -> ast.AST:
        return self._display(node, node.elts, isinstance(node.ctx, ast.Load))

    def visit_Tuple(self, node: ast.Tuple) -> ast.AST:
        return self._display(node, node.elts, isinstance(node.ctx, ast.Load))

    def visit_Set(self, node: ast.Set) -> ast.AST:
        return self._display(node, node.elts, True)

    def visit_Dict(self, node: ast.Dict) -> ast.AST:
        self.generic_visit(node)
        return self._call("built", node) if None in node.keys else node

    def _display(self, node: ast.expr, items: list[ast.expr], is_read: bool) -> ast.AST:
        self.generic_visit(node)
        has_copies = is_read and any(isinstance(item, ast.Starred) for item in items)
        return self._call("built", node) if has_copies else node

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        node.comparators = [
            self._call("searched", other) if isinstance(operator, (ast.In, ast.NotIn)) else other
            for operator, other in zip(node.ops, node.comparators, strict=True)
        ]
        return node

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.AST | list[ast.AST]:
        self.generic_visit(node)
        if not isinstance(node.op, ast.Add):
            return node
        node.value = self._call("built", node.value)
        target = ast.parse(ast.unparse(node.target), mode="eval").body
        return [node, ast.Expr(self._call("grown", target))]

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id in ("super", "globals"):
            return node  # they look at the frame that calls them
        call = self._call("call", node.func, *node.args)
        call.keywords = node.keywords
        return call

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        if node.value is not None:
            node.value = self.visit(node.value)
        return node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        return node


def metered(source: str | bytes, path: str) -> CodeType:
    """Return the code of a module, changed so that it calls the meter `__meter__`."""
    tree = ast.fix_missing_locations(_Changes().visit(ast.parse(source)))
    code: CodeType = compile(tree, path, "exec", dont_inherit=True)
    return code


class _Loader(SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return metered(self.get_data(path), path)


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] not in PACKAGES:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.origin is not None and spec.origin.endswith(".py"):
            spec.loader = _Loader(fullname, spec.origin)
        return spec


def install() -> Meter:
    """Return a meter of what the package does, which is imported after this."""
    assert not any(package in sys.modules for package in PACKAGES), "the package has been imported already"
    meter = Meter()
    builtins.__dict__["__meter__"] = meter
    sys.meta_path.insert(0, _Finder())
    return meter
