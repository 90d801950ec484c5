"""The third-party apps that are served by several workers, plain and with StickyWorkers: one row each.

To add an app `shop`:

1. Write `docs/recipes/shop.md`. Its block marked `<!-- app: shop/main.py -->` is the app, and each line of its block
   marked `<!-- commands: shop -->` that starts with the name of a server is a test (`recipes`). What the app needs and
   the page does not show, such as Django's settings, is in `tests/apps/files/shop/`, and the page's files are added.
2. Write its client, `tests/apps/clients/shop.py`: a coroutine that is one client, which keeps its cookies and opens a
   connection for each request; it counts what came back right and wrong. `exchanges` tells how.
3. Add a row below. What the app and the client import is installed from dependency groups of pyproject.toml: `dev` is
   where the tests run, any other is an environment of its own.

Without StickyWorkers the same files are run with `tests/apps/plain` first on the path, where it changes nothing. That
run must have errors, or the test proves nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.apps import recipes


@dataclass(frozen=True)
class App:
    """An app with a recipe.

    - `name`: of the app, in the marks of its page.
    - `group`: the dependency group with what the app and its client need. Default `"apps"`.
    - `client`: the module in `tests.apps.clients`. Default: the app's name.
    - `daily`: how many exchanges the default run makes, with the first command line of the page; 0: none.
    - `exchanges`: how many a run marked `long` makes with each command line.
    - `more_commands`: command lines that are tested and not shown.
    - `at_once`: how many clients at the same time. Default 8.
    """

    name: str
    group: str = "apps"
    client: str = ""
    daily: int = 0
    exchanges: int = 200
    more_commands: tuple[str, ...] = ()
    at_once: int = 8

    @property
    def commands(self) -> list[str]:
        return [*recipes.commands().get(self.name, ()), *self.more_commands]


APPS = (
    App("fastapi", group="dev", more_commands=("gunicorn -k uvicorn_worker.UvicornWorker -w 3 main:app",)),
    App("fastapi_chat", group="dev", client="chat"),
    App("starlette", group="dev"),
    App("django_asgi", group="dev", daily=30),
    App("django_wsgi", group="dev", daily=20),
    App("channels", client="chat"),
    App("socketio", group="dev", daily=30),
    App("socketio_without_cookies", group="dev"),
    App("mcp", group="dev", daily=30),
    App("mcp_sse", group="dev"),
    App("mcp2", group="apps-mcp2"),
    App("mcp2_questions", group="apps-mcp2"),
    App("gradio", group="dev", daily=20),
    App("nicegui"),
    App("panel"),
    App("shiny"),
    App("chainlit"),
    App("strawberry"),
    App("flask", group="dev"),
    App("flask_socketio", group="dev", daily=30),
    App("flask_login", group="dev"),
    App("dash"),
)
