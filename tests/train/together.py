"""Run `aid` as several processes that train together, as torchrun and accelerate start them.

    python together.py COMMANDS.json

A command has `words`, a number of `processes`, whether weights are `sharded`, and perhaps `kill_at`, a file:
when that is there, all are killed with -9. The parent imports everything once and forks.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
import traceback
from pathlib import Path

import torch

from aid.cli import main
from aid.verbs import VERBS


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def start(rank: int, ranks: int, port: int, words: list[str]) -> int:
    pid = os.fork()
    if pid == 0:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
        try:
            main(words)
        except SystemExit as end:
            os._exit(int(end.code or 0))
        except BaseException:
            traceback.print_exc()
            os._exit(70)
        os._exit(0)
    return pid


def run(words: list[str], processes: int, sharded: bool = False, kill_at: str = "") -> int:
    """The worst exit code."""
    at = Path(kill_at) if kill_at else None
    os.environ["ACCELERATE_USE_FSDP"] = str(sharded).lower()
    port = free_port()
    children = [start(rank, processes, port, words) for rank in range(processes)]
    while at is not None and not at.exists():
        if os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            raise SystemExit(f"one ended before {at.name} was there")
        time.sleep(0.01)
    for pid in children if at is not None else ():
        os.kill(pid, signal.SIGKILL)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    return 0 if at is not None else max(map(abs, codes))


if __name__ == "__main__":
    torch.set_num_threads(1)
    for entry in VERBS.values():
        entry.load()
    import accelerate  # noqa: F401
    import torch._dynamo
    import torch.distributed.fsdp

    sys.exit(max(run(**one) for one in json.loads(Path(sys.argv[1]).read_text())))
