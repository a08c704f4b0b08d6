"""Signed contexts and the file their keys lie in."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

import pytest

from flowstone.errors import UnsafeLogin
from flowstone.tenant.signing import KEY_FILE_VARIABLE, ContextKeys, pads


def test_a_context_is_scope_expiry_and_hmac() -> None:
    """The signature is HMAC-SHA256 over `scope.expiry`, by the first of two keys."""
    first, second = bytes(range(32)), bytes(32)
    expected = hmac.new(first, b"t/local/acme.1700000000", hashlib.sha256).hexdigest()
    assert ContextKeys((first, second)).sign("acme", 1700000000) == f"t/local/acme.1700000000.{expected}"


def test_the_pads_are_all_that_hmac_needs() -> None:
    """sha256(outer + sha256(inner + text)) is the HMAC, which is what the database computes."""
    key, text = bytes(range(100, 132)), b"t/c/x.1"
    inner, outer = pads(key)
    assert hashlib.sha256(outer + hashlib.sha256(inner + text).digest()).digest() == hmac.digest(key, text, "sha256")


def test_a_key_file_is_the_owners_alone_and_reads_back(tmp_path: Path) -> None:
    """Written with mode 0600, never over an existing file; a group may read it (a mounted Secret), others not."""
    path, keys = tmp_path / "key", ContextKeys.generate()
    keys.write(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert ContextKeys.from_file(path) == keys
    with pytest.raises(FileExistsError):
        keys.write(path)
    path.chmod(0o440)
    assert ContextKeys.from_file(path) == keys
    for mode in (0o444, 0o602, 0o620):
        path.chmod(mode)
        with pytest.raises(UnsafeLogin, match="chmod 0600"):
            ContextKeys.from_file(path)


@pytest.mark.parametrize("text", ["", "zz", "00" * 31, "00" * 33, "\n".join(["00" * 32] * 3), "ä"])
def test_a_file_with_something_else_is_refused_unrepeated(tmp_path: Path, text: str) -> None:
    """No key, a short one, a long one, three of them, no hexadecimal digits: refused, without repeating the content."""
    path = tmp_path / "key"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(UnsafeLogin) as caught:
        ContextKeys.from_file(path)
    assert not text or text not in str(caught.value)


def test_the_environment_names_the_file(tmp_path: Path) -> None:
    """The key file and the cluster's id come from the environment; without it the error names the variable."""
    path, keys = tmp_path / "key", ContextKeys.generate("cluster-1")
    keys.write(path)
    read = ContextKeys.from_environment({KEY_FILE_VARIABLE: str(path), "FLOWSTONE_CLUSTER_ID": "cluster-1"})
    assert read == keys
    assert read.scope("acme") == "t/cluster-1/acme"
    for environment in ({}, {KEY_FILE_VARIABLE: str(tmp_path / "missing")}):
        with pytest.raises(UnsafeLogin, match="key"):
            ContextKeys.from_environment(environment)


def test_a_key_does_not_show() -> None:
    """Neither repr nor an error message carries a key."""
    keys = ContextKeys.generate()
    assert keys.keys[0].hex() not in repr(keys)
    assert repr(keys.keys[0]) not in repr(keys)
