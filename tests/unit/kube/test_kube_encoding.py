"""What server-side apply sends: YAML to the server, whatever text is in it."""

from __future__ import annotations

import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from flowstone.kube.encoding import apply_body

TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@given(st.dictionaries(st.text(st.characters(categories=["Lu", "Ll"]), min_size=1, max_size=20), TEXT))
def test_yaml_and_json_read_the_same(body: dict[str, str]) -> None:
    """Any text of keys and errors reaches the server as it was, whichever of the two reads it."""
    sent = apply_body({"data": body})
    assert yaml.safe_load(sent) == json.loads(sent) == {"data": body}


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        ("😀", '{"t": "😀"}'),
        ("中é", '{"t": "中é"}'),
        ("\x00\x1b[31m\n", r'{"t": "\u0000\u001b[31m\n"}'),
        ("\x7f\x85\u2028\ufeff\uffff", r'{"t": "\u007f\u0085\u2028\ufeff\uffff"}'),
        (r"\ud83d\ude00", r'{"t": "\\ud83d\\ude00"}'),
        ("a\ud800b", '{"t": "a\ufffdb"}'),
    ],
)
def test_texts_that_yaml_is_strict_about(text: str, sent: str) -> None:
    """Emoji go raw, what YAML calls unprintable is escaped, and half a character becomes the sign for one."""
    assert apply_body({"t": text}) == sent
