"""starter/train_vae.py at the smallest size: a stopped run continues to the same bytes, an SD1 VAE's."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from aid.errors import FileError, SettingsError
from aid.sd.file.tensorfile import read_header
from aid.sd.model.architecture import TINY
from aid.sd.model.checkpoint import create_checkpoint, load_checkpoint

SCRIPT = Path(__file__).parents[2] / "starter" / "train_vae.py"
QUICK = ["--edge-px", "16", "8", "--batch", "1", "--steps", "4", "--save-every", "2"]


@pytest.fixture(scope="module")
def train_vae() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_vae", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def world(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The world's pictures are WebP."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("starter") / "world"
    for path in pictures.glob("*/*.png"):
        to = folder / path.parent.name / f"{path.stem}.webp"
        to.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as picture:
            picture.save(to, lossless=True)
    return folder


@pytest.fixture(scope="module")
def straight(train_vae: ModuleType, world: Path) -> Path:
    out = world.parent / "straight.safetensors"
    train_vae.main([str(world), str(out), *QUICK])
    return out


def stop_after(train_vae: ModuleType, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the next step; random numbers drawn elsewhere must change nothing either."""
    step = train_vae.Training.step

    def stopping(self: Any, index: int, *pictures: torch.Tensor) -> Any:
        if index == steps:
            torch.manual_seed(12345)
            raise KeyboardInterrupt
        return step(self, index, *pictures)

    monkeypatch.setattr(train_vae.Training, "step", stopping)


@pytest.mark.parametrize(
    "more",
    [(), ("--decoder-only",), ("--drawings",), ("--axes-only", "--widths", "8", "16", "16", "16")],
    ids=["whole", "decoder only", "drawings", "other widths"],
)
def test_a_stopped_run_continues_to_the_same_bytes(
    train_vae: ModuleType, world: Path, straight: Path, tmp_path: Path, more: tuple[str, ...]
) -> None:
    start = ["--start", str(straight), *more] if more else []
    start += [str(world), "--batch", "2"] if "--drawings" in more else []
    once, twice = straight, tmp_path / "twice.safetensors"
    if more:
        once = tmp_path / "once.safetensors"
        train_vae.main([str(world), str(once), *QUICK, *start])
    with pytest.MonkeyPatch.context() as monkeypatch, pytest.raises(KeyboardInterrupt):
        stop_after(train_vae, 3, monkeypatch)
        train_vae.main([str(world), str(twice), *QUICK, *start])
    assert (tmp_path / "twice.unfinished").is_dir() and not twice.exists()
    train_vae.main([str(world), str(twice), *QUICK, *start])
    assert twice.read_bytes() == once.read_bytes()
    assert not (tmp_path / "twice.unfinished").exists()
    if "--decoder-only" in more:
        first, then = read_header(straight), read_header(once)
        same = {name for name in first.tensors if torch.equal(first.read(name), then.read(name))}
        assert {name for name in first.tensors if name.startswith(("encoder.", "quant_conv."))} <= same
        assert "decoder.conv_out.weight" not in same


def test_what_it_writes_is_an_sd1_vae(straight: Path) -> None:
    header = read_header(straight)
    assert len(header.tensors) == 248 and header.metadata["steps"] == "4"
    assert set(header.tensors) == set(create_checkpoint(TINY, 1).vae.state_dict())


def test_another_run_s_state_is_not_continued(train_vae: ModuleType, world: Path, tmp_path: Path) -> None:
    out = tmp_path / "vae.safetensors"
    with pytest.MonkeyPatch.context() as monkeypatch, pytest.raises(KeyboardInterrupt):
        stop_after(train_vae, 1, monkeypatch)
        train_vae.main([str(world), str(out), *QUICK])
    with pytest.raises(SettingsError, match=r"vae\.unfinished was begun with .*delete that folder"):
        train_vae.main([str(world), str(out), *QUICK, "--rate", "1e-3"])


@torch.no_grad()
def test_folding_keeps_the_axes_of_the_start_and_what_comes_back(
    train_vae: ModuleType, world: Path, straight: Path
) -> None:
    """Latents turned and stretched by hand are brought back to where the start has them."""
    start, turned = (train_vae.read_vae(straight) for _ in range(2))
    turn = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(3)))[0] * 1.7
    turned.quant_conv.weight[:4] = (turn @ turned.quant_conv.weight[:4, :, 0, 0])[:, :, None, None]
    turned.quant_conv.bias[:4] = turn @ turned.quant_conv.bias[:4] + 0.3
    back = turned.post_quant_conv.weight[:, :, 0, 0] @ turn.inverse()
    turned.post_quant_conv.weight.copy_(back[:, :, None, None])
    turned.post_quant_conv.bias -= back @ torch.full((4,), 0.3)
    pixels = train_vae.read_pictures(world, 32)
    x = train_vae.reduced(pixels, 16)
    assert (turned.encode(x).latent_dist.mean - start.encode(x).latent_dist.mean).abs().max() > 0.3
    train_vae.fold(turned, pixels, 16, start)
    assert (turned.encode(x).latent_dist.mean - start.encode(x).latent_dist.mean).abs().max() < 1e-3
    assert (turned(x).sample - start(x).sample).abs().max() < 1e-4


def test_a_folder_without_pictures_is_named(train_vae: ModuleType, world: Path, tmp_path: Path) -> None:
    words = [str(world), str(tmp_path / "vae.safetensors"), *QUICK, "--drawings", str(tmp_path / "none")]
    with pytest.raises(FileError, match="none holds no pictures"):
        train_vae.main(words)
    assert list(tmp_path.iterdir()) == []


def test_a_starter_s_other_parts_go_on_beside_another_vae(
    train_vae: ModuleType,
    straight: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    out = tmp_path / "initial.safetensors"
    words = ["initial.py", str(straight), str(out), "--of", str(tiny_checkpoint), "--edge-px", "128"]
    monkeypatch.setattr(sys, "argv", words)
    importlib.import_module("initial").main()
    made, old = load_checkpoint(out), load_checkpoint(tiny_checkpoint)
    assert made.architecture.native_edge_px == 128
    for name, value in train_vae.read_vae(straight).state_dict().items():
        assert torch.equal(made.vae.state_dict()[name], value)
    for name, value in old.unet.state_dict().items():
        assert torch.equal(made.unet.state_dict()[name], value)
