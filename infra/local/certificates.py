"""The embedded stack's own certificate authority and the broker's certificate.

Kafka reads PEM stores only with a PKCS#8 key, and takes the key and its chain from one file, so that is what we write.
"""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from infra.private_files import write_private
from infra.settings import Settings

LIFETIME = timedelta(days=825)
"""What TLS libraries accept at most for a server certificate from a private authority."""

RENEW_BEFORE = timedelta(days=30)

BROKER_NAME = "broker"
"""The certificate's common name: Kafka's principal for it is `User:CN=broker`."""


def broker_keystore(settings: Settings) -> Path:
    """The file with the broker's private key (PKCS#8) and its certificate (PEM)."""
    return settings.secrets_dir / "broker.pem"


def ensure_certificates(settings: Settings, now: datetime | None = None) -> bool:
    """Makes the authority (`settings.ca_file`) and the broker's keystore; returns whether they were made anew.

    Both are left alone while they belong together and are valid for another 30 days after `now` (UTC). All files have
    mode 0600. The authority's key is thrown away after signing: whoever reads the secrets later cannot sign with it.
    """
    moment = now or datetime.now(UTC)
    if _good_until(settings, moment + RENEW_BEFORE):
        return False
    settings.secrets_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    _make(settings, moment)
    return True


def _make(settings: Settings, moment: datetime) -> None:
    """Signs the broker's certificate by a new authority, both valid from `moment`, and writes the two files."""
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Millrace local authority")])
    authority = (
        _builder(authority_name, authority_name, authority_key.public_key(), moment)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    broker_key = ec.generate_private_key(ec.SECP256R1())
    broker_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, BROKER_NAME)])
    names = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")]
    # The controller listener asks for client certificates, and the broker shows the same one there.
    purposes = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    broker = (
        _builder(authority_name, broker_name, broker_key.public_key(), moment)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    key = broker_key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    write_private(broker_keystore(settings), key + broker.public_bytes(pem))
    write_private(settings.ca_file, authority.public_bytes(pem))


def _good_until(settings: Settings, moment: datetime) -> bool:
    """Whether both files are there, belong together and are still valid at `moment`."""
    try:
        authority = x509.load_pem_x509_certificate(settings.ca_file.read_bytes())
        broker = x509.load_pem_x509_certificate(broker_keystore(settings).read_bytes())
        broker.verify_directly_issued_by(authority)
    except Exception:  # missing, cut off, or of another authority: all mean making them anew
        return False
    return min(authority.not_valid_after_utc, broker.not_valid_after_utc) > moment


def _builder(
    issuer: x509.Name, subject: x509.Name, key: ec.EllipticCurvePublicKey, moment: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .issuer_name(issuer)
        .subject_name(subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(moment - timedelta(minutes=5))  # clocks of two machines may differ a little
        .not_valid_after(moment + LIFETIME)
    )


def _usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
