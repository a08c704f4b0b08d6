"""The cluster's own certificate authority, and a certificate for every component.

Everything is made anew with every cluster and lives as long as it: nothing is rotated.
"""

import datetime as dt
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.cluster.layout import BRIDGE_ADDRESS, FIRST_SERVICE_ADDRESS, NODE
from tests.cluster.shell import write

LIFETIME = dt.timedelta(days=365)

CLOCK_SKEW = dt.timedelta(hours=1)
"""Certificates are valid from this long before now, so that a clock set back a little does not refuse them."""

SERVER_NAMES = (
    "127.0.0.1",
    BRIDGE_ADDRESS,
    FIRST_SERVICE_ADDRESS,
    "localhost",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
)
"""Every name under which the API server is called."""


@dataclass(frozen=True)
class Client:
    """Who a client certificate speaks for: user and, optionally, group."""

    file: str
    user: str
    group: str | None = None


CLIENTS = (
    Client("admin", "flowstone-admin", "system:masters"),
    Client("controller-manager", "system:kube-controller-manager"),
    Client("scheduler", "system:kube-scheduler"),
    Client("proxy", "system:kube-proxy"),
    Client("kubelet", f"system:node:{NODE}", "system:nodes"),
    Client("apiserver-kubelet-client", "flowstone-apiserver", "system:masters"),
    Client("coredns", "flowstone-coredns"),
)


@dataclass(frozen=True)
class Pair:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def certificate_pem(self) -> bytes:
        """The certificate as it stands in a file."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def key_pem(self) -> bytes:
        """The key as it stands in a file."""
        return _private_pem(self.key)


def authority(now: dt.datetime) -> Pair:
    """A new self-signed authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("flowstone-cluster-ca")
    usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
    builder = _builder(name, name, key, now).add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
    certificate = builder.add_extension(usage, True).sign(key, hashes.SHA256())
    return Pair(certificate, key)


def server_certificate(ca: Pair, name: str, addresses: Sequence[str], now: dt.datetime) -> Pair:
    """A certificate for a server that is called under the given host names and IP addresses."""
    key = ec.generate_private_key(ec.SECP256R1())
    names = x509.SubjectAlternativeName([_alternative(address) for address in addresses])
    builder = _builder(_name(name), ca.certificate.subject, key, now).add_extension(names, False)
    return _signed(builder, ca, key, ExtendedKeyUsageOID.SERVER_AUTH)


def client_certificate(ca: Pair, client: Client, now: dt.datetime) -> Pair:
    """A certificate with which the API server knows a user and a group."""
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(_name(client.user, client.group), ca.certificate.subject, key, now)
    return _signed(builder, ca, key, ExtendedKeyUsageOID.CLIENT_AUTH)


def write_all(folder: Path, now: dt.datetime) -> None:
    """Write a complete new set: `ca`, the servers, the clients and the service accounts' key."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    ca = authority(now)
    _write_pair(folder, "ca", ca)
    _write_pair(folder, "apiserver", server_certificate(ca, "kube-apiserver", SERVER_NAMES, now))
    node_names = (NODE, BRIDGE_ADDRESS, "127.0.0.1")
    _write_pair(folder, "kubelet-server", server_certificate(ca, NODE, node_names, now))
    for client in CLIENTS:
        _write_pair(folder, client.file, client_certificate(ca, client, now))
    _write_service_account_key(folder)


def _write_pair(folder: Path, name: str, pair: Pair) -> None:
    write(folder / f"{name}.crt", pair.certificate_pem())
    write(folder / f"{name}.key", pair.key_pem(), mode=0o600)


def _write_service_account_key(folder: Path) -> None:
    """Service account tokens are signed with RSA, which every verifier of theirs understands."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    write(folder / "service-account.key", _private_pem(key), mode=0o600)
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    write(folder / "service-account.pub", public)


def _private_pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _name(common: str, organisation: str | None = None) -> x509.Name:
    group = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation)] if organisation else []
    return x509.Name([*group, x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _alternative(address: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(address))
    except ValueError:
        return x509.DNSName(address)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: dt.datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
    )


def _signed(
    builder: x509.CertificateBuilder, ca: Pair, key: ec.EllipticCurvePrivateKey, purpose: x509.ObjectIdentifier
) -> Pair:
    # Python 3.13 verifies strictly (RFC 5280) and refuses a certificate that does not identify its issuer's key.
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.key.public_key())
    constrained = builder.add_extension(issuer, False).add_extension(x509.BasicConstraints(False, None), True)
    certificate = constrained.add_extension(x509.ExtendedKeyUsage([purpose]), False).sign(ca.key, hashes.SHA256())
    return Pair(certificate, key)
