"""What a check sends to a server and how it judges the response, without I/O: the faces connect, send, and pass on
what they receive.
"""

from __future__ import annotations

from sticky_core.errors import Failure
from sticky_core.health.agent import MAX_LINE, AgentReply, parse_reply
from sticky_core.health.check import CheckResult, CheckStatus
from sticky_core.health.expect import MAX_BODY
from sticky_core.health.runtime import CheckRuntime
from sticky_core.http.http1 import BadResponse, ResponseParser
from sticky_core.server.server import Server
from sticky_core.target import Location

#: the check status of each failure; `SOCKERR` for the others
_FAILED = {
    Failure.REFUSED: CheckStatus.L4CON,
    Failure.NOT_STARTED: CheckStatus.L4CON,
    Failure.CONNECT_TIMEOUT: CheckStatus.L4TOUT,
    Failure.TLS: CheckStatus.L6RSP,
    Failure.TIMEOUT: CheckStatus.L7TOUT,
}


def result_from_failure(failure: Failure) -> CheckResult:
    """Return the result of a check that ended with a failure, without a response."""
    return CheckResult(_FAILED.get(failure, CheckStatus.SOCKERR), info=failure.text)


def result_from_exception(error: BaseException) -> CheckResult:
    """Return the result of a check during which the app raised: a web server would respond 500."""
    return CheckResult(CheckStatus.L7STS, 500, f"{type(error).__name__}: {error}")


def check_location(server: Server) -> Location:
    """Return where a check of `server` connects to. The server is a URL, or a template with an address that is not
    resolved yet.
    """
    url = server.config.target or server.config.template
    assert isinstance(url, str)
    return Location.parse(url)


class HttpProbe:
    """One check over a connection: an HTTP request, or only the connection if the check has no path."""

    def __init__(self, server: Server, checking: CheckRuntime) -> None:
        location = check_location(server)
        check = checking.check
        self.host, self.port, self.socket = location.host, check.port or location.port, location.socket
        # also at a `port` of the check, where HAProxy too uses the server's setting
        self.tls = location.scheme == "https"
        self._checking = checking
        self._authority = Location.parse(server.config.host_url).authority
        #: the request to send; empty: an established connection is enough
        self.request = b"" if check.path is None else self._build_request(location)
        self._parser: ResponseParser | None = None
        self._body = b""

    def _build_request(self, location: Location) -> bytes:
        check = self._checking.check
        assert check.path is not None
        lines = [f"{check.http_method} {location.base_path}{check.path} HTTP/1.1"]
        if not any(name.lower() == "host" for name, _ in check.header_list):
            lines.append(f"host: {self._authority}")
        lines += [f"{name}: {value}" for name, value in check.header_list]
        if check.payload:
            lines.append(f"content-length: {len(check.payload)}")
        lines += ["connection: close", "", ""]
        return "\r\n".join(lines).encode("latin-1") + check.payload

    def on_connected(self) -> CheckResult | None:
        """Called when the connection is established. Return the result, or None if a request has to be sent."""
        if not self.request:
            return CheckResult(CheckStatus.L4OK)
        self._parser = ResponseParser()
        self._parser.begin_response(self._checking.check.http_method)
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
                    return CheckResult(CheckStatus.SOCKERR, info="closed before the response")
        except BadResponse as error:
            if not parser.status:
                return CheckResult(CheckStatus.L7RSP, info=str(error))
            ended = True
        if not parser.status:
            return None
        self._body += parser.take_body()
        if ended or not self._checking.expect.needs_body or len(self._body) >= MAX_BODY:
            headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in parser.headers]
            return self._checking.judge(parser.status, headers, self._body)
        return None


class AgentProbe:
    """One query of an agent."""

    tls = False
    socket: str | None = None

    def __init__(self, server: Server) -> None:
        config = server.config.agent_check
        assert config is not None
        self.host, self.port = check_location(server).host, config.port
        self.request = config.send.encode()
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
