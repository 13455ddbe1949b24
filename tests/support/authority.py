"""A certificate authority of a test: certificates as servers and clients have them."""

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAY = timedelta(days=1)


class Identity(NamedTuple):
    """The files of a certificate and of its key."""

    certificate: Path
    key: Path


class Authority:
    """Signs certificates; `path` is its own, for those who trust it."""

    def __init__(self, folder: Path, name: str = "netsonde test authority") -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(name)
        self._issued = 0
        public = self._key.public_key()
        now = datetime.now(UTC)
        self._certificate = (
            _builder(self._name, self._name, public, now - DAY, now + 30 * DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_usage(signs=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        self.path = folder / f"{name.replace(' ', '-')}.pem"
        self.path.write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM))

    def server(self, *names: str, into: Identity | None = None, days: float = 30) -> Identity:
        """Issue a server's certificate; one of a negative number of days has expired."""
        return self._issue(names or ("127.0.0.1",), ExtendedKeyUsageOID.SERVER_AUTH, into, days)

    def client(self, name: str = "agent", *, days: float = 30) -> Identity:
        """Issue a client's certificate."""
        return self._issue((name,), ExtendedKeyUsageOID.CLIENT_AUTH, None, days)

    def _issue(
        self,
        names: tuple[str, ...],
        purpose: x509.ObjectIdentifier,
        into: Identity | None,
        days: float,
    ) -> Identity:
        key = ec.generate_private_key(ec.SECP256R1())
        public = key.public_key()
        until = datetime.now(UTC) + days * DAY
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        certificate = (
            _builder(self._name, _name(names[0]), public, until - 60 * DAY, until)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(x509.SubjectAlternativeName([_alias(n) for n in names]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(authority, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        self._issued += 1
        stem = f"{self.path.stem}-{self._issued}"
        made = into or Identity(self._folder / f"{stem}.pem", self._folder / f"{stem}.key")
        made.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        made.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return made


def _builder(
    issuer: x509.Name,
    subject: x509.Name,
    public: ec.EllipticCurvePublicKey,
    since: datetime,
    until: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .issuer_name(issuer)
        .subject_name(subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(since)
        .not_valid_after(until)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _alias(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
