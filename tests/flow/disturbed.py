"""Run `aid make` in children that are killed with -9 at random moments; then let one finish.

    python disturbed.py KILLS SEED ARGUMENTS...

The parent imports everything once and forks, so that the kills fall into the work and not into imports.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time

import torch

from aid.cli import main
from aid.verbs import VERBS


def start(arguments: list[str]) -> int:
    pid = os.fork()
    if pid == 0:
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, 1)
        try:
            main(arguments)
        except SystemExit as end:
            os._exit(int(end.code or 0))
        except BaseException:
            os._exit(70)
        os._exit(0)
    return pid


def kill_after(pid: int, seconds: float) -> bool:
    """Whether the child was still at work when it was killed."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return False
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return True


if __name__ == "__main__":
    kills, chance, arguments = int(sys.argv[1]), random.Random(int(sys.argv[2])), sys.argv[3:]
    torch.set_num_threads(1)
    for entry in VERBS.values():
        entry.load()
    landed = 0
    for _ in range(kills):
        landed += kill_after(start(arguments), chance.uniform(0.1, 1.2))
    _, status = os.waitpid(start(arguments), 0)
    print(f"{landed} of {kills} kills fell into the work")
    sys.exit(os.waitstatus_to_exitcode(status))
