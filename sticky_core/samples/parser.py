"""Samples in HAProxy's words: `hdr(X-User),lower`, `res.cook(JSESSIONID)`."""

from __future__ import annotations

import re

from sticky_core.errors import ConfigError
from sticky_core.http.cookies import is_token
from sticky_core.samples import response as res
from sticky_core.samples.converters import digest, field, ipmask, lower, prefix
from sticky_core.samples.request import Sample, bearer, cook, hdr, method, path, path_param, src, url_param
from sticky_core.samples.values import split_list

_WORD = re.compile(r"([a-z_.0-9]+)(?:\(([^()]*)\))?")
_CHAIN = re.compile(r"[a-z_.0-9]+(?:\([^()]*\))?(?:,[a-z_.0-9]+(?:\([^()]*\))?)*")
_INTEGER = re.compile("-?[0-9]{1,9}")

_WITHOUT_ARGUMENTS: dict[str, Sample] = {"src": src, "path": path, "method": method, "http_auth_bearer": bearer}

_OF_BODIES: dict[str, type[res.json_field | res.body_param | res.sse_endpoint]] = {
    "res.json_field": res.json_field,
    "res.body_param": res.body_param,
    "res.sse_endpoint": res.sse_endpoint,
}

_UNKNOWN = (
    "sample {!r} is not known: write src, path, method, hdr(<name>), cook(<name>) or url_param(<name>), and behind it, "
    "after a comma, lower, ipmask(<bits>), field(<number>,<delimiters>), bytes(0,<length>) or sha2"
)


def parse_sample(text: str) -> Sample:
    """Return the sample of requests that HAProxy's words name: `src`, `path`, `method`, `hdr(X-User)`,
    `hdr(X-Forwarded-For,1)`, `cook(sid)`, `url_param(userid)`, `url_param(jsessionid,;)`, with converters behind it:
    `lower`, `ipmask(24,64)`, `field(2,/)`, `bytes(0,8)`, `sha2`. ConfigError for other words.
    """
    if _CHAIN.fullmatch(text) is None:
        raise ConfigError(_unknown(text))
    first, *converters = _WORD.finditer(text)
    sample = _parse_fetch(first[1].removeprefix("req."), _arguments(first[2]))
    for word in converters:
        sample = sample and _parse_converter(sample, word[1], _arguments(word[2]))
    if sample is None:
        raise ConfigError(_unknown(text))
    return sample


def _unknown(text: str) -> str:
    """Return the problem of a text that is no sample, with the sample that it probably means."""
    if "-" in text and is_token(text):
        return f"sample {text!r} is not known: write 'hdr({text})' for the header, 'cook({text})' for the cookie"
    return _UNKNOWN.format(text)


def parse_response_sample(text: str) -> res.Sample:
    """Return the sample of responses that HAProxy's words name: `res.cook(name)`, `res.hdr(name)`, `res.hdr(name,1)`.
    ConfigError for other words.
    """
    word, bracket, rest = text.partition("(")
    arguments = split_list([rest.removesuffix(")")]) if bracket and rest.endswith(")") else []
    match word, arguments:
        case "res.cook" | "set-cookie" | "scook", [name] if name:
            return res.cook(name)
        case "res.hdr" | "res.fhdr" | "shdr", [name] if name:
            return res.hdr(name)
        case "res.hdr" | "res.fhdr" | "shdr", [name, number] if name and _INTEGER.fullmatch(number):
            return res.hdr(name, int(number))
        case _:
            raise ConfigError(f"sample {text!r} is not known: write res.cook(<name>) or res.hdr(<name>)")


def parse_learned_sample(text: str) -> res.Sample | res.BodySample:
    """Return the sample of responses that these words name: those of `parse_response_sample`, and of their bodies
    `res.json_field(sid)`, `res.body_param(sid)`, `res.sse_endpoint(session_id)`. ConfigError for other words.
    """
    match = _WORD.fullmatch(text)
    of_body = _OF_BODIES.get(match[1]) if match is not None else None
    if match is not None and of_body is not None and match[2]:
        return of_body(match[2].strip())
    try:
        return parse_response_sample(text)
    except ConfigError:
        raise ConfigError(
            f"sample {text!r} is not known: write res.hdr(<name>), res.cook(<name>), res.json_field(<name>), "
            "res.body_param(<name>) or res.sse_endpoint(<parameter>)"
        ) from None


def _arguments(text: str | None) -> list[str]:
    return [] if text is None else [part.strip() for part in text.split(",")]


def _parse_fetch(word: str, arguments: list[str]) -> Sample | None:
    match word, arguments:
        case "src" | "path" | "method" | "http_auth_bearer", []:
            return _WITHOUT_ARGUMENTS[word]
        case "hdr" | "fhdr", [name] if is_token(name):
            return hdr(name)
        case "hdr" | "fhdr", [name, number] if is_token(name) and _INTEGER.fullmatch(number):
            return hdr(name, int(number))
        case "cook" | "cookie", [name] if name:
            return cook(name)
        case "url_param" | "urlp", [name] if name:
            return url_param(name)
        case "url_param" | "urlp", [name, ";"] if name:
            return path_param(name)
        case _:
            return None


def _parse_converter(sample: Sample, word: str, arguments: list[str]) -> Sample | None:
    if word == "field" and len(arguments) == 2 and _INTEGER.fullmatch(arguments[0]):
        return field(sample, int(arguments[0]), arguments[1])
    if not all(map(_INTEGER.fullmatch, arguments)):
        return None
    match word, [int(argument) for argument in arguments]:
        case "lower", []:
            return lower(sample)
        case "sha2", [] | [256]:
            return digest(sample)
        case "bytes", [0, length]:
            return prefix(sample, length)
        case "ipmask", [v4]:
            return ipmask(sample, v4)
        case "ipmask", [v4, v6]:
            return ipmask(sample, v4, v6)
        case _:
            return None
