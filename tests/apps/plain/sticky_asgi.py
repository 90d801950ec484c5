"""Stands in for the package of this name where an app is run plain: StickyWorkers changes nothing."""

from typing import TypeVar

App = TypeVar("App")


def StickyWorkers(app: App, **options: object) -> App:
    return app
