"""What a picture from the studio takes over HTTP, warm and cold, beside drawing alone: the starter, 32 steps
Euler a, as A1111's clients ask for it.

    python benchmarks/studio.py [--json FILE] [--rounds N] [--edge PX] [--checkpoint FILE]

The limit draws the same shots with a model that is loaded: noise, U-Net, VAE, pixels, no file. Both take
turns; a request's seconds are its client's, decoding left out. The goal: at most 3 % beyond.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import requests
import uvicorn
from reporting import Row, report

from aid import starter
from aid.core.shot import Shot
from aid.core.workbench import Workbench
from aid.generate.settings import GenerateInputs, GenerateSettings
from aid.sd.drawing.pipeline import draw_batch
from aid.studio.server import create_app
from aid.studio.settings import StudioSettings
from aid.studio.studio import Studio
from aid.studio.warm import Warm

ASKED: dict[str, Any] = {
    "prompt": "by lorelei, smile",
    "steps": 32,
    "sampler_name": "Euler a",
    "cfg_scale": 7,
}


@contextmanager
def served(studio: Studio) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(create_app(studio), "127.0.0.1", 0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/sdapi/v1"
    finally:
        server.should_exit = True
        thread.join()


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def request(client: requests.Session, address: str, body: dict[str, Any]) -> None:
    answer = client.post(f"{address}/txt2img", json=body, timeout=600)
    answer.raise_for_status()
    assert len(answer.content) > 1000


def rows(checkpoint: Path, edge: int, batch: int, rounds: int) -> list[Row]:
    studio = Studio(StudioSettings(models=(checkpoint,), batch_size=batch), Workbench())
    body = {**ASKED, "width": edge, "height": edge, "batch_size": batch}
    material = Warm(0, Workbench()).material(GenerateSettings(), GenerateInputs(checkpoint=checkpoint))

    def bare(seed: int) -> None:
        shots = [
            Shot(prompt=ASKED["prompt"], seed=seed + index, steps=32, cfg_scale=7, width=edge, height=edge)
            for index in range(batch)
        ]
        with material.texts() as texts:
            draw_batch(material.model, shots, texts)

    ours, limit = [], []
    with served(studio) as address, requests.Session() as client:
        bare(0)
        cold = seconds(lambda: request(client, address, {**body, "seed": 0}))
        for seed in range(1, rounds + 1):
            turns = [
                (limit, partial(bare, seed)),
                (ours, partial(request, client, address, {**body, "seed": seed})),
            ]
            for taken, work in turns if seed % 2 else reversed(turns):
                taken.append(seconds(work))
    what = f"{edge} px, batch {batch}"
    beyond = statistics.median(a / b - 1 for a, b in zip(ours, limit, strict=True))
    return [
        Row(f"warm request, {what}", 1e3 * statistics.median(ours), "ms", 1e3 * statistics.median(limit)),
        Row(f"beyond drawing, {what}", 100 * beyond, "%", 3.0),
        Row(f"first request, {what}", 1e3 * cold, "ms"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=starter.shipped("release"))
    parser.add_argument("--edge", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    found = [row for batch in (1, 8) for row in rows(chosen.checkpoint, chosen.edge, batch, chosen.rounds)]
    report(found, chosen.json)


if __name__ == "__main__":
    main()
