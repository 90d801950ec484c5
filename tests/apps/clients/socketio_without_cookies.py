"""The client of python-socketio, which keeps no cookies here."""

from functools import partial

from tests.apps.clients import socketio
from tests.apps.clients.exchanges import main

if __name__ == "__main__":
    main(partial(socketio.client, keeps_cookies=False))
