"""TLS towards a server: whom it trusts, what it shows, and what can't work. Spoken in memory, without a socket."""

import ssl
from pathlib import Path

import pytest

from sticky_core.errors import ConfigError
from sticky_core.http.tls import TLS

trustme = pytest.importorskip("trustme")
NAME = "upstream.example"


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture(scope="module")
def ca_file(authority, tmp_path_factory) -> Path:
    path: Path = tmp_path_factory.mktemp("authority") / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return path


@pytest.fixture(scope="module")
def server(authority) -> ssl.SSLContext:
    """An upstream that speaks HTTP/2 too, and goes by two names and an address."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(NAME, "other.example", "192.0.2.1").configure_cert(context)
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


@pytest.fixture(scope="module")
def curious(authority) -> ssl.SSLContext:
    """An upstream that lets in whom the authority knows."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(NAME).configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def spoken(tls: TLS, server: ssl.SSLContext, name: str = NAME) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Both ends of a connection, after the handshake."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        tls.context().wrap_bio(to_client, to_server, server_hostname=tls.sni or name),
        server.wrap_bio(to_server, to_client, server_side=True),
    )
    for _ in range(5):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                pass
    return ends


def test_a_server_that_the_authority_knows_is_trusted(ca_file: Path, server: ssl.SSLContext):
    ours, theirs = spoken(TLS(ca_file=ca_file), server)
    ours.write(b"hello")
    assert theirs.read() == b"hello"
    assert TLS(ca_file=str(ca_file)).context().get_ca_certs() == TLS(ca_file=ca_file).context().get_ca_certs() != []


def test_a_stranger_is_not(server: ssl.SSLContext):
    with pytest.raises(ssl.SSLCertVerificationError, match=r"unable to get local issuer|self.signed"):
        spoken(TLS(), server)


def test_nor_is_one_that_the_authority_knows_by_another_name(ca_file: Path, server: ssl.SSLContext):
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        spoken(TLS(ca_file=ca_file), server, "evil.example")
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        spoken(TLS(ca_file=ca_file, sni="evil.example"), server)


def test_an_address_is_a_name_too(ca_file: Path, server: ssl.SSLContext):
    spoken(TLS(ca_file=ca_file), server, "192.0.2.1")
    with pytest.raises(ssl.SSLCertVerificationError, match="IP address mismatch"):
        spoken(TLS(ca_file=ca_file), server, "192.0.2.2")


def test_sni_is_the_name_to_ask_for_and_to_verify(authority, ca_file: Path):
    asked = []
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("other.example").configure_cert(context)
    context.sni_callback = lambda end, name, context: asked.append(name)
    spoken(TLS(ca_file=ca_file, sni="other.example"), context, "10.0.0.1")
    assert asked == ["other.example"]


def test_without_verification_anybody_will_do(server: ssl.SSLContext):
    spoken(TLS(verify=False), server)
    spoken(TLS(verify=False, sni="evil.example"), server)


def test_http_1_1_is_spoken_even_where_http_2_is_offered(ca_file: Path, server: ssl.SSLContext):
    ours, _ = spoken(TLS(ca_file=ca_file), server)
    assert ours.selected_alpn_protocol() == "http/1.1"


def test_a_certificate_is_shown_where_there_is_one(authority, ca_file: Path, curious: ssl.SSLContext, tmp_path: Path):
    shown = authority.issue_cert("client.example")
    crt, key, both = tmp_path / "client.crt", tmp_path / "client.key", tmp_path / "client.pem"
    shown.cert_chain_pems[0].write_to_path(crt)
    shown.private_key_pem.write_to_path(key)
    shown.private_key_and_cert_chain_pem.write_to_path(both)
    for tls in (TLS(ca_file=ca_file, crt=crt, key=key), TLS(ca_file=ca_file, crt=str(both))):
        _, theirs = spoken(tls, curious)
        certificate = theirs.getpeercert()
        assert certificate is not None
        assert certificate["subjectAltName"] == (("DNS", "client.example"),)
    with pytest.raises(ssl.SSLError, match="did not return a certificate"):
        spoken(TLS(ca_file=ca_file), curious)


# -- what can't work is told


def test_files_that_are_not_there_are_told_all_at_once(tmp_path: Path):
    with pytest.raises(ConfigError) as error:
        TLS(ca_file=tmp_path / "ca", crt=tmp_path / "crt", key=tmp_path)
    assert error.value.problems == tuple(
        f"tls: {name} {str(path)!r} is not there"
        for name, path in (("ca_file", tmp_path / "ca"), ("crt", tmp_path / "crt"), ("key", tmp_path))
    )


def test_what_has_no_effect_is_told(ca_file: Path):
    with pytest.raises(ConfigError, match="tls: key is of no use without crt"):
        TLS(key=ca_file)
    with pytest.raises(ConfigError, match="tls: ca_file is of no use with verify=False"):
        TLS(ca_file=ca_file, verify=False)


def test_a_file_that_holds_something_else_is_named(authority, ca_file: Path, tmp_path: Path):
    junk, key = tmp_path / "junk.pem", tmp_path / "other.key"
    junk.write_text("nothing of the kind")
    authority.issue_cert("other.example").private_key_pem.write_to_path(key)
    with pytest.raises(ConfigError, match=r"ca_file .*junk\.pem' holds no certificates"):
        TLS(ca_file=junk).context()
    with pytest.raises(ConfigError, match=r"crt .*junk\.pem' and key .*junk\.pem' are no certificate and its key"):
        TLS(crt=junk).context()
    with pytest.raises(ConfigError, match=r"crt .*ca\.pem' and key .*other\.key' are no certificate and its key"):
        TLS(crt=ca_file, key=key).context()  # the key of another


def test_a_key_with_a_password_is_told_rather_than_asked_for(authority, tmp_path: Path):
    serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")
    shown = authority.issue_cert("client.example")
    crt, key = tmp_path / "client.crt", tmp_path / "client.key"
    shown.cert_chain_pems[0].write_to_path(crt)
    plain = serialization.load_pem_private_key(shown.private_key_pem.bytes(), None)
    key.write_bytes(
        plain.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"password"),
        )
    )
    with pytest.raises(ConfigError, match="tls: the key is encrypted"):
        TLS(crt=crt, key=key).context()
