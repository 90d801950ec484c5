"""TLS to a server: trusted certificates, the client certificate, invalid options. In memory, without a socket."""

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
    """An upstream that accepts clients with a certificate of the CA."""
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


def test_a_server_with_a_certificate_of_the_ca_is_trusted(ca_file: Path, server: ssl.SSLContext):
    ours, theirs = spoken(TLS(ca_file=ca_file), server)
    ours.write(b"hello")
    assert theirs.read() == b"hello"
    assert TLS(ca_file=str(ca_file)).context().get_ca_certs() == TLS(ca_file=ca_file).context().get_ca_certs() != []


def test_a_server_with_another_certificate_is_not_trusted(server: ssl.SSLContext):
    with pytest.raises(ssl.SSLCertVerificationError, match=r"unable to get local issuer|self.signed"):
        spoken(TLS(), server)


def test_a_certificate_for_another_name_is_not_trusted(ca_file: Path, server: ssl.SSLContext):
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        spoken(TLS(ca_file=ca_file), server, "evil.example")
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        spoken(TLS(ca_file=ca_file, sni="evil.example"), server)


def test_a_certificate_for_an_address_is_trusted(ca_file: Path, server: ssl.SSLContext):
    spoken(TLS(ca_file=ca_file), server, "192.0.2.1")
    with pytest.raises(ssl.SSLCertVerificationError, match="IP address mismatch"):
        spoken(TLS(ca_file=ca_file), server, "192.0.2.2")


def test_sni_is_the_name_that_is_requested_and_verified(authority, ca_file: Path):
    asked = []
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("other.example").configure_cert(context)
    context.sni_callback = lambda end, name, context: asked.append(name)
    spoken(TLS(ca_file=ca_file, sni="other.example"), context, "10.0.0.1")
    assert asked == ["other.example"]


def test_any_certificate_is_accepted_without_verification(server: ssl.SSLContext):
    spoken(TLS(verify=False), server)
    spoken(TLS(verify=False, sni="evil.example"), server)


def test_http_1_1_is_negotiated_even_if_http_2_is_offered(ca_file: Path, server: ssl.SSLContext):
    ours, _ = spoken(TLS(ca_file=ca_file), server)
    assert ours.selected_alpn_protocol() == "http/1.1"


def test_the_client_certificate_is_sent(authority, ca_file: Path, curious: ssl.SSLContext, tmp_path: Path):
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


# -- invalid options


def test_all_missing_files_are_reported_at_once(tmp_path: Path):
    with pytest.raises(ConfigError) as error:
        TLS(ca_file=tmp_path / "ca", crt=tmp_path / "crt", key=tmp_path)
    assert error.value.problems == tuple(
        f"tls: {name} {str(path)!r} does not exist"
        for name, path in (("ca_file", tmp_path / "ca"), ("crt", tmp_path / "crt"), ("key", tmp_path))
    )


def test_options_without_effect_are_refused(ca_file: Path):
    with pytest.raises(ConfigError, match="tls: key has no effect without crt"):
        TLS(key=ca_file)
    with pytest.raises(ConfigError, match="tls: ca_file has no effect with verify=False"):
        TLS(ca_file=ca_file, verify=False)


def test_a_file_with_other_content_is_named(authority, ca_file: Path, tmp_path: Path):
    junk, key = tmp_path / "junk.pem", tmp_path / "other.key"
    junk.write_text("nothing of the kind")
    authority.issue_cert("other.example").private_key_pem.write_to_path(key)
    with pytest.raises(ConfigError, match=r"ca_file .*junk\.pem' contains no certificates"):
        TLS(ca_file=junk).context()
    with pytest.raises(ConfigError, match=r"crt .*junk\.pem' and key .*junk\.pem' are not a certificate and its key"):
        TLS(crt=junk).context()
    with pytest.raises(ConfigError, match=r"crt .*ca\.pem' and key .*other\.key' are not a certificate and its key"):
        TLS(crt=ca_file, key=key).context()  # the key of another


def test_an_encrypted_key_is_refused_without_a_prompt(authority, tmp_path: Path):
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
