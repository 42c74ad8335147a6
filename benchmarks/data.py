"""The data path: caching against the VAE alone, fetching latents, pixels kept against other rules.

    python benchmarks/data.py [--edge 512] [--pictures 16] [--json FILE]

The VAE is SD1's in size, with random weights. Pictures are PNGs of two to three times the edge.
"""

from __future__ import annotations

import argparse
import math
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean

import numpy as np
from PIL import Image
from reporting import Row, report

from aid.core.dataset import Dataset, Record, latent_file
from aid.core.workbench import Silence, Ticker, Workbench
from aid.dataset.cutting.bucket import Size, crop_box, rules
from aid.dataset.run import prepare
from aid.dataset.settings import PrepareInputs, PrepareSettings

BATCH = 2
FETCHES = 20_000
MIXED, WIDEST = 300, 2.0  # pictures, their widest aspect


def mixed_sizes(count: int, edge_px: float, seed: int = 5) -> list[Size]:
    """Aspects even in logarithms from 1:2 to 2:1; areas of (1.4 edge)² to (6 edge)²."""
    chance = random.Random(seed)
    sizes = []
    for _ in range(count):
        shape = math.exp(chance.uniform(-1, 1) * math.log(WIDEST))
        area = chance.uniform((1.4 * edge_px) ** 2, (6 * edge_px) ** 2)
        sizes.append((round(math.sqrt(area * shape)), round(math.sqrt(area / shape))))
    return sizes


def measure_kept() -> list[Row]:
    sizes, kept, used = mixed_sizes(MIXED, 512), {}, {}
    for name in ("fitted", "kohya", "nai"):
        settings = PrepareSettings.model_validate({"bucketing": name, "maximum_megapixels": 170})
        [rule] = rules(Counter(sizes), settings)
        chosen = [rule.choose(*size) for size in sizes]
        kept[name] = [share(size, bucket) for size, bucket in zip(sizes, chosen, strict=True) if bucket]
        used[name] = len(set(chosen))
    peers = ("kohya", "nai")
    return [
        Row("kept pixels, mean", fmean(kept["fitted"]), "", None, {p: fmean(kept[p]) for p in peers}),
        Row("kept pixels, least", min(kept["fitted"]), "", None, {p: min(kept[p]) for p in peers}),
        Row("buckets", used["fitted"], "", None, {p: used[p] for p in peers}),
        Row("pictures dropped", MIXED - len(kept["fitted"]), ""),
    ]


def share(picture: Size, bucket: Size) -> float:
    left, top, right, bottom = crop_box(*picture, bucket)
    return (right - left) * (bottom - top) / (picture[0] * picture[1])


def measure_fetch(folder: Path) -> Row:
    """A picture's latent of 512 px copied from the map in batches of four; the limit is the bare copy."""
    shape = (256, 2, 4, 64, 64)
    folder.mkdir()
    np.save(folder / latent_file(512, 512), np.ones(shape, dtype=np.float16))
    blank = {"sha256": "", "source": "", "file": "", "style": "", "tags": (), "split": "train"}
    records = [
        Record.model_validate({**blank, "width": 512, "height": 512, "row": row}) for row in range(256)
    ]
    dataset, chance = Dataset(folder), random.Random(1)
    batches = [chance.sample(records, 4) for _ in range(FETCHES // 4)]
    held = [dataset.fetch(batch) for batch in batches[:64]]  # and every row is in memory
    into = np.empty(shape[1:], dtype=np.float16)
    copied = timed(lambda: [np.copyto(into, row) for batch in held * 16 for row in batch]) / (64 * 16 * 4)

    def fetch() -> None:
        for batch in batches:
            dataset.fetch(batch)

    fetched = timed(fetch) / FETCHES
    return Row("latent fetch, 512 px", fetched * 1e6, "us", copied * 1e6)


def timed(work: Callable[[], object]) -> float:
    """Seconds of the processor, which a busy machine doesn't lengthen much."""
    clock = Clock()
    work()
    clock.stop()
    return clock.cpu


def measure_caching(folder: Path, edge_px: int, count: int) -> list[Row]:
    """Pictures a second of `prepare`, from the files to the sealed artifact, beside the VAE's."""
    import torch
    from diffusers import AutoencoderKL

    from aid.dataset.latents.latent import encode
    from aid.sd.file.tensorfile import write_tensors
    from aid.sd.model.architecture import SD1
    from aid.sd.model.device import torch_device

    torch.manual_seed(1)
    vae = AutoencoderKL(**SD1.vae_config()).eval()
    write_tensors(folder / "vae.safetensors", vae.state_dict(), {})
    vae.to(torch_device(Workbench()))
    pictures(folder / "in" / "style", edge_px, count)
    encode(vae, [np.zeros((edge_px, edge_px, 3), dtype=np.uint8)] * BATCH)
    settings = PrepareSettings(resolution_px=edge_px, bucket_step_px=64, buckets=False, latent_batch=BATCH)
    inputs = PrepareInputs(pictures={"in": folder / "in"}, vae=folder / "vae.safetensors")
    whole, watch = Clock(), Watch()
    dataset = Dataset(prepare(settings, inputs, folder / "out", Workbench(progress=watch)))
    whole.stop()
    assert len(dataset.records) == count
    pixels = [np.asarray(Image.open(dataset.folder / record.file)) for record in dataset.records]
    alone = Clock()
    for start in range(0, count, BATCH):
        encode(vae, pixels[start : start + BATCH])
    alone.stop()
    changed = settings.model_copy(update={"rare_tag_pictures": 1})
    again = timed(lambda: prepare(changed, inputs, folder / "out"))
    return [
        Row(f"caching, {edge_px} px, wall time", count / watch.encode.wall, "/s", count / alone.wall),
        Row(f"caching, {edge_px} px, CPU time", count / watch.encode.cpu, "/s", count / alone.cpu),
        Row("before and after it (hashes, the VAE read), CPU time", whole.cpu - watch.encode.cpu, "s"),
        Row("all again with only a setting changed", again, "s"),
    ]


class Clock:
    """Seconds of the wall and of the processor, from now until it is stopped."""

    def __init__(self) -> None:
        self.began = time.perf_counter(), time.process_time()
        self.wall = self.cpu = 0.0

    def stop(self) -> None:
        self.wall = time.perf_counter() - self.began[0]
        self.cpu = time.process_time() - self.began[1]


class Watch(Silence):
    """Clocks the task that decodes, cuts, writes and encodes every picture."""

    encode: Clock

    @contextmanager
    def task(self, label: str, total: int, unit: str = "", done: int = 0) -> Iterator[Ticker]:
        clock = Clock()
        with super().task(label, total, unit, done) as tick:
            yield tick
        clock.stop()
        if label == "encode":
            self.encode = clock


def pictures(folder: Path, edge_px: int, count: int) -> None:
    """Smooth random colours with lines, PNGs of 2 to 3 times the edge."""
    folder.mkdir(parents=True)
    chance = np.random.default_rng(1)
    for index in range(count):
        width, height = (round(edge_px * chance.uniform(2, 3)) for _ in range(2))
        small = Image.fromarray(chance.integers(0, 256, (24, 24, 3), dtype=np.uint8))
        small.resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{index:04}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--edge", type=int, default=512)
    parser.add_argument("--pictures", type=int, default=16)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [*measure_kept(), measure_fetch(folder / "fetch")]
        rows += measure_caching(folder, chosen.edge, chosen.pictures)
        report(rows, chosen.json)


if __name__ == "__main__":
    main()
