"""`aid prompt` as a person meets it, and the explanation behind it."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from aid.cli import main
from aid.core.catalogue import load_catalogue
from aid.sd.embedding.file import Embedding, save_embedding
from aid.sd.file.tensorfile import write_tensors
from aid.sd.prompt.explanation import Knowledge, explain, find_styles

KNOWN = Knowledge({"badv3": 3, "aid210": 2}, {"sketch"}, load_catalogue(), {"hair": ("red hair",)})


def run(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    try:
        main(["prompt", *map(str, words)])
    except SystemExit as exit:
        assert not exit.code
    return capsys.readouterr().out


def told(capsys: pytest.CaptureFixture[str], *words: object) -> Any:
    return json.loads(run(capsys, *words, "--json"))


def test_chunks_weights_schedule_and_parts_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    found = told(capsys, "a (cat:1.2) [red:blue:.5] BREAK b AND dog:0.5 <lora:x:0.7>", "--steps", 10)
    first, second = found["prompt"]["parts"]
    assert (first["weight"], second["weight"]) == (1.0, 0.5)
    red, blue = first["schedule"]
    assert (red["first"], red["last"], blue["first"], blue["last"]) == (0, 5, 6, 9)
    chunk, other = red["variants"][0]["chunks"]
    assert chunk == [["a</w>", 1.0], ["cat</w>", 1.2], ["red</w>", 1.0]] and other == [["b</w>", 1.0]]
    assert found["prompt"]["loras"] == [{"name": "x", "text_weight": 0.7, "unet_weight": 0.7}]
    text = run(capsys, "a [red:blue:.5]", "--steps", 10, "--negative", "bad (b")
    assert "steps 1-6: a red" in text and "steps 7-10: a blue" in text
    assert "negative prompt: bad (b" in text and "note at 5: this ( is never closed" in text


def test_a_lora_called_in_the_negative_prompt_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    found = told(capsys, "a", "--negative", "bad <lora:x:1> <hypernet:y>")["negative_prompt"]
    assert found["loras"] == []
    assert [(note["at"], note["text"][:33]) for note in found["notes"]] == [
        (4, "`<lora:x:1>` is read as words, as"),
    ]  # fmt: skip


def test_each_text_is_shown_once_with_all_its_steps(capsys: pytest.CaptureFixture[str]) -> None:
    text = run(capsys, "[red|blue] hair", "--steps", 6)
    assert "  steps 1-2, 4, 6: red hair\n    chunk 1: 2 tokens: red hair\n" in text
    assert "  steps 3, 5: blue hair\n" in text and text.count("chunk") == 2
    assert "chunk 1: 1 token: b\n" in run(capsys, "b")


def test_comments_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    words = "red hair # or blue?\n(smile"
    found = told(capsys, words)["prompt"]
    assert found["expanded"] == "red hair \n(smile"
    assert [(note["at"], note["text"][:24]) for note in found["notes"]] == [
        (9, "from # to the end of the"), (-1, "this ( is never closed a"),
    ]  # fmt: skip
    found = told(capsys, words, "--no-comments")["prompt"]
    assert found["expanded"] == words and [note["at"] for note in found["notes"]] == [20]


def test_styles_are_found_in_spite_of_old_and_wrong_names(capsys: pytest.CaptureFixture[str]) -> None:
    found = told(capsys, "by fuzichico, (by wlpo:1.1), by WLOP, wlop, by nobody at all")["prompt"]
    assert [(style["trigger"], style["match"]) for style in found["styles"]] == [
        ("by fuzichoco", "old name"), ("by wlop", "near"), ("by wlop", "same"), ("by wlop", "without by"),
    ]  # fmt: skip
    notes = {note["at"]: note["text"] for note in found["notes"]}
    assert "called `by fuzichoco` now" in notes[0] and "did you mean by wlop" in notes[15]


def test_escaped_names_are_found() -> None:
    styles, _ = find_styles(r"1girl, by wlop \(x\), by wlop", load_catalogue())
    assert styles[-1].match == "same"


def test_embeddings_are_found_and_near_ones_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_embedding(Embedding("badv3", torch.zeros(3, 16)), tmp_path, {})
    found = told(capsys, "a, BADV3, badv4", "--embeddings", tmp_path)["prompt"]
    assert found["embeddings"] == [{"name": "badv3", "vectors": 3}]
    assert [(note["at"], "did you mean badv3" in note["text"]) for note in found["notes"]] == [(10, True)]
    assert ["<badv3>", 1.0] in found["parts"][0]["schedule"][0]["variants"][0]["chunks"][0]
    found = told(capsys, "badv3", "--embeddings", tmp_path / "badv3.pt")["prompt"]
    assert found["embeddings"] == [{"name": "badv3", "vectors": 3}]


def test_names_are_those_that_a_picture_is_drawn_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = PngInfo()
    hidden = {"string_to_param": {"*": {"TORCHTENSOR": [[0.0] * 16] * 2}}, "name": "drawn"}
    text.add_text("sd-ti-embedding", base64.b64encode(json.dumps(hidden).encode()).decode())
    Image.new("RGB", (8, 8)).save(tmp_path / "picture.png", pnginfo=text)
    pair = {f"lora_unet_x.lora_{side}.weight": torch.zeros(2, 2) for side in ("up", "down")}
    write_tensors(tmp_path / "sketch.safetensors", pair, {"ss_output_name": "pencil"})
    torch.save(pair, tmp_path / "ink.pt")
    (tmp_path / "foreign.pt").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    words = "drawn, sketch <lora:ink:1> <lora:pencil:1> <lora:sketch:1> <lora:brush:1>"
    found = told(capsys, words, "--embeddings", tmp_path, "--loras", tmp_path)["prompt"]
    assert found["embeddings"] == [{"name": "drawn", "vectors": 2}]
    assert [note["text"] for note in found["notes"]] == ["no LoRA is called `brush`"]


def test_files_that_no_prompt_can_name_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "deep").mkdir()
    pair = {f"lora_unet_x.lora_{side}.weight": torch.zeros(2, 2) for side in ("up", "down")}
    write_tensors(tmp_path / "ink.safetensors", pair, {})
    write_tensors(tmp_path / "deep" / "ink.safetensors", pair, {})
    write_tensors(tmp_path / "other.safetensors", {"a": torch.zeros(2), "b": torch.zeros(2)}, {})
    (tmp_path / "cut.safetensors").write_bytes(b"cut")
    save_embedding(Embedding("badv3", torch.zeros(3, 16)), tmp_path, {})
    main(["prompt", "a", "--embeddings", str(tmp_path), "--loras", str(tmp_path), "--json"])
    said = capsys.readouterr()
    assert json.loads(said.out)["prompt"]["notes"] == []
    lines = [line.removeprefix(f"skipped: {tmp_path}/") for line in said.err.splitlines()]
    embeddings, loras = lines[:4], lines[4:]
    assert not any("stands for" in line for line in embeddings)  # badv3.pt is the same once more
    assert "other.safetensors holds 2 entries" in embeddings[-1]
    assert [line.split()[0] for line in loras] == [
        "badv3.pt:", "badv3.safetensors", "cut.safetensors", "ink.safetensors:", "other.safetensors"
    ]  # fmt: skip
    assert loras[-1] == "other.safetensors is no adapter"


def test_unknown_adapters_are_told_if_it_is_known_which_there_are() -> None:
    notes = explain("a <lora:sketsh:1> <lora:sketch:1>", 20, KNOWN).notes
    assert [(note.at, note.text) for note in notes] == [
        (7, "no LoRA is called `sketsh`; did you mean sketch?")
    ]


def test_mixes_and_wildcards_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "hair.txt").write_text("red hair")
    text = run(capsys, "{by wlop:3|by micah:1}, __hair__", "--wildcards", tmp_path)
    assert "expanded: {by wlop:0.75 | by micah:0.25}, red hair" in text
    assert "75% of the mix, chunk 1: " in text and "25% of the mix, chunk 1: " in text


def test_neither_torch_nor_transformers_is_loaded() -> None:
    code = (
        "import sys; from aid.cli import main\ntry: main(['prompt', 'a (b:1.2)'])\nexcept SystemExit: pass\n"
    )
    code += "print([m for m in ('torch', 'transformers', 'diffusers', 'numpy') if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "[]"


PIECES = st.sampled_from(
    ["(", ")", "[", "]", ":", "|", "{", "}", "a", " by wlpo", " AND ", " BREAK ", "<lora:x:1>", "0.5",
     "badv3", "badv4,", "__hair__", "\\", "\n", "漢", "\ud800", "\U000f0000"]
)  # fmt: skip


@given(st.text() | st.lists(PIECES, max_size=30).map("".join), st.booleans())
@settings(deadline=None, max_examples=150)
def test_any_text_is_explained(prompt: str, negative: bool) -> None:
    for emphasis in ("Original", "ComfyUI"):
        made = explain(prompt, 4, KNOWN, negative=negative, emphasis=emphasis)
        assert made.parts and all(spans for _, spans in made.parts)
        for _, spans in made.parts:
            assert [span.first for span in spans] == [0, *(span.last + 1 for span in spans[:-1])]
            assert spans[-1].last == 3
