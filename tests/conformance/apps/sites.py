"""The sites of the forwarding tests, for both faces: a backend for each Host, over the origins that ORIGINS names.

Where a test must know which server is tried first, every other server is a backup, so that balance has no choice.
"""

import json
import os
from types import ModuleType
from typing import Any

from sticky_core.server.counters import Total

URLS: dict[str, str] = json.loads(os.environ["ORIGINS"])
FILES: dict[str, str] = json.loads(os.environ["FILES"])

A, B, DEAD, FULL = URLS["a"], URLS["b"], URLS["dead"], URLS["full"]
RETRY_ON = ("conn-failure", "empty-response", "junk-response", "response-timeout", "503")

#: Seconds: a timeout that only a hanging step exceeds, and one that passes soon.
LONG, SHORT = 30, 0.3


def backends(face: ModuleType, app: object) -> dict[str, Any]:
    """Return the backends by the name of their site. `face` is sticky_asgi or sticky_wsgi; `app` one of its apps."""
    Server, Forward, Timeouts, TLS = face.Server, face.Forward, face.Timeouts, face.TLS

    def site(name: str, *servers: object, **options: object) -> None:
        made[name] = face.Backend(
            name,
            servers=servers,
            persist=face.Cookie("SERVERID", signed=False),
            **{"timeouts": Timeouts(connect=LONG, server=LONG, queue=LONG), **options},
        )

    def a(url: str = A, **options: object) -> object:
        return Server("a", url, **options)

    def b(**options: object) -> object:
        return Server("b", B, backup=True, cookie="b", **options)

    made: dict[str, Any] = {}
    site("plain", a(), b())
    site("unix", a(URLS["unix"]))
    site("mixed", a(), Server("app", app))

    # the target
    site("based", a(f"{A}/base"))
    site("unix-based", a(f"{URLS['unix']}:/base"))
    site("mounted", a())
    site("mounted-based", a(f"{A}/base"))
    site("nested", a())

    # headers about the client
    near = ("127.0.0.0/8", "unix")
    site("trusting", a(), forward=Forward(trusted_proxies=near))
    site("forwarded", a(), forward=Forward(by="forwarded"))
    site("forwarded-trusting", a(), forward=Forward(by="forwarded", trusted_proxies=near))
    site("forwardfor", a(), forward=Forward(by="forwardfor"))
    site("forwardfor-except", a(), forward=Forward(by="forwardfor", except_nets=("127.0.0.0/8",)))
    site("forwardfor-elsewhere", a(), forward=Forward(by="forwardfor", except_nets=("10.0.0.0/8",)))
    site("forwardfor-if-none", a(), forward=Forward(by="forwardfor", if_none=True))
    site("silent", a(), forward=Forward(by="none"))
    site("their-host", a(), forward=Forward(host="upstream"))
    site("configured-host", a(), forward=Forward(host="configured.test"))

    # failures
    site("dead", a(DEAD))
    site("unreachable", a(FULL), timeouts=Timeouts(connect=SHORT), retries=0)
    site("next", a(DEAD), b())
    site("no-retries", a(DEAD), b(), retries=0)
    site("never", a(DEAD), b(), retry_on="none")
    site("again", a(), b(), retry_on=RETRY_ON)
    site("again-or-not", a(), Server("b", DEAD, backup=True), retry_on=RETRY_ON)
    site("again-here", a(), b(), retry_on=RETRY_ON, redispatch=False, retries=1)
    site("keyed", a(), b(), retry_on=RETRY_ON, idempotency_key=True)
    site("small", a(), b(), retry_on=RETRY_ON, retry_body_limit=10)
    site("impatient", a(), b(), timeouts=Timeouts(server=SHORT))
    site("less-patient", a(), b(), timeouts=Timeouts(server=1))
    site("less-patient-again", a(), b(), retry_on="response-timeout", timeouts=Timeouts(server=1))
    site("patient", a(URLS["late"]), redispatch=False, retries=3, timeouts=Timeouts(connect=1, server=LONG))

    once: dict[str, Any] = {"max_fails": 1, "fail_timeout": LONG}  # one failure takes the server down
    site("patient-with-clients", a(**once), b(), timeouts=Timeouts(server=SHORT, client=LONG))
    site("impatient-with-clients", a(**once), b(), timeouts=Timeouts(server=LONG, client=SHORT))

    # slots
    site("one", a(maxconn=1), timeouts=Timeouts(queue=LONG))
    site("one-at-once", a(maxconn=1), timeouts=Timeouts(queue=SHORT))
    site("one-more", a(maxconn=1, maxqueue=1), timeouts=Timeouts(queue=LONG))
    site("first", a(maxconn=1), Server("b", B), balance="first")
    site("brief", a(pool_purge_delay=SHORT))
    site("no-pool", a(pool_max_conn=0))

    # TLS
    ca, crt, key = FILES["ca"], FILES["crt"], FILES["key"]
    site("tls", a(URLS["tls"], tls=TLS(ca_file=ca)))
    site("tls-impatient", a(URLS["tls"], tls=TLS(ca_file=ca)), timeouts=Timeouts(server=SHORT))
    site("tls-stranger", a(URLS["tls"]), retries=0)
    site("tls-careless", a(URLS["tls"], tls=TLS(verify=False)))
    site("tls-misnamed", a(URLS["named"], tls=TLS(ca_file=ca)), retries=0)
    site("tls-named", a(URLS["named"], tls=TLS(ca_file=ca, sni="origin.test")))
    site("tls-mutual", a(URLS["mutual"], tls=TLS(ca_file=ca, crt=crt, key=key)))
    return made


def counts(backend: Any) -> dict[str, dict[str, int]]:
    """Return the counters of a backend: of each server, and of its queue."""
    waiting = backend.qcur() + sum(backend.qcur(server) for server in backend.servers)
    return {"queue": {"waiting": waiting, "in_flight": 0}} | {
        server.name: {
            "in_flight": len(server.in_flight),
            "aborted": server.counters[Total.CLI_ABRT],
            "responses": sum(server.counters[total] for total in Total if Total.HRSP_2XX <= total <= Total.HRSP_5XX),
            "failed": server.counters[Total.ECON] + server.counters[Total.ERESP],
        }
        for server in backend.servers
    }
