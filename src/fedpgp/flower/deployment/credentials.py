"""Certificates for TLS, and the keys by which a SuperLink knows its SuperNodes."""

import datetime
import ipaddress
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedpgp.errors import OutputError
from fedpgp.runtime.files import write

PRIVATE = 0o600
YEARS_OF_AUTHORITY, DAYS_OF_SERVER = 10, 825  # the longest that common clients accept of a server
SKEW = datetime.timedelta(minutes=5)  # by which the clocks of two machines may differ when a certificate is new


def write_authority(certificate: Path, key: Path) -> None:
    """A new certificate authority: its certificate, which everybody gets, and its key, which signs servers."""
    secret, name = ec.generate_private_key(ec.SECP256R1()), _name("fedpgp federation")
    identifier = x509.SubjectKeyIdentifier.from_public_key(secret.public_key())
    made = (
        _builder(name, name, secret.public_key(), 365 * YEARS_OF_AUTHORITY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(identifier, critical=False)
        .sign(secret, hashes.SHA256())
    )
    write(key, _pem(secret), PRIVATE)
    write(certificate, made.public_bytes(serialization.Encoding.PEM))


def write_server(
    certificate: Path, key: Path, authority: Path, authority_key: Path, hosts: Sequence[str], days: int = DAYS_OF_SERVER
) -> None:
    """A server's certificate for some host names and IP addresses, localhost always, signed by an authority."""
    ca = _read(authority)
    signer = serialization.load_pem_private_key(authority_key.read_bytes(), None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    secret = ec.generate_private_key(ec.SECP256R1())
    names = [_alternative(host) for host in dict.fromkeys(["localhost", "127.0.0.1", *hosts])]
    identifier = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    made = (
        _builder(_name("fedpgp server"), ca.subject, secret.public_key(), days)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        .sign(signer, hashes.SHA256())
    )
    write(key, _pem(secret), PRIVATE)
    write(certificate, made.public_bytes(serialization.Encoding.PEM))


def write_node_key(key: Path, public: Path) -> None:
    """A SuperNode's pair of keys, in the forms that Flower reads."""
    secret = ec.generate_private_key(ec.SECP384R1())
    openssh, plain = serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    write(key, secret.private_bytes(serialization.Encoding.PEM, openssh, plain), PRIVATE)
    form = serialization.PublicFormat.OpenSSH
    write(public, secret.public_key().public_bytes(serialization.Encoding.OpenSSH, form) + b"\n")


def check_certificate(certificate: Path, authority: Path, now: datetime.datetime | None = None) -> None:
    """Raises OutputError for one that is unreadable, not the authority's, over, or not valid yet on this clock."""
    now = now or datetime.datetime.now(datetime.UTC)
    found, ca = _read(certificate), _read(authority)
    remedy = "fedpgp federate renew makes a new one of the server; of the authority, fedpgp federate init"
    try:
        found.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise OutputError(f"{certificate} is not signed by {authority}: {remedy}") from error
    for path, one in ((certificate, found), (authority, ca)):
        if now > one.not_valid_after_utc:
            raise OutputError(f"{path} has been over since {one.not_valid_after_utc:%Y-%m-%d}: {remedy}")
        if now < one.not_valid_before_utc:
            raise OutputError(
                f"{path} is valid from {one.not_valid_before_utc:%Y-%m-%d %H:%M} UTC and this machine's clock says"
                f" {now:%Y-%m-%d %H:%M}: set the clock"
            )


def _read(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise OutputError(f"{path} is no certificate: {error}; copy it again from where it was made") from error


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return x509.CertificateBuilder(
        issuer_name=issuer,
        subject_name=subject,
        public_key=key,
        serial_number=x509.random_serial_number(),
        not_valid_before=now - SKEW,
        not_valid_after=now + datetime.timedelta(days=days),
    )


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _usage(**used: bool) -> x509.KeyUsage:
    every = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**{name: used.get(name, False) for name in every})


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
