"""Routes that are no paths: the server must not start, and must print the reason."""

from starlette.applications import Starlette

from sticky_asgi import Backend, Cookie, Server, StickyMiddleware

backend = Backend("cart", Server.replicas(Starlette, 3), persist=Cookie("SERVERID"))

app = Starlette()
app.add_middleware(StickyMiddleware, routes={"cart": backend, "/shop/": backend})
