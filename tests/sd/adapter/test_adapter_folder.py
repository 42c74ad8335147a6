"""A folder of adapters, called as prompts call them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from aid.errors import AidError, FileError
from aid.sd.adapter.file import save_adapter
from aid.sd.adapter.folder import AdapterFolder, find_adapters
from aid.sd.prompt.adapter_call import extract_loras

NAME = "lora_unet_conv_in"
LORA = {f"{NAME}.lora_down.weight": torch.ones(2, 4), f"{NAME}.lora_up.weight": torch.ones(8, 2)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "deep").mkdir()
    save_adapter(tmp_path / "deep" / "style.safetensors", LORA, {"ss_output_name": "lorelei"})
    save_adapter(tmp_path / "sky blue.safetensors", LORA, {})
    torch.save(LORA, tmp_path / "style.pt")
    (tmp_path / "broken.safetensors").write_bytes(b"broken")
    (tmp_path / "note.txt").write_text("note")
    return tmp_path


def test_stems(folder: Path) -> None:
    found = find_adapters(folder)
    assert sorted(found) == ["broken", "sky blue", "style"]
    assert found["style"] == folder / "deep" / "style.safetensors"
    with pytest.raises(FileError, match="not a folder"):
        find_adapters(folder / "nowhere")


def test_what_a_prompt_calls(folder: Path) -> None:
    _, calls = extract_loras("hair <lora:style:0.8:-0.5>, sky <lora:sky blue> <lora:lorelei:0.1>")
    adapters = AdapterFolder(folder)
    uses = adapters.uses(calls)
    assert [(use.adapter.name, use.text_weight, use.unet_weight) for use in uses] == [
        ("style", 0.8, -0.5), ("sky blue", 1.0, 1.0), ("style", 0.1, 0.1)
    ]  # fmt: skip
    assert uses[0].adapter is uses[2].adapter is adapters.load("style")


def test_names_that_no_file_has(folder: Path) -> None:
    adapters = AdapterFolder(folder)
    with pytest.raises(FileError, match=r"no adapter called stile.*Did you mean style\?"):
        adapters.load("stile")
    with pytest.raises(FileError, match="Put its file into"):
        adapters.load("")
    with pytest.raises(AidError, match=r"broken\.safetensors"):
        adapters.load("broken")
