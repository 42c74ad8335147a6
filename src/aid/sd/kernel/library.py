"""The kernels that were compiled with the package, for torch's own threads."""

from __future__ import annotations

import ctypes
from pathlib import Path
from struct import Struct


def load_kernel(beside: str, *structs: Struct) -> tuple[ctypes.CDLL, int] | None:
    """The one beside a Python file that calls it with such structs, and the floats of the widest vectors that
    it has a use for, 8 or 16. None where it wasn't compiled, is of another version, or this machine can't run
    it. Its threads are torch's, which has to be imported before."""
    try:
        library = ctypes.CDLL(str(Path(beside).with_name("_kernel.so")))
        lanes = library.aid_usable(*(one.size for one in structs))
    except (OSError, AttributeError):
        return None
    return (library, lanes) if lanes else None
