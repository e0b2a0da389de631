"""Certificates for TLS, and the keys with which SuperNodes identify themselves to a SuperLink."""

import datetime
import ipaddress
from collections.abc import Sequence
from inspect import signature
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedpgp.errors import OutputError
from fedpgp.runtime.files import write

PRIVATE = 0o600
COPY_AGAIN = "Copy the file again from the machine that made it"
YEARS_OF_AUTHORITY, DAYS_OF_SERVER = 10, 825  # common clients accept a server's certificate for at most 825 days
SKEW = datetime.timedelta(minutes=5)  # allowed difference of two machines' clocks when a certificate is new

Key = ec.EllipticCurvePrivateKey
Extensions = Sequence[tuple[x509.ExtensionType, bool]]  # each extension, and whether it is critical


def write_authority(directory: Path) -> None:
    """Write a new certificate authority: ca.crt, for every machine, and ca.key, which signs servers' certificates."""
    key, name = ec.generate_private_key(ec.SECP256R1()), "fedpgp federation"
    extensions: Extensions = [
        (x509.BasicConstraints(ca=True, path_length=0), True),
        (_usage(key_cert_sign=True, crl_sign=True), True),
        (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
    ]
    _write(directory / "ca", name, key, 365 * YEARS_OF_AUTHORITY, extensions, _name(name), key)


def write_server(directory: Path, authority: Path, host: str, days: int = DAYS_OF_SERVER) -> None:
    """Write a server's certificate server.crt and its key, for a host name or IP address and for localhost.

    Parameters
    ----------
    directory
        Directory to write to, which has the certificate of the authority that the nodes trust.
    authority
        Directory of this authority.
    host
        Host name or IP address.
    days
        Number of days for which the certificate is valid.

    Raises
    ------
    OutputError
        If the authority cannot be read, or the nodes trust another authority.
    """
    try:
        ca = x509.load_pem_x509_certificate((authority / "ca.crt").read_bytes())
        signer = serialization.load_pem_private_key((authority / "ca.key").read_bytes(), None)
    except (OSError, ValueError) as error:
        raise OutputError(
            f"the certificate authority cannot be read: {error}",
            where=str(authority),
            remedy="Use --authority with the directory authority/ that fedpgp federate init wrote",
        ) from error
    assert isinstance(signer, Key)
    if ca != _read(directory / "ca.crt"):
        raise OutputError(
            f"this authority differs from {directory / 'ca.crt'}, which the nodes trust",
            where=str(authority / "ca.crt"),
            remedy="Use --authority with the directory authority/ of this federation",
        )
    identifier = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    names = [_alternative(name) for name in dict.fromkeys(["localhost", "127.0.0.1", host])]
    extensions: Extensions = [
        (x509.SubjectAlternativeName(names), False),
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (_usage(digital_signature=True), True),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
        (x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), False),
    ]
    key = ec.generate_private_key(ec.SECP256R1())
    _write(directory / "server", "fedpgp server", key, days, extensions, ca.subject, signer)


def write_node_key(key: Path, public: Path) -> None:
    """Write a SuperNode's private and public key in the forms that Flower reads."""
    secret = ec.generate_private_key(ec.SECP384R1())
    openssh, plain = serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    write(key, secret.private_bytes(serialization.Encoding.PEM, openssh, plain), PRIVATE)
    form = serialization.PublicFormat.OpenSSH
    write(public, secret.public_key().public_bytes(serialization.Encoding.OpenSSH, form) + b"\n")


def read_public_key(path: Path) -> ec.EllipticCurvePublicKey:
    """Return the public key of a node; raise OutputError if the file does not have one."""
    try:
        key = serialization.load_ssh_public_key(path.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise OutputError(f"the file is not a public key: {error}", where=str(path), remedy=COPY_AGAIN) from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise OutputError("the file does not have an elliptic-curve key", where=str(path), remedy=COPY_AGAIN)
    return key


def public_key_pem(key: ec.EllipticCurvePublicKey) -> bytes:
    """Return the form in which Flower sends and stores a public key."""
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def check_certificate(certificate: Path, authority: Path, now: datetime.datetime | None = None) -> None:
    """Check a certificate and its authority.

    Parameters
    ----------
    certificate, authority
        Files of the certificate and of the authority's certificate.
    now
        Time of the check; None means this machine's clock.

    Raises
    ------
    OutputError
        If a certificate cannot be read, is not signed by the authority, has expired, or is not valid yet.
    """
    now = now or datetime.datetime.now(datetime.UTC)
    certificates = {certificate: _read(certificate), authority: _read(authority)}
    remedy = (
        "Make a new server certificate with fedpgp federate renew; if the authority has expired, make a new federation"
        " with fedpgp federate init"
    )
    try:
        certificates[certificate].verify_directly_issued_by(certificates[authority])
    except (ValueError, TypeError, InvalidSignature) as error:
        problem = f"the certificate is not signed by {authority}"
        raise OutputError(problem, where=str(certificate), remedy=remedy) from error
    for path, content in certificates.items():
        if now > content.not_valid_after_utc:
            problem = f"the certificate expired on {content.not_valid_after_utc:%Y-%m-%d}"
            raise OutputError(problem, where=str(path), remedy=remedy)
        if now < content.not_valid_before_utc:
            raise OutputError(
                f"the certificate is valid from {content.not_valid_before_utc:%Y-%m-%d %H:%M} UTC, but this machine's"
                f" clock says {now:%Y-%m-%d %H:%M}",
                where=str(path),
                remedy="Set the clock",
            )


def _read(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise OutputError(f"the file is not a certificate: {error}", where=str(path), remedy=COPY_AGAIN) from error


def _write(
    path: Path, subject: str, key: Key, days: int, extensions: Extensions, issuer: x509.Name, signer: Key
) -> None:
    """Write a certificate and its key, in files of the same name with the suffixes .crt and .key."""
    now, serial = datetime.datetime.now(datetime.UTC), x509.random_serial_number()
    until = now + datetime.timedelta(days=days)
    builder = x509.CertificateBuilder(issuer, _name(subject), key.public_key(), serial, now - SKEW, until)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    pem, form, plain = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    write(path.with_suffix(".key"), key.private_bytes(pem, form, plain), PRIVATE)
    write(path.with_suffix(".crt"), builder.sign(signer, hashes.SHA256()).public_bytes(pem))


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _usage(**used: bool) -> x509.KeyUsage:
    """Return the key usage with only these uses."""
    return x509.KeyUsage(**{**dict.fromkeys(signature(x509.KeyUsage).parameters, False), **used})
