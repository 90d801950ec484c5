"""An app that sets JSESSIONID itself is sticky by that cookie:
the mark goes before its value, and the app never sees it.

    export STICKY_SECRET=$(python -c "import secrets; print(secrets.token_urlsafe(32))")
    waitress-serve --host 127.0.0.1 --port 8000 examples.prefix_jsessionid:app

    curl -c jar -b jar localhost:8000; cat jar      # a mark, a tilde, and the session as the app knows it
"""

import secrets

from flask import Flask, Response, jsonify, request

from sticky_wsgi import Backend, Cookie, Dispatcher, Server, decision


def create_shop() -> Flask:
    shop = Flask("shop")
    visits: dict[str, int] = {}

    @shop.get("/")
    def visit() -> Response:
        session = request.cookies.get("JSESSIONID", "")
        known = session in visits
        if not known:
            session = secrets.token_hex()
        visits[session] = visits.get(session, 0) + 1
        response = jsonify(replica=decision(request).server, session=session, visits=visits[session])
        if not known:
            response.set_cookie("JSESSIONID", session, httponly=True, samesite="Lax")
        return response

    return shop


app = Dispatcher(Backend("shop", Server.replicas(create_shop, 3), persist=Cookie("JSESSIONID", mode="prefix")))
