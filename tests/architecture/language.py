"""Words that are not used in this project, and the word to use instead.

A word is looked for in docstrings, comments and the ids of test rows, and in the names that the code defines (classes,
functions, attributes, parameters, variables) where `in_names` says so. To forbid another word, add a row. Where a word
is legitimate, because it is HAProxy's, a library's or plain HTTP, add an `Allowed` with the reason; it may be limited
to some files.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

#: What is read: every Python file below these folders.
FOLDERS = ("sticky_core", "sticky_asgi", "sticky_wsgi", "tests", "benchmarks", "examples", ".ci")

#: The files that list the words, or test that they are found.
THESE = ("tests/architecture/language.py", "tests/architecture/test_language.py")


@dataclass(frozen=True)
class Word:
    """A word that is not used: a regular expression, matched as a whole word, whatever its case."""

    pattern: str
    instead: str
    in_names: bool = False


@dataclass(frozen=True)
class Allowed:
    """A use of a forbidden word that is legitimate: the text around it, the reason, and the files it is limited to."""

    pattern: str
    reason: str
    files: str = "*"


PERSONS = (
    # A server, a worker, a request, a callback or a table is a thing, not a person.
    Word("who|who's", "the server that …, the client that …, the caller"),
    Word("whose", "of which, or name the thing: `the server with the cookie`"),
    Word("whom", "name the thing: the server, the client"),
    Word("whoever|whomever", "the server that …, any request that …", in_names=True),
    Word("nobody", "no server, no client, none", in_names=True),
    Word("somebody|someone", "a server, a client, another process", in_names=True),
    Word("anybody|anyone", "any server, any client", in_names=True),
    Word("everybody|everyone", "all servers, every client", in_names=True),
)

METAPHORS = (
    Word("houses?", "architecture, project", in_names=True),
    Word("rooms?", "slot, space, module", in_names=True),
    Word("doors?", "wait", in_names=True),
    Word("corridors?", "dispatch loop", in_names=True),
    Word("porch", "entry point", in_names=True),
    Word("urns?", "weighted sample", in_names=True),
    Word("bells?", "callback", in_names=True),
    Word("neighbou?rs?", "other backend, peer", in_names=True),
    Word("strangers?", "unknown client, type problem", in_names=True),
    Word("foreigners?", "attach problem", in_names=True),
    Word("twins?", "fallback, equivalent", in_names=True),
    Word("heirs?", "replacement", in_names=True),
    Word("mortal", "in this process", in_names=True),
    Word("errands?", "background command", in_names=True),
    Word("(?:a|the|one|another|other|this|that|its|their|earlier|new) (?:life|lives)", "instance"),
    Word("at work", "runtime, engine"),
    Word("at home", "in its own worker"),
    Word("what lives", "live objects"),
    # Calls are calls.
    Word("(?:is|are|was|were|be|been|being) told", "is notified, is passed, receives"),
    Word("hears?|heard", "receives, is notified", in_names=True),
    Word("lets? go|let_go|letting go", "release", in_names=True),
    Word("whisper|shouts?|listens up", "send, publish"),
)

WORDS = PERSONS + METAPHORS

ALLOWED = (
    Allowed(
        r"(?:HAProxy|nginx)(?:'s|s')? (?:or nginx )?twins?",
        "the option of HAProxy or nginx with the same meaning",
    ),
    Allowed(
        r"/rooms?\b|\brooms?/|\broom=|\(room\)|[`\"']rooms?[`\"']|chat rooms?",
        "a chat room, in paths and parameters of examples",
    ),
    Allowed(r"rooms?", "Socket.IO's word for a group of clients", "*socketio*"),
    Allowed(r"rooms?", "a chat room: the key of the app in these tests", "tests/*workers*"),
    Allowed(r"rooms?", "a chat room", "docs/recipes/*"),
    Allowed(r"rooms?", "a chat room", "tests/apps/*"),
    Allowed(r"\bnobody:", "the user nobody of UNIX"),
)

#: In the documentation a reader is a person; these are not.
PERSON_IN_DOCUMENTATION = (
    r"(?:servers?|workers?|replicas?|requests?|backends?|process(?:es)?|responses?|tables?|cookies?|callbacks?)"
    r",? (?:who|whose|whom)"
)


@dataclass(frozen=True)
class Finding:
    """A forbidden word at its place."""

    file: str
    line: int
    found: str
    instead: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.found!r}: use {self.instead}"


def files() -> Iterator[Path]:
    """Return the files that are read."""
    for folder in FOLDERS:
        for file in sorted((ROOT / folder).rglob("*.py")):
            if file.relative_to(ROOT).as_posix() not in THESE:
                yield file


def prose_of(source: str) -> Iterator[tuple[int, str]]:
    """Return the comments, the lines of the docstrings, and the ids of test rows, each with its line's number."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            match node.body[0]:
                case ast.Expr(value=ast.Constant(value=str() as text), lineno=first):
                    yield from enumerate(text.splitlines(), first)
        elif isinstance(node, ast.keyword) and node.arg == "id":
            match node.value:
                case ast.Constant(value=str() as text, lineno=line):
                    yield line, text


def names_of(source: str) -> Iterator[tuple[int, str]]:
    """Return the names that the source defines, each with its line."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield node.lineno, name
            case ast.arg(arg=name) | ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield node.lineno, name


def words_of(name: str) -> str:
    """Return the words of a name with spaces between: `HeldResponse` and `held_response` are `held response`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name).replace("_", " ").lower()


def check(source: str, file: str) -> list[Finding]:
    """Return the forbidden words in one Python file."""
    names = [(line, words_of(name)) for line, name in names_of(source)]
    in_names = [word for word in WORDS if word.in_names]
    return check_lines(prose_of(source), file, WORDS) + check_lines(names, file, in_names)


def check_page(text: str, file: str) -> list[Finding]:
    """Return the forbidden words in a page for users: metaphors, and things that are persons; a person may be a who."""
    lines = list(enumerate(text.splitlines(), 1))
    return check_lines(lines, file, [Word(PERSON_IN_DOCUMENTATION, "that, or of which"), *METAPHORS])


def check_lines(lines: Iterable[tuple[int, str]], file: str, words: Iterable[Word]) -> list[Finding]:
    """Return which of `words` are in numbered lines, in order."""
    allowed = [re.compile(each.pattern, re.IGNORECASE) for each in ALLOWED if fnmatch(file, each.files)]
    patterns = [(re.compile(rf"\b(?:{word.pattern})\b", re.IGNORECASE), word.instead) for word in words]
    found: set[Finding] = set()
    for line, text in lines:
        for legitimate in allowed:
            text = legitimate.sub(" ", text)
        for pattern, instead in patterns:
            found.update(Finding(file, line, match[0], instead) for match in pattern.finditer(text))
    return sorted(found, key=lambda each: (each.line, each.found))
