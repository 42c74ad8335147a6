"""Builds the kernels with the package, where there is a C compiler; without it torch and numpy do their work.

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
PACKAGE = ROOT / "src/aid"
KERNELS = {
    "merging": ("merge/arithmetic/modes.c", "merge/arithmetic/_kernel.so", "-ffp-contract=off"),
    "attention": ("sd/attention/attention.c", "sd/attention/_kernel.so", "-ffp-contract=fast"),
    "products": ("sd/product/product.c", "sd/product/_kernel.so", "-ffp-contract=fast"),
    "AdamW": ("train/optimiser/adamw.c", "train/optimiser/_kernel.so", "-ffp-contract=off"),
}
FLAGS = (
    "-O3",
    "-std=c11",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fPIC",
    "-shared",
    "-Wall",
    "-Wno-psabi",
    "-Werror=implicit",
)


def compile_kernels() -> list[Path]:
    """The libraries that could be built; says why one could not."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not compiler or os.name != "posix":
        print("aid: no C compiler, so torch and numpy will do the kernels' work", file=sys.stderr)
        return []
    return [library for work in KERNELS if (library := compile_kernel(work, compiler.split()))]


def compile_kernel(work: str, compiler: list[str]) -> Path | None:
    source, library, contraction = KERNELS[work]
    path = PACKAGE / library
    part = path.with_name(f"{path.name}.{os.getpid()}")
    command = [*compiler, *FLAGS, contraction, str(PACKAGE / source), "-o", str(part), "-lm"]
    try:
        subprocess.run(command, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        print(
            f"aid: {work} will take longer, without a kernel, as that isn't compiled: {error}",
            file=sys.stderr,
        )
        for stale in (part, path):
            stale.unlink(missing_ok=True)
        return None
    os.replace(part, path)  # a running process keeps the one it has
    return path


def platform_tag() -> str:
    """The kernels need a machine and a C library, and no particular Python."""
    return "py3-none-" + sysconfig.get_platform().replace("-", "_").replace(".", "_")


if __name__ == "__main__":
    sys.exit(len(compile_kernels()) < len(KERNELS))
else:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface

    class KernelBuildHook(BuildHookInterface):  # type: ignore[misc,type-arg]
        """hatchling's hook for wheels, editable ones too."""

        def initialize(self, version: str, build_data: dict[str, Any]) -> None:
            if self.target_name == "wheel" and (built := compile_kernels()):
                build_data["pure_python"] = False
                build_data["tag"] = platform_tag()
                build_data["artifacts"] += [str(library.relative_to(ROOT)) for library in built]
