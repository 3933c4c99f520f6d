"""The certificate of `seedvc serve --lan`: made here and kept, or given. What cannot work is told before a start."""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from serve_app.access import is_address
from serve_app.commands import UserMistake
from serve_app.commands.private_files import read_private, write_private

VALID = timedelta(days=365)  # Apple's systems take no more than 825 days
RENEWED_BEFORE = timedelta(days=30)
CLOCKS_DIFFER = timedelta(days=1)
"""How far the clock of a phone may be behind ours."""
ALWAYS = ("localhost", "127.0.0.1")
_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")


@dataclass(frozen=True)
class Certificate:
    """A certificate that fits its private key and is valid now."""

    file: Path
    private_key_file: Path
    parsed: x509.Certificate
    is_own: bool
    """Made here, so that browsers do not know it."""

    @property
    def fingerprint(self) -> str:
        """SHA-256, as browsers show it."""
        return self.parsed.fingerprint(hashes.SHA256()).hex(":").upper()

    @property
    def names(self) -> tuple[str, ...]:
        """Host names and addresses that it is for; a wildcard is none."""
        return tuple(sorted(name for name in _names_of(self.parsed) if "*" not in name))


def kept_certificate(folder: Path, names: Collection[str], now: datetime) -> Certificate:
    """The one of an earlier start. Made again where it is not for all of `names` (host names and addresses), or
    runs out within a month. The private key stays.

    Raises:
        UserMistake: the folder cannot be used, or holds a private key that is none or that others can read.
    """
    wanted = {*ALWAYS, *(name for name in map(str.lower, names) if _NAME.fullmatch(name) or is_address(name))}
    file, key_file = folder / "certificate.pem", folder / "private-key.pem"
    private_key = _own_key(key_file)
    parsed = _kept(file, private_key, wanted, now)
    if parsed is None:
        parsed = _signed(private_key, wanted, now)
        write_private(file, parsed.public_bytes(serialization.Encoding.PEM))
    return Certificate(file, key_file, parsed, is_own=True)


def given_certificate(file: Path, key_file: Path, now: datetime) -> Certificate:
    """A certificate of the user's, PEM, its chain behind it.

    Raises:
        UserMistake: a file cannot be read, the two do not fit, or the certificate is not valid now.
    """
    try:
        parsed = x509.load_pem_x509_certificate(_read(file))
    except ValueError:
        raise UserMistake(f"{file} is no certificate in PEM form") from None
    if _public(_private_key(key_file)) != _public(parsed):
        raise UserMistake(f"{key_file} is not the private key of the certificate {file}")
    if now > parsed.not_valid_after_utc:
        raise UserMistake(f"the certificate {file} ran out on {parsed.not_valid_after_utc:%Y-%m-%d}: renew it")
    if now < parsed.not_valid_before_utc:
        raise UserMistake(f"the certificate {file} is valid only from {parsed.not_valid_before_utc:%Y-%m-%d %H:%M} UTC")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(file, key_file)
    except ssl.SSLError as error:
        raise UserMistake(f"{file} and {key_file} cannot be served: {error.reason or error}") from error
    return Certificate(file, key_file, parsed, is_own=False)


def _own_key(file: Path) -> ec.EllipticCurvePrivateKey:
    if not file.exists():
        private_key = ec.generate_private_key(ec.SECP256R1())
        pem = private_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        write_private(file, pem)
    read_private(file)
    kept = _private_key(file)
    if not isinstance(kept, ec.EllipticCurvePrivateKey):
        raise UserMistake(f"{file} is not a private key that was made here: remove it, and a new one is made")
    return kept


def _kept(
    file: Path, private_key: ec.EllipticCurvePrivateKey, wanted: set[str], now: datetime
) -> x509.Certificate | None:
    """The kept certificate, where it still serves."""
    try:
        parsed = x509.load_pem_x509_certificate(file.read_bytes())
    except (OSError, ValueError):
        return None
    runs = parsed.not_valid_before_utc <= now <= parsed.not_valid_after_utc - RENEWED_BEFORE
    serves = runs and _public(parsed) == _public(private_key) and wanted <= _names_of(parsed)
    return parsed if serves else None


def _signed(private_key: ec.EllipticCurvePrivateKey, names: set[str], now: datetime) -> x509.Certificate:
    """Signed by itself, and unable to sign others: who takes the key can pose as this server and as no other."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "seedvc on the local network")])
    public_key = private_key.public_key()
    places = [x509.IPAddress(ip_address(n)) if is_address(n) else x509.DNSName(n) for n in sorted(names)]
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "key_cert_sign", "crl_sign"),
        False,
    )
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCKS_DIFFER)
        .not_valid_after(now + VALID)
        .add_extension(x509.SubjectAlternativeName(places), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(digital_signature=True, encipher_only=False, decipher_only=False, **usage), critical=True
        )
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public_key), critical=False)
        .sign(private_key, hashes.SHA256())
    )


def _names_of(parsed: x509.Certificate) -> set[str]:
    try:
        places = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    return {*places.get_values_for_type(x509.DNSName), *map(str, places.get_values_for_type(x509.IPAddress))}


def _private_key(file: Path) -> CertificateIssuerPrivateKeyTypes:
    try:
        found = serialization.load_pem_private_key(_read(file), None)
    except TypeError:
        raise UserMistake(f"the private key {file} is encrypted; the server needs one without a passphrase") from None
    except ValueError:
        raise UserMistake(f"{file} is no private key in PEM form") from None
    return found  # type: ignore[return-value]  # of another kind, it cannot be a certificate's


def _public(holder: x509.Certificate | CertificateIssuerPrivateKeyTypes) -> bytes:
    return holder.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserMistake(f"cannot read {file}: {os.strerror(error.errno or 0)}") from error
