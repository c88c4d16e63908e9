"""The generated authority and broker certificate, used in a real TLS handshake."""

from __future__ import annotations

import socket
import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Thread

import pytest
from cryptography import x509

from infra.local.certificates import LIFETIME, RENEW_BEFORE, broker_keystore, ensure_certificates
from infra.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path)


def broker_certificate(settings: Settings) -> x509.Certificate:
    return x509.load_pem_x509_certificate(broker_keystore(settings).read_bytes())


def shake_hands(settings: Settings, name: str) -> None:
    """A TLS handshake between a server with the broker's keystore and a client that trusts only the authority."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(broker_keystore(settings))
    client = ssl.create_default_context(cafile=str(settings.ca_file))
    ours, theirs = socket.socketpair()

    def serve() -> None:
        with theirs:
            try:
                server.wrap_socket(theirs, server_side=True).close()
            except OSError:  # the client's refusal is what the test looks at
                return

    thread = Thread(target=serve)
    thread.start()
    try:
        with ours, client.wrap_socket(ours, server_hostname=name):
            pass
    finally:
        thread.join()


def test_clients_trust_the_broker_at_its_own_names_only(settings: Settings) -> None:
    ensure_certificates(settings)
    shake_hands(settings, "127.0.0.1")
    shake_hands(settings, "localhost")
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(settings, "kafka.example")


def test_the_key_is_pkcs8_and_private(settings: Settings) -> None:
    ensure_certificates(settings)
    assert b"-----BEGIN PRIVATE KEY-----" in broker_keystore(settings).read_bytes()
    for path in (broker_keystore(settings), settings.ca_file):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_principal_is_what_super_users_names(settings: Settings) -> None:
    ensure_certificates(settings)
    assert broker_certificate(settings).subject.rfc4514_string() == "CN=broker"


def test_a_second_call_changes_nothing(settings: Settings) -> None:
    assert ensure_certificates(settings)
    before = broker_keystore(settings).read_bytes()
    assert not ensure_certificates(settings)
    assert broker_keystore(settings).read_bytes() == before


def test_is_renewed_before_it_expires(settings: Settings) -> None:
    start = datetime.now(UTC)
    ensure_certificates(settings, start)
    assert not ensure_certificates(settings, start + LIFETIME - RENEW_BEFORE - timedelta(days=1))
    assert ensure_certificates(settings, start + LIFETIME - RENEW_BEFORE + timedelta(days=1))
    assert broker_certificate(settings).not_valid_after_utc > start + LIFETIME


@pytest.mark.parametrize("damage", ["missing", "cut off", "of another authority"])
def test_damage_is_repaired(settings: Settings, tmp_path: Path, damage: str) -> None:
    ensure_certificates(settings)
    if damage == "missing":
        settings.ca_file.unlink()
    elif damage == "cut off":
        broker_keystore(settings).write_bytes(broker_keystore(settings).read_bytes()[:300])
    else:
        other = Settings(home=tmp_path / "other")
        ensure_certificates(other)
        settings.ca_file.write_bytes(other.ca_file.read_bytes())
    assert ensure_certificates(settings)
    shake_hands(settings, "127.0.0.1")
