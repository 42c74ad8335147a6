"""Kill `train finetune` with -9 at random points until so many kills have landed; each child goes on with
what the last one left, and whatever is finished must be, to the byte, what nobody disturbed.

    python killed.py KILLS SEED CHECKPOINT DATASET FOLDER

A point is a step, a tensor on its way into a file, or a change in the file system. The parent trains once and
forks, so that kills fall into the training and not into imports.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from aid.core.workbench import Workbench
from aid.sd.file import tensorfile
from aid.train.run import finetune
from aid.train.settings import FinetuneInputs, FinetuneSettings
from aid.train.tables import BalanceSettings
from aid.train.training import Training

SETTINGS = FinetuneSettings(
    steps=6,
    batch_size=1,
    save_every=1,
    warmup=1,
    checkpointing=False,
    balance=BalanceSettings(rule="measured", by="word", every=2, pictures=1, timesteps=1),
)
LATEST = {"step": 3, "tensor": 4000, "file": 30}  # the last point of a kind at which a child may be killed


def watch(notice: Callable[[str], None]) -> None:
    """Call `notice` before every point."""

    def watched(kind: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            notice(kind)
            return real(*arguments, **named)

        return call

    for name in ("replace", "mkdir", "unlink", "fsync"):
        setattr(os, name, watched("file", getattr(os, name)))
    setattr(tensorfile, "raw_bytes", watched("tensor", tensorfile.raw_bytes))  # noqa: B010
    setattr(Training, "gradients", watched("step", Training.gradients))  # noqa: B010


def came_through(complete: Callable[[], object], kind: str, left: int) -> bool:
    """Whether a child came to the end before the `left`-th point of a kind, at which it is killed."""
    pid = os.fork()
    if pid == 0:

        def notice(found: str) -> None:
            nonlocal left
            if found == kind:
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1

        watch(notice)
        try:
            complete()
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit("a child failed")
    return os.WIFEXITED(status)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def main(kills: int, seed: int, checkpoint: Path, dataset: Path, folder: Path) -> None:
    inputs, bench = FinetuneInputs(checkpoint=checkpoint, dataset=dataset), Workbench(threads=1)
    chance, landed, finished = random.Random(seed), Counter[str](), 0
    straight, out = contents(finetune(SETTINGS, inputs, folder / "straight", bench)), folder / "out"
    while landed.total() < kills:
        kind = chance.choice(list(LATEST))
        if not came_through(
            partial(finetune, SETTINGS, inputs, out, bench), kind, chance.randrange(LATEST[kind])
        ):
            landed[kind] += 1
            continue
        if other := {name for name, _ in contents(out).items() ^ straight.items()}:
            raise SystemExit(f"other bytes in {sorted(other)}, after kills at {dict(landed)}")
        finished += 1
        shutil.rmtree(out)
    print(f"{kills} kills at {dict(landed)}, {finished} times to the end")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(int(sys.argv[1]), int(sys.argv[2]), *map(Path, sys.argv[3:]))
