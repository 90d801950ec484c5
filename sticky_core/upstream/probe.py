"""What a check says to a server, and what it makes of the answer, without I/O: faces connect, send, and feed."""

from __future__ import annotations

from sticky_core.errors import Failure
from sticky_core.health.agent import MAX_LINE, AgentReply
from sticky_core.health.agent import parse_reply as read_agent
from sticky_core.health.check import CheckResult, CheckStatus
from sticky_core.health.expect import MAX_BODY
from sticky_core.health.runtime import CheckRuntime
from sticky_core.http.http1 import BadResponse, ResponseParser
from sticky_core.server.server import Server
from sticky_core.target import Location

#: what a replica that fails in this way is said to be
_FAILED = {
    Failure.REFUSED: CheckStatus.L4CON,
    Failure.NOT_STARTED: CheckStatus.L4CON,
    Failure.CONNECT_TIMEOUT: CheckStatus.L4TOUT,
    Failure.TLS: CheckStatus.L6RSP,
    Failure.TIMEOUT: CheckStatus.L7TOUT,
}


def result_from_failure(failure: Failure) -> CheckResult:
    """A server, not the application in it, has failed the check."""
    return CheckResult(_FAILED.get(failure, CheckStatus.SOCKERR), info=failure.text)


def result_from_exception(error: BaseException) -> CheckResult:
    """An exception came out of an app, where a server would answer 500."""
    return CheckResult(CheckStatus.L7STS, 500, f"{type(error).__name__}: {error}")


def check_location(server: Server) -> Location:
    """Where a check of `server` connects to; `server` is a URL, if only one that is not known yet."""
    url = server.config.target or server.config.template
    assert isinstance(url, str)
    return Location.parse(url)


class HttpProbe:
    """One check by HTTP over a connection, or only of the connection if there is nothing to ask for."""

    def __init__(self, server: Server, checking: CheckRuntime) -> None:
        location = check_location(server)
        check = checking.check
        self.host, self.port, self.socket = location.host, check.port or location.port, location.socket
        # with a port of its own a check goes where the URL says nothing about TLS; HAProxy keeps to it all the same
        self.tls = location.scheme == "https"
        self._checking = checking
        self._authority = Location.parse(server.config.host_url).authority
        #: what to send; empty: that the connection came about is enough
        self.request = b"" if check.path is None else self._written(location)
        self._answers: ResponseParser | None = None
        self._body = b""

    def _written(self, location: Location) -> bytes:
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
        """The connection stands. None: there is something to ask for."""
        if not self.request:
            return CheckResult(CheckStatus.L4OK)
        self._answers = ResponseParser()
        self._answers.begin_response(self._checking.check.http_method)
        return None

    def feed(self, data: bytes) -> CheckResult | None:
        """More has come, or, if it is empty, the end. None: it is not enough yet."""
        answers = self._answers
        assert answers is not None
        try:
            if data:
                answers.feed(data)
                ended = answers.finished
            else:
                ended = answers.feed_eof() or bool(answers.status)
                if not ended:
                    return CheckResult(CheckStatus.SOCKERR, info="closed before the response")
        except BadResponse as error:
            if not answers.status:
                return CheckResult(CheckStatus.L7RSP, info=str(error))
            ended = True
        if not answers.status:
            return None
        self._body += answers.take_body()
        if ended or not self._checking.expect.needs_body or len(self._body) >= MAX_BODY:
            headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in answers.headers]
            return self._checking.judge(answers.status, headers, self._body)
        return None


class AgentProbe:
    """One question to an agent."""

    tls = False
    socket: str | None = None

    def __init__(self, server: Server) -> None:
        asked = server.config.agent_check
        assert asked is not None
        self.host, self.port = check_location(server).host, asked.port
        self.request = asked.send.encode()
        self._line = b""
        self.reply: AgentReply | None = None

    def on_connected(self) -> CheckResult | None:
        return None

    def feed(self, data: bytes) -> CheckResult | None:
        self._line += data
        if data and b"\n" not in self._line and len(self._line) < MAX_LINE:
            return None
        if not self._line.strip():
            return CheckResult(CheckStatus.SOCKERR, info="closed before the response")
        self.reply = read_agent(self._line)
        return self.reply.result


NetworkProbe = HttpProbe | AgentProbe
