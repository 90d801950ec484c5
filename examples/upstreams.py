"""What HAProxy's `cookie SERVERID insert indirect nocache` does, in front of a few URLs: a client comes back to the
upstream that served it first, another takes over if that one is down, and an app responds if all are down.

    export STICKY_SECRET=$(python -c "import secrets; print(secrets.token_urlsafe(32))")
    export UPSTREAMS="http://127.0.0.1:9001 http://127.0.0.1:9002"
    uvicorn --app-dir examples upstreams:app

    curl -i -c jar -b jar localhost:8000/anything?at=all      # again and again: one upstream
"""

import os

from starlette.responses import PlainTextResponse

from sticky_asgi import Backend, Cookie, Dispatcher, Forward, Server, Timeouts

urls = os.environ.get("UPSTREAMS", "http://127.0.0.1:9001 http://127.0.0.1:9002").split()
sorry = PlainTextResponse("We are mending the shop. Please come back in a minute.\n", status_code=503)

backend = Backend(
    "web",
    servers=[
        *(Server(f"web{number}", url, maxconn=100) for number, url in enumerate(urls, 1)),
        Server("sorry", sorry, backup=True),
    ],
    balance="leastconn",
    persist=Cookie("SERVERID"),
    retry_on="conn-failure empty-response",
    timeouts=Timeouts(connect=2, server=30),
    forward=Forward(trusted_proxies=("127.0.0.0/8", "unix")),
)

app = Dispatcher(backend, debug=True)
