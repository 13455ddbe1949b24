"""TLS files: what is accepted, and what is said about the rest."""

import ssl
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from hypothesis import given
from hypothesis import strategies as st

from netsonde.errors import ConfigError
from netsonde.tls import (
    FILE_MAX_BYTES,
    ClientTls,
    RenewableContext,
    ServerTls,
    client_tls,
    distrust,
    read_certificates,
    refusal,
)
from support.authority import Authority, Identity


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def identity(authority: Authority) -> Identity:
    return authority.server("control.test")


def refused(certificate: Path, key: Path, client_ca: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        ServerTls(certificate=certificate, key=key, client_ca=client_ca).context()
    return str(caught.value)


def test_a_server_asks_for_certificates_only_where_it_is_told(
    authority: Authority, identity: Identity
) -> None:
    modes = {
        None: ssl.CERT_NONE,
        "optional": ssl.CERT_OPTIONAL,
        "required": ssl.CERT_REQUIRED,
    }
    for auth, mode in modes.items():
        context = ServerTls(
            certificate=identity.certificate,
            key=identity.key,
            client_ca=authority.path if auth else None,
            client_auth=auth or "required",
        ).context()
        assert context.verify_mode is mode
        assert context.minimum_version is ssl.TLSVersion.TLSv1_2


def test_a_client_always_verifies(authority: Authority, identity: Identity) -> None:
    for files in (
        ClientTls(),
        ClientTls(ca=authority.path),
        ClientTls(certificate=identity.certificate, key=identity.key),
    ):
        context = files.context()
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.check_hostname
        assert context.minimum_version is ssl.TLSVersion.TLSv1_2


def test_a_ca_file_replaces_the_systems_authorities(authority: Authority) -> None:
    (only,) = ClientTls(ca=authority.path).context().get_ca_certs()
    assert only["subject"] == ((("commonName", "netsonde test authority"),),)


def test_remarks_between_certificates_are_left_out(authority: Authority, tmp_path: Path) -> None:
    other = Authority(tmp_path, "other")
    bundle = tmp_path / "bundle.pem"
    remark = "# Autorité n° 1\n".encode("latin-1")
    bundle.write_bytes(remark + authority.path.read_bytes() + remark + other.path.read_bytes())
    assert len(ClientTls(ca=bundle).context().get_ca_certs()) == 2


def test_files_are_named_with_what_is_wrong(
    authority: Authority, identity: Identity, tmp_path: Path
) -> None:
    missing, empty = tmp_path / "missing.pem", tmp_path / "empty.pem"
    empty.touch()
    certificate, key = identity
    other = authority.server("other.test").key
    assert refused(missing, key) == (
        f"the certificate file {missing} cannot be read: No such file or directory"
    )
    assert refused(certificate, missing) == (
        f"the key file {missing} cannot be read: No such file or directory"
    )
    assert refused(tmp_path, key).endswith("cannot be read: Is a directory")
    assert refused(empty, key) == f"the certificate file {empty} holds no certificate in PEM form"
    assert refused(certificate, empty) == f"the key file {empty} holds no private key in PEM form"
    assert refused(certificate, other) == (
        f"the key in {other} does not match the certificate in {certificate}"
    )
    assert "holds no certificate" in refused(certificate, key, client_ca=key)


def test_a_damaged_certificate_is_said_to_be_unusable(identity: Identity, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.pem"
    lines = identity.certificate.read_text().splitlines()
    damaged.write_text("\n".join([lines[0], "AAAA", *lines[2:]]))
    assert "cannot be used" in refused(damaged, identity.key)
    with pytest.raises(ConfigError, match="cannot be used"):
        ClientTls(ca=damaged).context()


def test_a_key_with_a_passphrase_is_refused_and_nobody_is_asked(identity: Identity) -> None:
    key = serialization.load_pem_private_key(identity.key.read_bytes(), None)
    identity.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    assert refused(*identity) == f"the key file {identity.key} has a passphrase: give one without"


def test_a_file_that_is_no_certificate_file_is_not_read_to_its_end(
    identity: Identity, tmp_path: Path
) -> None:
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(FILE_MAX_BYTES + 1)
    assert refused(large, identity.key).endswith(f"has more than {FILE_MAX_BYTES} bytes")


@given(content=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_certificates_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.pem"
    for text in (content, b"-----BEGIN CERTIFICATE-----\n%b\n-----END CERTIFICATE-----" % content):
        path.write_bytes(text)
        with pytest.raises(ConfigError, match=r"any\.pem"):
            ClientTls(ca=path).context()


def test_client_auth_is_one_of_two(identity: Identity) -> None:
    with pytest.raises(ConfigError, match="required or optional, not 'maybe'"):
        ServerTls(certificate=identity.certificate, key=identity.key, client_auth="maybe")


def test_half_of_a_pair_and_files_without_https_are_refused(tmp_path: Path) -> None:
    one = tmp_path / "one"
    with pytest.raises(ConfigError, match="belong together"):
        ClientTls(certificate=one)
    with pytest.raises(ConfigError, match="belong together"):
        client_tls("https://x", None, None, one)
    with pytest.raises(ConfigError, match="write https://"):
        client_tls("http://x", one, None, None)
    assert client_tls("HTTPS://x", one, None, None).files == (one,)
    assert client_tls("http://x", None, None, None).files == ()


def test_files_are_read_again_when_they_change(authority: Authority, identity: Identity) -> None:
    files = ServerTls(certificate=identity.certificate, key=identity.key)
    kept = RenewableContext(files.files, files.context)
    before = kept.context
    assert not kept.renew()
    assert kept.renew(at_once=True)
    assert kept.context is not before
    before = kept.context
    identity.key.unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        kept.renew()
    assert not kept.renew(), "it was said"
    assert kept.context is before
    authority.server("control.test", into=identity)
    assert kept.renew()
    assert kept.context is not before


def test_read_certificates_gives_each_in_pem(authority: Authority, tmp_path: Path) -> None:
    chain = tmp_path / "chain.pem"
    chain.write_bytes(authority.path.read_bytes() * 2)
    assert read_certificates(chain).count("-----BEGIN CERTIFICATE-----") == 2


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (10, "has expired"),
        (9, "is not valid yet"),
        (62, "is for another host (why)"),
        (64, "is for another host (why)"),
        (18, "authority unknown here"),
        (19, "authority unknown here"),
        (20, "authority unknown here"),
        (23, "is not valid: why"),
    ],
)
def test_what_is_wrong_with_a_servers_certificate_is_said(code: int, said: str) -> None:
    error = ssl.SSLCertVerificationError()
    error.verify_code, error.verify_message = code, "why."
    assert said in distrust(error)


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("TLSV13_ALERT_CERTIFICATE_REQUIRED", "wants a client certificate"),
        ("TLSV1_ALERT_UNKNOWN_CA", "its authority is not one"),
        ("SSLV3_ALERT_CERTIFICATE_EXPIRED", "it has expired"),
        ("SSLV3_ALERT_HANDSHAKE_FAILURE", "refused the handshake"),
        ("WRONG_VERSION_NUMBER", "does not speak TLS there"),
        ("UNSUPPORTED_PROTOCOL", "no TLS 1.2 or newer"),
        ("SOMETHING_NEW", "something new"),
    ],
)
def test_why_tls_failed_is_said(reason: str, said: str) -> None:
    error = OSError(1, f"[SSL: {reason}] some words (_ssl.c:2580)")
    assert said in str(refusal(error))


def test_other_errors_are_not_tls() -> None:
    assert refusal(ConnectionResetError(104, "reset")) is None
