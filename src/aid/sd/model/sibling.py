"""The `.yaml` that lies beside some checkpoints under their name, as far as it tells what is predicted.

Source: A1111 modules/sd_models_config.py, where such a file overrides what was detected.
"""

from __future__ import annotations

import re
from pathlib import Path

from aid.sd.model.architecture import Prediction

MAX_BYTES = 1 << 16
PARAMETERIZATION = re.compile(rb"""^\s*parameterization\s*:\s*["']?(v|eps)\b""", re.MULTILINE)


def sibling_prediction(path: Path) -> Prediction | None:
    """`parameterization: "v"` or `"eps"` of `NAME.yaml` beside `NAME.ckpt`; None without such a file."""
    try:
        with open(path.with_suffix(".yaml"), "rb") as stream:
            found = PARAMETERIZATION.search(stream.read(MAX_BYTES))
    except OSError:
        return None
    if found is None:
        return None
    return "v" if found[1] == b"v" else "epsilon"
