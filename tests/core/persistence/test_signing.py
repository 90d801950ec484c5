"""Signatures: what we wrote verifies, to the letter, and nothing else; a secret is one or is refused."""

import base64
import hashlib
import hmac
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sticky_core.persistence.signing import SHORTEST, SIGNATURE_LENGTH, VARIABLE, Secret, Signing, secrets

OLD, NEW = b"the older secret", b"the newer secret"
BASE64 = string.ascii_uppercase + string.ascii_lowercase + string.digits + "-_"


@pytest.fixture(scope="module")
def signing() -> Signing:
    return Signing([OLD, NEW], "web", "SERVERID")


def signature(secret: bytes, payload: str, use: str = "web/SERVERID") -> str:
    """Made without the library: HMAC-SHA256 with a key that is an HMAC-SHA256 of the salt."""
    key = hmac.digest(secret, f"sticky-sessions/{use}".encode(), "sha256")
    digest = hmac.digest(key, payload.encode(), "sha256")
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")


# -- the format


@pytest.mark.parametrize("payload", ["r1", "r1@018bcfe568000abcde|ZVPxA|ZVPxA", "", ".", "a.b"])
def test_a_signed_value_is_the_payload_a_dot_and_sha256_under_a_derived_key(signing: Signing, payload: str):
    assert signing.sign(payload) == f"{payload}.{signature(NEW, payload)}"
    assert len(signing.sign(payload)) == len(payload) + SIGNATURE_LENGTH


@pytest.mark.parametrize("payload", ["r1", "", ".", "a.b", "r1|ZVPxA"])
def test_what_was_signed_verifies(signing: Signing, payload: str):
    assert signing.verify(signing.sign(payload)) == (payload, 0)


def test_keys_are_numbered_from_the_newest_which_signs(signing: Signing):
    assert list(signing.keys) == [0, 1]
    assert signing.sign("r1") == signing.sign("r1", 0) == Signing([NEW], "web", "SERVERID").sign("r1")
    assert signing.sign("r1", 1) == Signing([OLD], "web", "SERVERID").sign("r1")


def test_an_old_key_verifies_by_its_number_until_it_is_retired(signing: Signing):
    written_before = Signing([OLD], "web", "SERVERID").sign("r1")
    assert signing.verify(written_before) == ("r1", 1)
    assert Signing([NEW], "web", "SERVERID").verify(written_before) is None


def test_a_key_that_is_yet_to_come_does_not_verify():
    assert Signing([OLD], "web", "SERVERID").verify(Signing([OLD, NEW], "web", "SERVERID").sign("r1")) is None


@pytest.mark.parametrize(
    "backend, cookie",
    [
        pytest.param("api", "SERVERID", id="another backend"),
        pytest.param("web", "SERVERIE", id="another cookie"),
        pytest.param("SERVERID", "web", id="the other way round"),
        pytest.param("web/", "SERVERID", id="a delimiter more"),
    ],
)
def test_purpose_is_part_of_the_signature(signing: Signing, backend: str, cookie: str):
    assert signing.verify(Signing([OLD, NEW], backend, cookie).sign("r1")) is None


# -- to the letter: base64 can be spelled in many ways, a mark in one


def other_spellings(value: str) -> list[str]:
    """Values that a lenient reader of base64 takes for the same signature."""
    head, last = value[:-1], BASE64.index(value[-1])
    same_bits = [head + BASE64[last & ~3 | unused] for unused in range(4) if last & 3 != unused]
    payload, _, signed = value.rpartition(".")
    return [
        *same_bits,
        *(value + more for more in ("=", "==", "=" * 1000, "!!", "!", "\n", " ", "\t", "%", "\x00", ".", "AAAA")),
        *(f"{payload}.{more}{signed}" for more in ("!", "=", " ", "\n", "%", ".")),
        f"{payload}.{signed[:20]}!!{signed[20:]}",
        f"{payload}.{signed.swapcase()}",
        value.replace("-", "+").replace("_", "/") + "=",
        f" {value}",
        f'"{value}"',
    ]


@pytest.mark.parametrize("payload", ["r1", "r2", "r3", "r1|ZVPxA"])
def test_no_second_spelling_of_a_valid_value_is_valid(signing: Signing, payload: str):
    value = signing.sign(payload)
    for spelling in other_spellings(value):
        assert spelling != value
        assert signing.verify(spelling) is None, spelling


def test_library_alone_would_accept_a_second_spelling():
    """Why we compare: if this fails one day, the comparison may go."""
    from itsdangerous import Signer

    signer = Signer(NEW, salt="sticky-sessions/web/SERVERID", key_derivation="hmac", digest_method=hashlib.sha256)
    value = signer.sign("r1").decode()
    assert any(signer.validate(spelling) for spelling in other_spellings(value))


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("", id="nothing"),
        pytest.param(".", id="a dot"),
        pytest.param("r1", id="no signature"),
        pytest.param("r1.", id="an empty signature"),
        pytest.param("." + "A" * 43, id="no payload"),
        pytest.param("r1." + "A" * 43, id="a signature of zeros"),
        pytest.param("r1.\xff\xfe", id="Latin-1"),
        pytest.param("r\u20ac.x", id="Unicode"),
        pytest.param("\ud800.x", id="half a character"),
        pytest.param("\x00" * 65536, id="64 KB of zeros"),
        pytest.param("." * 65536, id="64 KB of dots"),
        pytest.param("r1." + "A" * 1_000_000, id="a megabyte of signature"),
    ],
)
def test_value_that_was_not_signed_does_not_verify(signing: Signing, value: str):
    assert signing.verify(value) is None


@given(st.text(max_size=80))
def test_no_text_is_an_error(value: str):
    assert Signing([NEW], "web", "SERVERID").verify(value) is None


characters = st.characters(max_codepoint=255)
edits = st.lists(
    st.tuples(st.sampled_from(["insert", "delete", "change", "double"]), st.integers(0, 200), characters),
    min_size=1,
    max_size=4,
)


def edited(value: str, changes: list[tuple[str, int, str]]) -> str:
    for how, where, character in changes:
        at = where % (len(value) + 1)
        if how == "insert":
            value = value[:at] + character + value[at:]
        elif how == "delete":
            value = value[:at] + value[at + 1 :]
        elif how == "change":
            value = value[:at] + character + value[at + 1 :]
        else:
            value = value[:at] + value
    return value


@given(st.sampled_from(["r1", "r2|ZVPxA", "r1@018bcfe568000abcde|ZVPxA|ZVPxA"]), st.sampled_from([0, 1]), edits)
def test_an_edited_value_verifies_only_if_it_is_the_same_again(
    payload: str, key: int, changes: list[tuple[str, int, str]]
):
    signing = Signing([OLD, NEW], "web", "SERVERID")
    value = signing.sign(payload, key)
    changed = edited(value, changes)
    assert signing.verify(changed) == ((payload, key) if changed == value else None)


@given(st.text(st.characters(max_codepoint=127), max_size=40))
def test_any_ascii_payload_comes_back_as_it_was(payload: str):
    signing = Signing([OLD, NEW], "web", "SERVERID")
    for key in signing.keys:
        assert signing.verify(signing.sign(payload, key)) == (payload, key)


# -- digests


def test_a_digest_is_32_hexadecimal_digits_that_depend_on_everything(signing: Signing):
    several = {
        signing.digest("r1"),
        signing.digest("r2"),
        signing.digest("r1", 1),
        Signing([NEW], "api", "SERVERID").digest("r1"),
        Signing([NEW], "web", "OTHER").digest("r1"),
    }
    assert len(several) == 5
    for digest in several:
        assert len(digest) == 32
        assert set(digest) <= set(string.hexdigits.lower())
    assert signing.digest("r1", 1) == Signing([OLD], "web", "SERVERID").digest("r1")


# -- secrets


@pytest.mark.parametrize(
    "given_secret, keys",
    [
        pytest.param("a secret of text", (b"a secret of text",), id="text"),
        pytest.param(OLD, (OLD,), id="bytes"),
        pytest.param([OLD, "the newer secret"], (OLD, NEW), id="a list, oldest to newest"),
        pytest.param((OLD, NEW), (OLD, NEW), id="a tuple"),
        pytest.param("äöüßäöüß", "äöüßäöüß".encode(), id="bytes are counted, not characters"),
        pytest.param(b"\x00" * SHORTEST, (b"\x00" * SHORTEST,), id="just long enough"),
    ],
)
def test_secrets_come_as_one_or_as_several(given_secret: Secret | list[Secret], keys: tuple[bytes, ...] | bytes):
    assert secrets(given_secret) == (keys if isinstance(keys, tuple) else (keys,))


def test_secret_of_the_environment_is_used_if_none_is_given(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(VARIABLE, "from the environment")
    assert secrets(None) == (b"from the environment",)
    assert secrets(OLD) == (OLD,), "what was given goes before"


@pytest.mark.parametrize("environment", [None, ""], ids=["not set", "empty"])
def test_no_secret_at_all_is_refused_with_the_line_that_makes_one(
    monkeypatch: pytest.MonkeyPatch, environment: str | None
):
    monkeypatch.delenv(VARIABLE, raising=False)
    if environment is not None:
        monkeypatch.setenv(VARIABLE, environment)
    with pytest.raises(ValueError, match="needs a secret") as refused:
        secrets(None)
    assert "secrets.token_urlsafe(32)" in str(refused.value)
    assert VARIABLE in str(refused.value)


def test_the_environment_s_secret_must_be_long_enough_too(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(VARIABLE, "x" * (SHORTEST - 1))
    with pytest.raises(ValueError, match="shorter than 16 bytes"):
        secrets(None)


@pytest.mark.parametrize(
    "given_secret, problem",
    [
        pytest.param("", "shorter than 16 bytes", id="empty text"),
        pytest.param(b"", "shorter than 16 bytes", id="empty bytes"),
        pytest.param("x" * 15, "shorter than 16 bytes", id="short"),
        pytest.param([OLD, ""], "shorter than 16 bytes", id="an empty one among others"),
        pytest.param(["", NEW], "shorter than 16 bytes", id="an empty old one"),
        pytest.param([], "empty list", id="an empty list"),
        pytest.param((), "empty list", id="an empty tuple"),
        pytest.param([32], "another type in it", id="a number, of which bytes() would make that many zeros"),
        pytest.param(bytearray(32), "another type in it", id="bytes that can be changed"),
    ],
)
def test_a_weak_secret_is_refused_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, given_secret: Secret | list[Secret], problem: str
):
    monkeypatch.setenv(VARIABLE, "long enough, but not asked for")
    with pytest.raises(ValueError, match=problem) as refused:
        secrets(given_secret)
    assert "token_urlsafe" in str(refused.value)
    assert "x" * 15 not in str(refused.value)
