"""Builds the merge kernel with the package, where there is a C compiler; without it torch does that work.

`python hatch_build.py` builds it in place, as an editable installation does.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent
SOURCE = ROOT / "src/aid/merge/arithmetic/modes.c"  # which includes the others
LIBRARY = SOURCE.with_name("_kernel.so")
FLAGS = (
    "-O3",
    "-std=c11",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fPIC",
    "-shared",
    "-Wall",
    "-Wno-psabi",
    "-Werror=implicit",
)


def compile_kernel() -> bool:
    """Whether it could be built; says why not."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not compiler or os.name != "posix":
        print("aid: no C compiler, so merging will be done by torch", file=sys.stderr)
        return False
    part = LIBRARY.with_name(f"{LIBRARY.name}.{os.getpid()}")
    command = [*compiler.split(), *FLAGS, str(SOURCE), "-o", str(part), "-lm"]
    try:
        subprocess.run(command, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"aid: merging will be done by torch, as the kernel isn't compiled: {error}", file=sys.stderr)
        part.unlink(missing_ok=True)
        return False
    os.replace(part, LIBRARY)  # a running process keeps the one it has
    return True


def platform_tag() -> str:
    """The kernel needs a machine and a C library, and no particular Python."""
    return "py3-none-" + sysconfig.get_platform().replace("-", "_").replace(".", "_")


if __name__ == "__main__":
    sys.exit(not compile_kernel())
else:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface

    class KernelBuildHook(BuildHookInterface):  # type: ignore[misc,type-arg]
        """hatchling's hook for wheels, editable ones too."""

        def initialize(self, version: str, build_data: dict[str, Any]) -> None:
            if self.target_name == "wheel" and compile_kernel():
                build_data["pure_python"] = False
                build_data["tag"] = platform_tag()
                build_data["artifacts"].append(str(LIBRARY.relative_to(ROOT)))
