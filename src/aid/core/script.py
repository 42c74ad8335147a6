"""Data inside a page's script."""

from __future__ import annotations

import json
from typing import Any


def script_data(data: Any) -> str:
    """JSON that can stand in a `<script>`: nothing in it ends one, or begins a comment."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    for mark in "<>&\u2028\u2029":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return text
