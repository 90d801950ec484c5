"""Samples of requests, as users write them: `samples.hdr("X-User")`, `samples.lower(samples.src)`."""

from sticky_core.samples.converters import digest, field, ipmask, lower, prefix
from sticky_core.samples.parser import parse_sample
from sticky_core.samples.request import (
    Sample,
    bearer,
    cook,
    form,
    hdr,
    json_field,
    jwt,
    method,
    path,
    path_param,
    scheme,
    src,
    url_param,
)
from sticky_core.samples.values import Address, Key

__all__ = [
    "Address",
    "Key",
    "Sample",
    "bearer",
    "cook",
    "digest",
    "field",
    "form",
    "hdr",
    "ipmask",
    "json_field",
    "jwt",
    "lower",
    "method",
    "parse_sample",
    "path",
    "path_param",
    "prefix",
    "scheme",
    "src",
    "url_param",
]
