"""Samples in HAProxy's words."""

import pytest

from sticky_core.errors import ConfigError
from sticky_core.samples.converters import digest, field, ipmask, lower, prefix
from sticky_core.samples.parser import parse_sample
from sticky_core.samples.request import (
    bearer,
    cook,
    hdr,
    method,
    path,
    path_param,
    src,
    url_param,
)


@pytest.mark.parametrize(
    "text, sample",
    [
        ("src", src),
        ("path", path),
        ("hdr(X-User)", hdr("X-User")),
        ("req.hdr(X-User)", hdr("X-User")),
        ("hdr(x-forwarded-for,1)", hdr("x-forwarded-for", 1)),
        ("hdr(x-forwarded-for, -2)", hdr("x-forwarded-for", -2)),
        ("url_param(userid)", url_param("userid")),
        ("urlp(userid)", url_param("userid")),
        ("method", method),
        ("http_auth_bearer", bearer),
        ("cook(sid)", cook("sid")),
        ("req.cook(sid)", cook("sid")),
        ("url_param(jsessionid,;)", path_param("jsessionid")),
        ("src,ipmask(24)", ipmask(src, 24)),
        ("src,ipmask(24,64)", ipmask(src, 24, 64)),
        ("hdr(host),lower", lower(hdr("host"))),
        ("path,field(2,/)", field(path, 2, "/")),
        ("path,field(-1,/)", field(path, -1, "/")),
        ("hdr(x-user),bytes(0,8)", prefix(hdr("x-user"), 8)),
        ("cook(sid),sha2", digest(cook("sid"))),
        ("cook(sid),sha2(256)", digest(cook("sid"))),
        ("path,field(2,/),lower,bytes(0,3)", prefix(lower(field(path, 2, "/")), 3)),
    ],
)
def test_sample_in_haproxys_words(text, sample):
    assert parse_sample(text) == sample


@pytest.mark.parametrize(
    "text",
    [
        *("", "dst", "src(1)", "hdr", "hdr()", "hdr(a,b)", "url_param", "path()", "SRC", "hdr(a"),
        *("cook", "cook()", "src,", ",lower", "src,upper", "src,lower(1)", "src,ipmask", "src,ipmask(a)", "src lower"),
        *("path,field(2)", "path,field(/,2)", "path,bytes(1,2)", "path,bytes(2)", "path,sha2(512)", "url_param(a,&)"),
    ],
)
def test_unknown_word_is_refused_with_the_known_ones(text):
    with pytest.raises(
        ConfigError, match=r"write src, path, method, hdr\(<name>\), cook\(<name>\) or url_param\(<name>\)"
    ) as refused:
        parse_sample(text)
    assert repr(text) in str(refused.value)
