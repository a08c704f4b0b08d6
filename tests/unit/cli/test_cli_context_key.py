"""`flowstone context-key` from a file: whoever may read the origin, the copy is this user's alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowstone.cli.app import main
from flowstone.tenant.signing import ContextKeys

OLD, NEW = ContextKeys.generate(), ContextKeys.generate()


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    """A mounted Secret with two keys, which everybody in the pod may read."""
    file = tmp_path / "mounted"
    file.write_text(f"{NEW.text()}{OLD.text()}")
    file.chmod(0o444)
    return file


def test_the_keys_are_copied_into_a_private_file(
    origin: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both keys, the one that signs first, mode 0600; run again over an existing file it is replaced; nothing of a key
    is printed."""
    to = tmp_path / "context.key"
    for _ in range(2):
        assert main(["context-key", "--from", str(origin), "--to", str(to)]) == 0
    assert to.stat().st_mode & 0o777 == 0o600
    assert ContextKeys.from_file(to).keys == (*NEW.keys, *OLD.keys)
    assert capsys.readouterr().out == "2 context keys\n" * 2
    assert sorted(file.name for file in tmp_path.iterdir()) == ["context.key", "mounted"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "one or two keys"),
        ("12\n", "one or two keys"),
        ("no key\n", "hexadecimal"),
        (f"{'ab' * 32}\n" * 3, "one or"),
    ],
)
def test_what_is_no_key_is_refused(tmp_path: Path, text: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The message says what must be there; nothing is written."""
    (tmp_path / "mounted").write_text(text)
    assert main(["context-key", "--from", str(tmp_path / "mounted"), "--to", str(tmp_path / "to")]) != 0
    assert words in capsys.readouterr().err
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize("origins", [[], ["--secret", "s", "--from", "f"]])
def test_one_origin_is_named(tmp_path: Path, origins: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Neither none nor both."""
    assert main(["context-key", "--to", str(tmp_path / "to"), *origins]) == 2
    assert "name one of the two" in capsys.readouterr().err


def test_an_origin_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By its path, as bad input, without a traceback."""
    missing = tmp_path / "missing"
    assert main(["context-key", "--from", str(missing), "--to", str(tmp_path / "to")]) == 2
    said = capsys.readouterr().err
    assert str(missing) in said.replace("\n", "")
    assert "Traceback" not in said
