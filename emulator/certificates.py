"""A certificate authority of this checkout, and the certificate that every TLS part of the local Azure shows."""

import ipaddress
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import certifi
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from .config import BLOB_HOST, HOST

NAMES: list[x509.GeneralName] = [
    x509.DNSName("localhost"),
    x509.DNSName(BLOB_HOST),
    x509.IPAddress(ipaddress.ip_address(HOST)),
    x509.IPAddress(ipaddress.ip_address("::1")),
]
LIFETIME = timedelta(days=800)  # macOS refuses server certificates valid for longer than 825 days
RENEW_BEFORE = timedelta(days=30)


def ensure_certificates(folder: Path) -> None:
    """Write ``server.pem``, ``server.key`` and ``bundle.pem`` (what to trust) unless they are there and fresh.

    The authority's private key is not kept: a new certificate comes with a new authority.
    """
    server = folder / "server.pem"
    if server.exists():
        certificate = x509.load_pem_x509_certificate(server.read_bytes())
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        if certificate.not_valid_after_utc - RENEW_BEFORE > datetime.now(UTC) and list(names) == NAMES:
            _write_bundle(folder)
            return
    folder.mkdir(parents=True, exist_ok=True)
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Local Azure (this checkout only)")])
    authority = (
        _builder(authority_name, authority_name, authority_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(certificate_authority=True), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    certificate = (
        _builder(subject, authority_name, key.public_key())
        .add_extension(x509.SubjectAlternativeName(NAMES), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    (folder / "authority.pem").write_bytes(authority.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with open(os.open(folder / "server.key", os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "wb") as file:
        file.write(private)
    server.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    _write_bundle(folder)


def _write_bundle(folder: Path) -> None:
    """What this shell trusts already (a company's proxy, say) and our authority."""
    trusted = Path(os.environ.get("EMULATOR_BASE_CA_BUNDLE") or certifi.where()).read_bytes()
    new = folder / "bundle.new"
    new.write_bytes(trusted + b"\n" + (folder / "authority.pem").read_bytes())
    new.replace(folder / "bundle.pem")  # a running program may be reading it


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(certificate_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=certificate_authority,
        crl_sign=certificate_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
