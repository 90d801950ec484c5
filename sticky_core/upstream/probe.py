"""What a check sends to a server and how it judges the response, without I/O: the faces connect, send, and pass on
what they receive.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from typing import Literal

from sticky_core.deferred.dataclass import dataclass
from sticky_core.errors import Failure
from sticky_core.health.agent import MAX_LINE, AgentCheck, AgentReply, parse_reply
from sticky_core.health.check import Check, CheckResult, CheckStatus
from sticky_core.health.expect import MAX_BODY, Headers
from sticky_core.health.runtime import CheckRuntime
from sticky_core.http.http1 import BadResponse, ResponseParser
from sticky_core.server.config import ServerConfig
from sticky_core.server.server import Server
from sticky_core.target import Location
from sticky_core.upstream.local_limits import is_local_limit

#: the check status of each failure; `SOCKERR` for the others
_STATUSES = {
    Failure.REFUSED: CheckStatus.L4CON,
    Failure.NOT_STARTED: CheckStatus.L4CON,
    Failure.CONNECT_TIMEOUT: CheckStatus.L4TOUT,
    Failure.TLS: CheckStatus.L6RSP,
    Failure.TIMEOUT: CheckStatus.L7TOUT,
    Failure.LOCAL_LIMIT: CheckStatus.UNK,
}


def result_from_failure(failure: Failure) -> CheckResult:
    """Return the result of a check that ended with a failure, without a response."""
    return CheckResult(_STATUSES.get(failure, CheckStatus.SOCKERR), info=failure.text)


def result_from_exception(error: BaseException) -> CheckResult:
    """Return the result of a check during which the app raised: a web server would respond 500."""
    if is_local_limit(error):
        return CheckResult(CheckStatus.UNK, info=f"{type(error).__name__}: {error}")
    return CheckResult(CheckStatus.L7STS, 500, f"{type(error).__name__}: {error}")


@dataclass(frozen=True, slots=True, eq=False)
class ProbeTarget:
    """Where a check of a server connects to, and what it sends. Made once for each configuration of the server: parsing
    its URL for every probe would cost as much as a connection.
    """

    config: ServerConfig  #: the configuration that it was made for
    host: str
    port: int
    socket: str | None  #: the path of a UNIX socket, used instead of host and port
    ip_version: Literal[4, 6] | None  #: of `host` if that is an address; None: it is a name to resolve
    tls: bool
    method: str
    request: bytes  #: empty: an established connection is enough

    @classmethod
    def of_check(cls, config: ServerConfig, check: Check) -> ProbeTarget:
        location = _location(config)
        request = b"" if check.path is None else _request(config, check, location)
        # TLS also at a `port` of the check, where HAProxy too uses the server's setting
        tls = location.scheme == "https"
        port, version = check.port or location.port, _ip_version(location.host)
        return cls(config, location.host, port, location.socket, version, tls, check.http_method, request)

    @classmethod
    def of_agent(cls, config: ServerConfig, agent: AgentCheck) -> ProbeTarget:
        host = _location(config).host
        return cls(config, host, agent.port, None, _ip_version(host), False, "", agent.send.encode())


def _location(config: ServerConfig) -> Location:
    """Return where a server listens. It is a URL, or a template with an address that is not resolved yet."""
    url = config.target or config.template
    assert isinstance(url, str)
    return Location.parse(url)


def _ip_version(host: str) -> Literal[4, 6] | None:
    try:
        return ip_address(host).version if "%" not in host else None  # the index of a scope has to be looked up
    except ValueError:
        return None


def _request(config: ServerConfig, check: Check, location: Location) -> bytes:
    lines = [f"{check.http_method} {location.base_path}{check.path} HTTP/1.1"]
    if not any(name.lower() == "host" for name, _ in check.header_list):
        lines.append(f"host: {Location.parse(config.host_url).authority}")
    lines += [f"{name}: {value}" for name, value in check.header_list]
    if check.payload:
        lines.append(f"content-length: {len(check.payload)}")
    lines += ["connection: close", "", ""]
    return "\r\n".join(lines).encode("latin-1") + check.payload


def checks_of(server: Server) -> Iterator[tuple[CheckRuntime, AgentCheck | None]]:
    """Yield the running checks of a server: its check with None, and that of its agent with the agent's options."""
    if server.checking is not None:
        yield server.checking, None
    agent, options = server.agent, server.config.agent_check
    if agent is not None and options is not None:  # another thread may have removed one of the two just now
        yield agent, options


class ProbeFactory:
    """Makes the probes of a server that is a URL: of its check, or of its agent if `agent` has the agent's options."""

    def __init__(self, server: Server, checking: CheckRuntime, agent: AgentCheck | None = None) -> None:
        self._server = server
        self._checking = checking
        self._agent = agent
        self._target: ProbeTarget | None = None

    def make(self) -> NetworkProbe:
        """Return a probe of the server at its present address."""
        config, target, agent = self._server.config, self._target, self._agent
        if target is None or target.config is not config:
            if agent is not None:
                target = ProbeTarget.of_agent(config, agent)
            else:
                target = ProbeTarget.of_check(config, self._checking.check)
            self._target = target
        return AgentProbe(target) if agent is not None else HttpProbe(target, self._checking)


class HttpProbe:
    """One check over a connection: an HTTP request, or only the connection if the check has no path."""

    def __init__(self, target: ProbeTarget, checking: CheckRuntime) -> None:
        self.target = target
        self._checking = checking
        self._parser: ResponseParser | None = None
        self._body = b""

    def on_connected(self) -> CheckResult | None:
        """Called when the connection is established. Return the result, or None if a request has to be sent."""
        if not self.target.request:
            return CheckResult(CheckStatus.L4OK)
        self._parser = ResponseParser()
        self._parser.begin_response(self.target.method)
        return None

    def feed(self, data: bytes) -> CheckResult | None:
        """Parse data received; empty data means that the connection was closed. Return the result, or None if more is
        needed.
        """
        parser = self._parser
        assert parser is not None
        try:
            if data:
                parser.feed(data)
                ended = parser.finished
            else:
                ended = parser.feed_eof() or bool(parser.status)
                if not ended:
                    parser.close()
                    return CheckResult(CheckStatus.SOCKERR, info="closed before the response")
        except BadResponse as error:
            if not parser.status:
                parser.close()
                return CheckResult(CheckStatus.L7RSP, info=str(error))
            ended = True
        if not parser.status:
            return None
        self._body += parser.take_body()
        expect = self._checking.expect
        if ended or not expect.needs_body or len(self._body) >= MAX_BODY:
            parser.close()
            headers: Headers = ()
            if expect.needs_headers:
                headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in parser.headers]
            return self._checking.judge(parser.status, headers, self._body)
        return None


class AgentProbe:
    """One query of an agent."""

    def __init__(self, target: ProbeTarget) -> None:
        self.target = target
        self._line = b""
        self.reply: AgentReply | None = None

    def on_connected(self) -> CheckResult | None:
        """Return None: the reply of the agent is needed."""
        return None

    def feed(self, data: bytes) -> CheckResult | None:
        """Parse data received, as in `HttpProbe`."""
        self._line += data
        if data and b"\n" not in self._line and len(self._line) < MAX_LINE:
            return None
        if not self._line.strip():
            return CheckResult(CheckStatus.SOCKERR, info="closed before the reply")
        self.reply = parse_reply(self._line)
        return self.reply.result


NetworkProbe = HttpProbe | AgentProbe
