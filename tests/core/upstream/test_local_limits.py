"""Limits of our own: told apart from failures of a server, whatever exception carries them, and logged rarely."""

import errno
import os

import pytest

from sticky_core.errors import Failure
from sticky_core.health.check import CheckStatus, Verdict
from sticky_core.upstream import local_limits
from sticky_core.upstream.local_limits import (
    LOG_INTERVAL,
    LocalLimitLog,
    connect_failure,
    connect_result,
    error_of_attempts,
    is_local_limit,
)
from sticky_core.upstream.probe import result_from_exception, result_from_failure


def error_of(number: int) -> OSError:
    return OSError(number, os.strerror(number))


OURS = [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL]
THEIRS = [errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENOENT, errno.EACCES, errno.ECONNRESET]


@pytest.fixture(autouse=True)
def _new_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_limits, "LOG", LocalLimitLog())


@pytest.mark.parametrize("number", OURS, ids=errno.errorcode.get)
def test_limit_of_our_own_is_not_the_servers_failure(number: int):
    failure = connect_failure(error_of(number), 0.0, "s1")
    assert (failure.failure, failure.server, failure.detail) == (Failure.LOCAL_LIMIT, "s1", os.strerror(number))
    assert connect_result(error_of(number), "text", 0.0).status.verdict is Verdict.UNKNOWN


@pytest.mark.parametrize("number", THEIRS, ids=errno.errorcode.get)
def test_other_errors_are_the_servers(number: int):
    assert connect_failure(error_of(number), 0.0).failure is Failure.REFUSED
    assert connect_result(error_of(number), "text", 0.0).status is CheckStatus.L4CON


def test_error_without_a_number_is_the_servers():
    failure = connect_failure(OSError("nothing here"), 0.0)
    assert (failure.failure, failure.detail) == (Failure.REFUSED, "nothing here")


def test_limit_is_found_in_what_an_exception_was_raised_from():
    ours = OSError("all connection attempts failed")
    ours.__cause__ = ExceptionGroup("attempts", [error_of(errno.ECONNREFUSED), error_of(errno.EMFILE)])
    assert is_local_limit(ours)
    assert not is_local_limit(OSError("all connection attempts failed"))


@pytest.mark.parametrize("numbers", [OURS[-1:] + THEIRS[:1], THEIRS[:1] + OURS[-1:]], ids=["first", "last"])
def test_version_of_ip_that_the_machine_lacks_is_no_limit_where_another_address_has_refused(numbers: list[int]):
    error = error_of_attempts([error_of(number) for number in numbers])
    assert error.errno == numbers[-1]
    assert connect_failure(error, 0.0).failure is Failure.REFUSED


def test_lack_of_ports_for_every_address_is_a_limit():
    assert is_local_limit(error_of_attempts([error_of(errno.EADDRNOTAVAIL) for _ in range(2)]))


def test_exception_that_was_raised_from_itself_is_looked_at_once():
    error = ValueError()
    error.__cause__ = error
    assert not is_local_limit(error)


def test_check_of_a_replica_that_meets_a_limit_has_no_result():
    assert result_from_failure(Failure.LOCAL_LIMIT).status is CheckStatus.UNK
    assert result_from_exception(error_of(errno.EMFILE)).status is CheckStatus.UNK
    assert result_from_exception(error_of(errno.ENOENT)).status is CheckStatus.L7STS


def test_limit_is_logged_once_in_a_while(caplog: pytest.LogCaptureFixture):
    for now in (0.0, 1.0, LOG_INTERVAL - 1, LOG_INTERVAL, LOG_INTERVAL + 1):
        connect_failure(error_of(errno.EMFILE), now)
    messages = [each.getMessage() for each in caplog.records]
    assert len(messages) == 2
    assert messages[0].startswith("Too many open files: this process could not open a connection")
