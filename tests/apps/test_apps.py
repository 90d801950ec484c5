"""Third-party apps that keep sessions in memory, served by several workers: plain they lose them, with StickyWorkers
they do not. The apps and their command lines are those of docs/recipes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.apps import recipes
from tests.apps.running import HERE, serving, with_fewer_workers
from tests.apps.table import APPS, App

#: How many attempts the plain app gets to lose a session.
PLAIN = 1000

DAILY = [pytest.param(app, app.commands[0], id=app.name) for app in APPS if app.daily]
LONG = [pytest.param(app, command, id=f"{app.name}: {command}") for app in APPS for command in app.commands]


@pytest.fixture
def folder() -> Iterator[Path]:
    """An empty folder with a short path, as sockets need."""
    with tempfile.TemporaryDirectory(prefix="sticky-") as made:
        yield Path(made)


def check(app: App, command: str, folder: Path, exchanges: int) -> None:
    """Serve the app plain, which must have errors, then with StickyWorkers, which must have none."""
    (folder / "plain").mkdir()
    with serving(app, command, folder / "plain", plain=True) as served:
        tally = served.exchange(PLAIN, until_error=True)
        assert tally.errors, f"the plain app finds every session in {tally.attempts} attempts\n{served.process.output}"
    (folder / "sticky").mkdir()
    with serving(app, command, folder / "sticky", plain=False) as served:
        tally = served.exchange(exchanges)
        assert (tally.errors, tally.attempts >= exchanges) == (0, True), f"{tally}\n{served.process.output}"
        assert "reaches outside" not in served.process.output


@pytest.mark.parametrize("app, command", DAILY)
def test_app_finds_each_session_with_sticky_workers_and_not_without(app: App, command: str, folder: Path):
    check(app, with_fewer_workers(command), folder, app.daily)


@pytest.mark.long
@pytest.mark.parametrize("app, command", LONG)
def test_app_finds_each_session_with_each_server(app: App, command: str, folder: Path):
    check(app, command, folder, app.exchanges)


def test_each_app_of_a_page_is_in_the_table():
    names = {app.name for app in APPS}
    assert set(recipes.files()) == names
    assert set(recipes.commands()) <= names


def test_each_app_is_tested_with_two_servers_or_more():
    assert [app.name for app in APPS if len({command.split()[0] for command in app.commands}) < 2] == []


def test_each_folder_of_files_and_each_client_belongs_to_an_app():
    files = {folder.name for folder in (HERE / "files").glob("*")}
    clients = {file.stem for file in (HERE / "clients").glob("*.py")} - {"exchanges"}
    assert files - {app.name for app in APPS} == set()
    assert clients == {app.client or app.name for app in APPS}
