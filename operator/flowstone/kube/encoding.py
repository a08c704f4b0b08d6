"""Bodies of server-side apply: the API server reads them as YAML, not as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

APPLY = "application/apply-patch+yaml; charset=utf-8"
"""Content type of such a body; the parameter keeps the client's library from encoding it once more, as plain JSON."""

_SURROGATES = re.compile("[\ud800-\udfff]")
_UNPRINTABLE = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
"""What JSON may hold as it is and YAML may not; all else beyond ASCII is the same in both."""


def apply_body(body: Mapping[str, Any]) -> str:
    """Write a body as JSON that YAML reads alike.

    JSON writes a character above U+FFFF, such as an emoji, as two escapes; YAML refuses each of them. So those
    characters are sent as they are. A lone surrogate, which neither can carry, becomes U+FFFD.
    """
    text = _SURROGATES.sub("\ufffd", json.dumps(body, ensure_ascii=False))
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
