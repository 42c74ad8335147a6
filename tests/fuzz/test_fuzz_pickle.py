"""Damaged and hostile .ckpt, .pt and .bin files: torch's archives and the bare pickles before them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from damage import PICKLE, TORCH
from fuzzing import Target, each, fuzz

from aid.sd.file.tensorfile import is_finite, open_tensors, read_tensors
from aid.sd.inspection import inspect

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.float16)[::2]}
CONTENTS: dict[str, Any] = {
    "plain.pt": TENSORS,
    "whole.ckpt": {"state_dict": TENSORS, "global_step": 3, "callbacks": {"x": None}},
    "shared.bin": {"x": torch.arange(4), "y": torch.nn.Parameter(torch.ones(2, 2)), "z": torch.tensor(1)},
}


def pickled(content: object, archive: bool) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=archive)
    return stream.getvalue()


def read(folder: Path) -> None:
    each(read_tensors, read_mapped, inspect)(next(folder.iterdir()))


def read_mapped(path: Path) -> None:
    for one in open_tensors(path)[0].values():
        is_finite(one.read())


def test_damaged_archives_and_pickles(tmp_path: Path) -> None:
    samples = [{name: pickled(content, True)} for name, content in CONTENTS.items()]
    samples += [{f"{Path(name).stem}.old": pickled(content, False)} for name, content in CONTENTS.items()]
    mutators = {".old": PICKLE, "": TORCH}
    fuzz(Target("pickle", samples, read, mutators), tmp_path / "fuzzed")
