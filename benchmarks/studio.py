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
from aid.generate.settings import GenerateSettings
from aid.sd.drawing.pipeline import draw_batch
from aid.studio.server import create_app
from aid.studio.settings import StudioSettings
from aid.studio.studio import Studio

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


def rows(
    studio: Studio, ask: Callable[[dict[str, Any]], None], edge: int, batch: int, rounds: int
) -> list[Row]:
    body = {**ASKED, "width": edge, "height": edge, "batch_size": batch}
    shot = Shot(prompt=ASKED["prompt"], steps=32, cfg_scale=7, width=edge, height=edge)
    told = GenerateSettings(), studio.inputs(studio.model)

    def bare(seed: int) -> None:
        material = studio.warm.material(*told)
        with material.texts() as texts:
            shots = [shot.model_copy(update={"seed": seed + index}) for index in range(batch)]
            draw_batch(material.model, shots, texts)

    def alone(seed: int) -> None:
        """By the thread that draws: once a second one has, both are half as quick."""
        studio.desk.do(partial(bare, seed)).result()

    def asked(seed: int) -> None:
        ask({**body, "seed": seed})

    ours, limit = [], []
    for seed in range(rounds):
        turns = [(limit, alone), (ours, asked)]
        for taken, work in turns if seed % 2 else reversed(turns):
            taken.append(seconds(partial(work, seed)))
    what = f"{edge} px, batch {batch}"
    beyond = statistics.median(a / b - 1 for a, b in zip(ours, limit, strict=True))
    return [
        Row(f"warm request, {what}", 1e3 * statistics.median(ours), "ms", 1e3 * statistics.median(limit)),
        Row(f"beyond drawing, {what}", 100 * beyond, "%", 3.0),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=starter.shipped("release"))
    parser.add_argument("--edge", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    studio = Studio(StudioSettings(models=(chosen.checkpoint,)), Workbench())
    with served(studio) as address, requests.Session() as client:
        ask = partial(request, client, address)
        cold = seconds(lambda: ask({**ASKED, "width": chosen.edge, "height": chosen.edge}))
        found = [Row(f"first request, {chosen.edge} px", 1e3 * cold, "ms")]
        found += [row for batch in (1, 8) for row in rows(studio, ask, chosen.edge, batch, chosen.rounds)]
    report(found, chosen.json)


if __name__ == "__main__":
    main()
