"""`aid studio` as it is started."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import requests

START = [sys.executable, "-c", "from aid.cli import main; main()", "studio", "--threads", "1"]


def _heeding_ctrl_c() -> None:
    """Also where the tests run in the background of a shell, which has it ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_it_serves_until_ctrl_c_even_while_it_draws(lively_checkpoint: Path) -> None:
    words = [*START, "--models", str(lively_checkpoint), "--port", "0"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, preexec_fn=_heeding_ctrl_c) as process:
        assert process.stderr
        found = re.search(r"http://127\.0\.0\.1:\d+", process.stderr.readline())
        assert found
        address = found[0]
        assert "<title>AID studio" in requests.get(address, timeout=30).text
        body = {"prompt": "a", "steps": 1000, "width": 256, "height": 256, "batch_size": 64}
        statuses: list[int] = []
        waiting = [threading.Thread(target=_asked, args=(address, body, statuses)) for _ in range(3)]
        for one in waiting:
            one.start()
        while not requests.get(f"{address}/sdapi/v1/progress", timeout=30).json()["state"]["sampling_step"]:
            time.sleep(0.05)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130 and time.monotonic() - began < 20
        for one in waiting:
            one.join()
        assert len(statuses) == 3 and {*statuses} <= {200, 503}
        assert "Traceback" not in process.stderr.read()


def _asked(address: str, body: dict[str, Any], statuses: list[int]) -> None:
    statuses.append(requests.post(f"{address}/sdapi/v1/txt2img", json=body, timeout=60).status_code)


def test_a_port_that_is_taken_and_a_place_without_models_are_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run([*START, "--port", str(port)], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "Choose another with --port" in done.stderr
    done = subprocess.run([*START, "--models", str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "holds no model" in done.stderr
