"""Dates in headers, of HTTP and as nginx writes them in cookies."""

from email.utils import parsedate_to_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sticky_core.http.dates import http_date, nginx_date

END = 4102444800  # the year 2100


@pytest.mark.parametrize(
    "unix, http, nginx",
    [
        pytest.param(0, "Thu, 01 Jan 1970 00:00:00 GMT", "Thu, 01-Jan-70 00:00:00 GMT", id="the epoch"),
        pytest.param(784111777, "Sun, 06 Nov 1994 08:49:37 GMT", "Sun, 06-Nov-94 08:49:37 GMT", id="RFC 9110"),
        pytest.param(1795283152, "Sat, 21 Nov 2026 17:45:52 GMT", "Sat, 21-Nov-26 17:45:52 GMT", id="seen of nginx"),
        pytest.param(
            1709164799.9, "Wed, 28 Feb 2024 23:59:59 GMT", "Wed, 28-Feb-24 23:59:59 GMT", id="cut, not rounded"
        ),
        pytest.param(1709164800, "Thu, 29 Feb 2024 00:00:00 GMT", "Thu, 29-Feb-24 00:00:00 GMT", id="a leap day"),
        pytest.param(
            2145916799, "Thu, 31 Dec 2037 23:59:59 GMT", "Thu, 31-Dec-37 23:59:59 GMT", id="the last short year"
        ),
        pytest.param(2145916800, "Fri, 01 Jan 2038 00:00:00 GMT", "Fri, 01-Jan-2038 00:00:00 GMT", id="the first long"),
    ],
)
def test_dates_of_http_and_of_nginx(unix: float, http: str, nginx: str):
    assert (http_date(unix), nginx_date(unix)) == (http, nginx)


@given(st.integers(0, END))
def test_a_date_of_http_is_parsed_as_the_same_time(unix: int):
    assert parsedate_to_datetime(http_date(unix)).timestamp() == unix
