"""A mark that names no server, or that is not signed by us, moves a client. It is counted, and logged once for each
name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from sticky_core.backend.invalid_marks import MAX_NAMES
from sticky_core.persistence.claim import Reason
from sticky_core.persistence.cookie.config import Cookie
from sticky_core.persistence.stick.config import Stick
from sticky_core.samples.request import form, hdr
from sticky_core.stick_table.table import StickTable
from tests.faces.dictionary_store import DictionaryServer, DictionaryStore

if TYPE_CHECKING:
    from tests.faces.conftest import Face

PLAIN = Cookie("SRV", signed=False)


def messages(caplog: pytest.LogCaptureFixture, part: str) -> list[str]:
    return [each.getMessage() for each in caplog.records if part in each.getMessage()]


def test_client_of_an_unknown_server_is_counted_and_the_name_is_logged_once(
    face: Face, caplog: pytest.LogCaptureFixture
) -> None:
    backend = face.backend(face.server("s1"), face.server("s2"), persist=PLAIN)
    get = face.client(backend)
    responses = [get(cookie="SRV=s9") for _ in range(3)]
    assert {response.decision.reason for response in responses} == {Reason.UNKNOWN}
    assert get(cookie=responses[0].mark).decision.reason is Reason.BOUND
    assert (backend.unknown_marks, backend.forged_marks) == (3, 0)
    (line,) = messages(caplog, "names server")
    assert line.startswith(
        "backend web: cookie SRV of a client names server 's9', which there is not. If it was renamed"
    )


def test_mark_of_another_secret_is_counted_and_logged_once(face: Face, caplog: pytest.LogCaptureFixture) -> None:
    before = face.client(face.backend(face.server("s1"), persist=Cookie("SRV", secret="the secret of last year")))
    mark = before().mark
    backend = face.backend(face.server("s1"), persist=Cookie("SRV", secret="the secret of this year"))
    get = face.client(backend)
    assert [get(cookie=mark).decision.reason for _ in range(2)] == [Reason.FORGED] * 2
    assert (backend.unknown_marks, backend.forged_marks) == (0, 2)
    (line,) = messages(caplog, "is not signed with the secret")
    assert mark not in line
    secrets = ["the secret of last year", "the secret of this year"]
    backend = face.backend(face.server("s1"), persist=Cookie("SRV", secret=secrets))
    # as the log says; what is in memory has ended with the process
    assert face.client(backend)(cookie=mark).decision.reason is Reason.OTHER_INSTANCE
    assert backend.forged_marks == 0


@pytest.mark.parametrize(
    "name",
    [b"\r\nERROR: x", b"\x1b]0;title\x07", b"\xff\xfe", b'"s9"', b"s9\x00"],
    ids=["line", "escape", "raw", "q", "0"],
)
def test_client_writes_nothing_but_one_line_of_ascii_into_the_log(
    face: Face, name: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    backend = face.backend(face.server("s1"), persist=PLAIN)
    face.client(backend)(cookie="SRV=" + name.decode("latin-1"))
    for line in messages(caplog, ""):
        assert line.isascii() and line.isprintable()
    assert backend.unknown_marks == 1


def test_client_with_many_names_fills_neither_memory_nor_log(face: Face, caplog: pytest.LogCaptureFixture) -> None:
    backend = face.backend(face.server("s1"), persist=PLAIN)
    get = face.client(backend)
    for number in range(MAX_NAMES + 50):
        get(cookie=f"SRV={number}{'x' * 4000}")
    assert backend.unknown_marks == MAX_NAMES + 50
    found = messages(caplog, "name")
    found = [line for line in found if "`Backend.unknown_marks`" in line]
    assert len(found) == MAX_NAMES + 1
    assert "no more of these names are logged" in found[-1]
    assert max(map(len, found)) < 400


def table(**options: Any) -> StickTable:
    return StickTable("string", expire="10m", **options)


@pytest.mark.parametrize(
    "persist",
    [
        pytest.param(
            lambda: [Stick.on(hdr("x"), table(store=DictionaryStore(DictionaryServer()), name="t")), PLAIN], id="store"
        ),
        pytest.param(lambda: [Stick.on(form("user"), table()), PLAIN], id="body"),
    ],
)
def test_request_that_is_recognised_again_is_counted_once(face: Face, persist: Any) -> None:
    backend = face.backend(face.server("s1", stateless=True), persist=persist())
    headers = [("x", "a"), ("content-type", "application/x-www-form-urlencoded")]
    response = face.client(backend)(method="POST", body=b"user=1", headers=headers, cookie="SRV=s9")
    assert response.decision.reason is Reason.UNKNOWN
    assert backend.unknown_marks == 1
