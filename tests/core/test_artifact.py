"""The one law: artifacts are whole or absent, known by what made them, and never rebuilt for nothing."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import math
import os
import resource
import shutil
import signal
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydantic import Field, ValidationError
from safetensors.torch import save_file

from aid.cli.lines import Lines
from aid.core import known_hash, lineage
from aid.core.artifact import SCRATCH, Inputs, Settings, is_current, sweep, under_construction, verb
from aid.core.files import sha256_of, write_text
from aid.core.lineage import LINEAGE_FILE, METADATA_KEY, describe, lineage_of, read_lineage
from aid.core.workbench import Workbench
from aid.errors import AidError, ArtifactError, FileError

calls: list[str] = []


class CopySettings(Settings):
    shout: bool = False


class CopyInputs(Inputs):
    text: Path
    others: dict[str, Path] = Field(default={})


@verb("copy")
def copy(settings: CopySettings, inputs: CopyInputs, out: Path, bench: Workbench) -> None:
    calls.append("copy")
    text = inputs.text.read_text()
    (out / "inner").mkdir()
    (out / "inner" / "copy.txt").write_text(text.upper() if settings.shout else text)
    if "broken" in text:
        raise AidError("the text is broken")


@verb("swift", unhashed=("large.safetensors",))
def swift(settings: CopySettings, inputs: CopyInputs, out: Path, bench: Workbench) -> None:
    calls.append("swift")
    content = {"text": torch.frombuffer(bytearray(inputs.text.read_bytes()), dtype=torch.uint8)}
    save_file(content, out / "large.safetensors", {METADATA_KEY: under_construction(out).embedded()})
    (out / "small.txt").write_text("small")


@verb("slow", resumable=True)
def slow(settings: CopySettings, inputs: CopyInputs, out: Path, bench: Workbench) -> None:
    (out / SCRATCH).mkdir(exist_ok=True)
    state = out / SCRATCH / "state"
    calls.append(state.read_text() if state.exists() else "fresh")
    state.write_text("half")
    if inputs.text.read_text() == "stop" and len(calls) < 2:
        raise KeyboardInterrupt
    (out / "done.txt").write_text("done")


@pytest.fixture(autouse=True)
def forget() -> None:
    calls.clear()


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("hello")
    return path


def test_a_run_is_skipped_until_settings_inputs_or_output_change(text: Path, tmp_path: Path) -> None:
    inputs, out = CopyInputs(text=text), tmp_path / "out"
    assert copy(CopySettings(), inputs, out) == out
    copy(CopySettings(), inputs, out)
    assert calls == ["copy"]
    copy(CopySettings(shout=True), inputs, out)
    assert (out / "inner/copy.txt").read_text() == "HELLO"
    text.write_text("other")
    copy(CopySettings(shout=True), inputs, out)
    (out / "inner/copy.txt").write_text("tampered")
    copy(CopySettings(shout=True), inputs, out)
    assert calls == ["copy"] * 4
    assert (out / "inner/copy.txt").read_text() == "OTHER"


def test_a_person_is_told_what_is_replaced_and_why(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs, out, bench = CopyInputs(text=text), tmp_path / "out", Workbench(progress=Lines())
    copy(CopySettings(), inputs, out, bench)
    assert not capsys.readouterr().err
    copy(CopySettings(shout=True), inputs, out, bench)
    assert capsys.readouterr().err == f"  {out} will be replaced: shout was False\n"
    (out / "inner/copy.txt").write_text("tampered")
    copy(CopySettings(shout=True), inputs, out, bench)
    assert capsys.readouterr().err == f"  {out} will be replaced: inner/copy.txt was changed or removed\n"


def test_a_moved_input_is_the_same_input(text: Path, tmp_path: Path) -> None:
    copy(CopySettings(), CopyInputs(text=text), tmp_path / "out")
    moved = text.rename(tmp_path / "elsewhere.txt")
    copy(CopySettings(), CopyInputs(text=moved), tmp_path / "out")
    assert calls == ["copy"], "content decides, not the path"


def test_a_failed_run_leaves_nothing(text: Path, tmp_path: Path) -> None:
    text.write_text("broken")
    with pytest.raises(AidError, match="broken"):
        copy(CopySettings(), CopyInputs(text=text), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


def test_a_failed_rebuild_keeps_the_good_one(text: Path, tmp_path: Path) -> None:
    copy(CopySettings(), CopyInputs(text=text), tmp_path / "out")
    text.write_text("broken")
    with pytest.raises(AidError):
        copy(CopySettings(), CopyInputs(text=text), tmp_path / "out")
    assert (tmp_path / "out/inner/copy.txt").read_text() == "hello"


def test_an_interrupted_resumable_run_finds_its_scratch(text: Path, tmp_path: Path) -> None:
    text.write_text("stop")
    inputs, out = CopyInputs(text=text), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        slow(CopySettings(), inputs, out)
    assert not out.exists()
    slow(CopySettings(), inputs, out)
    assert calls == ["fresh", "half"]
    assert sorted(path.name for path in out.iterdir()) == ["done.txt", "lineage.json"]


def test_other_settings_never_continue_anothers_work(text: Path, tmp_path: Path) -> None:
    text.write_text("stop")
    with pytest.raises(KeyboardInterrupt):
        slow(CopySettings(), CopyInputs(text=text), tmp_path / "out")
    slow(CopySettings(shout=True), CopyInputs(text=text), tmp_path / "out")
    assert calls == ["fresh", "fresh"]


def test_folders_of_others_are_left_alone(text: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(ArtifactError, match="did not make it"):
        copy(CopySettings(), CopyInputs(text=text), tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def test_missing_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"nowhere\.txt does not exist"):
        copy(CopySettings(), CopyInputs(text=tmp_path / "nowhere.txt"), tmp_path / "out")


def test_lineage_reaches_back_through_artifacts_and_members(text: Path, tmp_path: Path) -> None:
    first = copy(CopySettings(), CopyInputs(text=text), tmp_path / "first")
    member = first / "inner/copy.txt"
    second = copy(CopySettings(shout=True), CopyInputs(text=member, others={"a": first}), tmp_path / "second")
    ancestry = lineage_of(second)
    assert [node.verb for _, _, node, _ in ancestry.walk()] == ["copy", "copy", "file"]
    assert ancestry.node.inputs["text"].sha256 == lineage_of(member).sha256
    (tmp_path / "loose").mkdir()
    (tmp_path / "loose/copy.txt").write_bytes(member.read_bytes())
    assert lineage_of(tmp_path / "loose").node.verb == "pictures"
    assert not is_current(second, describe("copy", {}, {}))


def test_under_construction_is_the_lineage_that_is_released(text: Path, tmp_path: Path) -> None:
    seen = []

    @verb("look")
    def look(settings: CopySettings, inputs: CopyInputs, out: Path, bench: Workbench) -> None:
        seen.append(under_construction(out).key)

    look(CopySettings(), CopyInputs(text=text), tmp_path / "out")
    assert seen == [lineage_of(tmp_path / "out").key]


def test_a_malformed_lineage_is_refused(text: Path, tmp_path: Path) -> None:
    out = copy(CopySettings(), CopyInputs(text=text), tmp_path / "out")
    (out / "lineage.json").write_text('{"key": 3}')
    with pytest.raises(ArtifactError, match="not a lineage"):
        lineage_of(out)


def child(work: Callable[[], Any], survived: int = -1) -> bool:
    """Do the work in a fork, killed with -9 at a later change to the file system; whether it lived."""
    pid = os.fork()
    if pid == 0:
        left = survived

        def deadly(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **named: Any) -> Any:
                nonlocal left
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1
                return real(*arguments, **named)

            return call

        for name in ("replace", "mkdir", "unlink", "rmdir", "fsync"):
            setattr(os, name, deadly(getattr(os, name)))
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return not os.WIFSIGNALED(status)


def laborious(resumable: bool, log: Path) -> Any:
    @verb("laborious", resumable=resumable)
    def story(settings: CopySettings, inputs: CopyInputs, out: Path, bench: Workbench) -> None:
        (out / SCRATCH).mkdir(exist_ok=True)
        (out / SCRATCH / "state").write_text("days of work")
        (out / "made.txt").write_text(inputs.text.read_text())
        with open(log, "a") as stream:
            stream.write("worked ")

    return story


@pytest.mark.parametrize("resumable", [True, False])
@pytest.mark.parametrize("before", ["", "before"])
def test_killed_at_any_change_nothing_stays_and_what_is_made_is_not_made_again(
    resumable: bool, before: str, text: Path, tmp_path: Path
) -> None:
    log, out, building = tmp_path / "log", tmp_path / "out", tmp_path / ".out.building"
    story = laborious(resumable, log)

    def run() -> Path:
        return story(CopySettings(), CopyInputs(text=text), out)

    after_sealing = 0
    for survived in range(100):
        if before:
            text.write_text(before)
            assert child(run)
            text.write_text("hello")
        log.write_text("")
        lived = child(run, survived)
        sealed = building.exists() and any(
            "made.txt" in path.read_text() for path in building.glob(LINEAGE_FILE)
        )
        made = sealed or (out.exists() and (out / "made.txt").read_text() == "hello")
        worked = log.read_text()
        assert child(run)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "out", "text.txt"]
        assert sorted(path.name for path in out.iterdir()) == [LINEAGE_FILE, "made.txt"]
        assert (out / "made.txt").read_text() == "hello"
        assert log.read_text() == ("worked " if made else worked + "worked ")
        if lived:
            break
        after_sealing += made
        shutil.rmtree(out)
    assert lived and after_sealing >= 4


def test_leftovers_go_when_the_artifact_is_current(text: Path, tmp_path: Path) -> None:
    out = copy(CopySettings(), CopyInputs(text=text), tmp_path / "out")
    for name in (".out.stale/replaced", ".out.building/inner"):
        (tmp_path / name).mkdir(parents=True)
    copy(CopySettings(), CopyInputs(text=text), out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "text.txt"]
    (tmp_path / ".out.building").mkdir()
    (tmp_path / ".out.building" / "epoch").touch()
    sweep(out, resumable=True)
    assert (tmp_path / ".out.building/epoch").exists(), "work of other settings can still be continued"


def test_one_process_at_a_time(text: Path, tmp_path: Path) -> None:
    building = tmp_path / ".out.building"
    building.mkdir()
    (building / "theirs").touch()
    descriptor = os.open(building, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(ArtifactError, match="another process"):
        copy(CopySettings(), CopyInputs(text=text), tmp_path / "out")
    assert (building / "theirs").exists()
    os.close(descriptor)
    copy(CopySettings(), CopyInputs(text=text), tmp_path / "out")
    assert not building.exists()


def test_many_processes_at_once_leave_one_whole_artifact(text: Path, tmp_path: Path) -> None:
    for round_number in range(10):
        text.write_text(f"round {round_number}")
        pids = []
        for _ in range(4):
            if not (pid := os.fork()):
                try:
                    copy(CopySettings(), CopyInputs(text=text), tmp_path / "out")
                except ArtifactError as busy:
                    os._exit(0 if "another process" in str(busy) else 1)
                except BaseException:
                    os._exit(1)
                os._exit(0)
            pids.append(pid)
        assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 4
        assert (tmp_path / "out/inner/copy.txt").read_text() == f"round {round_number}"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "text.txt"]


@pytest.mark.parametrize("resumable", [True, False])
@pytest.mark.parametrize("directly", [True, False])
def test_a_full_disk_names_the_artifact(resumable: bool, directly: bool, text: Path, tmp_path: Path) -> None:
    @verb("big", resumable=resumable)
    def big(settings: CopySettings, inputs: CopyInputs, out: Path, bench: Workbench) -> None:
        (out / "half").write_text("half")
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, resource.RLIM_INFINITY))
        try:
            if directly:
                (out / "rest").write_bytes(bytes(1 << 17))
            else:
                write_text(out / "rest", "x" * (1 << 17))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    with pytest.raises(FileError) as error:
        big(CopySettings(), CopyInputs(text=text), tmp_path / "out")
    message = str(error.value)
    assert f"{tmp_path / 'out'} could not be written ({os.strerror(errno.EFBIG)})" in message
    assert "Free some disk space" in message and ("continues" in message) == resumable
    assert (tmp_path / ".out.building" / "half").exists() == resumable


def test_an_artifact_of_another_verb_is_not_replaced(text: Path, tmp_path: Path) -> None:
    out = copy(CopySettings(), CopyInputs(text=text), tmp_path / "out")
    with pytest.raises(ArtifactError, match=r"out was made by copy; .* Choose another --out"):
        slow(CopySettings(), CopyInputs(text=text), out)
    assert (out / "inner/copy.txt").read_text() == "hello"


def test_files_that_were_added_to_an_artifact_are_not_destroyed(text: Path, tmp_path: Path) -> None:
    out = copy(CopySettings(), CopyInputs(text=text), tmp_path / "out")
    (out / "inner" / "notes.txt").write_text("precious")
    copy(CopySettings(), CopyInputs(text=text), out)
    with pytest.raises(ArtifactError, match=r"inner/notes\.txt.*another --out"):
        copy(CopySettings(shout=True), CopyInputs(text=text), out)
    assert (out / "inner" / "notes.txt").read_text() == "precious"


@pytest.mark.parametrize("content", ['{"key": 3}', '{"key": "k", "nodes": {}}', "[]", "\xff"])
def test_deletion_is_advised_for_the_artifact_alone(content: str, text: Path, tmp_path: Path) -> None:
    out = copy(CopySettings(), CopyInputs(text=text), tmp_path / "out")
    (out / LINEAGE_FILE).write_text(content, "latin-1")
    with pytest.raises(ArtifactError, match=r"not a lineage.*Delete .*/out and run"):
        copy(CopySettings(), CopyInputs(text=text), out)
    with pytest.raises(ArtifactError, match="not a lineage") as error:
        copy(CopySettings(), CopyInputs(text=out), tmp_path / "next")
    assert "Delete" not in str(error.value)
    (tmp_path / LINEAGE_FILE).write_text(content, "latin-1")
    assert lineage_of(text).node.verb == "file", "a stranger's lineage.json further up says nothing"


def test_a_refusal_leaves_nothing_even_of_what_could_be_continued(text: Path, tmp_path: Path) -> None:
    @verb("choosy", resumable=True)
    def choosy(settings: CopySettings, inputs: CopyInputs, out: Path, bench: Workbench) -> None:
        (out / SCRATCH).mkdir()
        raise AidError("no")

    with pytest.raises(AidError, match="no"):
        choosy(CopySettings(), CopyInputs(text=text), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


@verb("draw")
def drawn(settings: CopySettings, inputs: CopyInputs, out: Path, bench: Workbench) -> None:
    info = PngInfo()
    info.add_itxt(METADATA_KEY, under_construction(out).embedded(ancestors=False))
    Image.new("RGB", (2, 2)).save(out / "picture.png", pnginfo=info)


def test_a_picture_tells_its_ancestry_in_its_gallery_and_its_own_node_elsewhere(
    text: Path, tmp_path: Path
) -> None:
    first = copy(CopySettings(), CopyInputs(text=text), tmp_path / "first")
    gallery = drawn(CopySettings(), CopyInputs(text=first), tmp_path / "gallery")
    ancestry = lineage_of(gallery / "picture.png")
    assert [node.verb for _, _, node, _ in ancestry.walk()] == ["draw", "copy", "file"]
    loose = (gallery / "picture.png").rename(tmp_path / "loose.png")
    alone = lineage_of(loose)
    assert alone.key == ancestry.key and [node.verb for node in alone.nodes.values()] == ["draw"]
    assert alone.node.inputs["text"].sha256 == lineage_of(first).sha256


def test_a_file_inside_a_later_artifact_still_knows_its_own_node(text: Path, tmp_path: Path) -> None:
    gallery = drawn(CopySettings(), CopyInputs(text=text), tmp_path / "gallery")

    @verb("collect")
    def collect(settings: CopySettings, inputs: CopyInputs, out: Path, bench: Workbench) -> None:
        (out / "picture.png").write_bytes((inputs.text / "picture.png").read_bytes())

    collected = collect(CopySettings(), CopyInputs(text=gallery), tmp_path / "collected")
    assert [node.verb for _, _, node, _ in lineage_of(collected / "picture.png").walk()] == ["draw", "file"]
    assert {node.verb for node in lineage_of(collected / "picture.png").nodes.values()} == {"draw", "file"}


def test_a_bomb_of_a_picture_is_a_file_like_any_other(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    for edge in (60_000, 12_000):  # over Pillow's limit, and where it only warns
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", edge, edge, 8, 2, 0, 0, 0))
        pixels = chunk(b"IDAT", zlib.compress(bytes(1 << 20)))
        bomb = tmp_path / f"{edge}.png"
        bomb.write_bytes(b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b""))
        assert lineage_of(bomb).node.verb == "file"


def test_a_file_name_that_is_no_text_is_escaped(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.txt")
    path.write_text("hello")
    out = copy(CopySettings(), CopyInputs(text=path), tmp_path / "out")
    names = [name for _, _, node, _ in lineage_of(out).walk() for name in node.inputs]
    assert names == ["text", "caf\\xe9.txt"]


def test_an_input_that_was_changed_by_hand_is_named(text: Path, tmp_path: Path) -> None:
    first = copy(CopySettings(), CopyInputs(text=text), tmp_path / "first")
    copy(CopySettings(), CopyInputs(text=first / "inner/copy.txt", others={"a": first}), tmp_path / "second")
    os.utime(first / "inner/copy.txt", (1, 1))
    (first / "inner" / "copy.txt").write_text("jello")
    with pytest.raises(ArtifactError, match=r"first/inner/copy\.txt was changed or removed.*make the"):
        copy(CopySettings(), CopyInputs(text=text, others={"a": first}), tmp_path / "third")
    (first / "inner" / "copy.txt").unlink()
    with pytest.raises(ArtifactError, match=r"first/inner/copy\.txt was changed or removed"):
        copy(CopySettings(), CopyInputs(text=text, others={"a": first}), tmp_path / "third")
    assert not (tmp_path / "third").exists()


def test_what_a_verb_leaves_unhashed_is_hashed_by_who_uses_it(text: Path, tmp_path: Path) -> None:
    first = swift(CopySettings(), CopyInputs(text=text), tmp_path / "first")
    large, told = first / "large.safetensors", read_lineage(first).files
    assert told["large.safetensors"] == f"{large.stat().st_size} bytes"
    assert told["small.txt"] == hashlib.sha256(b"small").hexdigest()
    swift(CopySettings(), CopyInputs(text=text), tmp_path / "first")
    assert calls == ["swift"] and read_lineage(first).files == told
    second = copy(CopySettings(), CopyInputs(text=text, others={"a": first}), tmp_path / "second")
    hashed = {**told, "large.safetensors": hashlib.sha256(large.read_bytes()).hexdigest()}
    assert read_lineage(first).files == hashed
    assert read_lineage(second).node.inputs["others.a"].sha256 == sha256_of(hashed)


def test_where_nobody_may_write_it_is_hashed_all_the_same(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = swift(CopySettings(), CopyInputs(text=text), tmp_path / "first")
    told = (first / LINEAGE_FILE).read_bytes()

    def refuse(path: Path, content: str) -> None:
        raise FileError(f"{path} could not be written")

    monkeypatch.setattr(lineage, "write_text", refuse)
    sha256 = hashlib.sha256((first / "large.safetensors").read_bytes()).hexdigest()
    assert lineage_of(first).files["large.safetensors"] == sha256
    assert (first / LINEAGE_FILE).read_bytes() == told


def changed_text(file: Path) -> None:
    """Its last byte, the size and the header staying as they are."""
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(file, (1, 1))


@pytest.mark.parametrize("used", [False, True], ids=["not used yet", "used"])
@pytest.mark.parametrize("change", ["cut", "grown", "exchanged", "without lineage", "edited", "removed"])
def test_an_unhashed_file_that_changes_is_named(change: str, used: bool, text: Path, tmp_path: Path) -> None:
    first = swift(CopySettings(), CopyInputs(text=text), tmp_path / "first")
    other = swift(CopySettings(shout=True), CopyInputs(text=text), tmp_path / "other")
    if used:
        lineage_of(first)
    large = first / "large.safetensors"
    content = large.read_bytes()
    if change == "edited":
        changed_text(large)
    elif change == "removed":
        large.unlink()
    else:
        large.write_bytes({
            "cut": content[:-1],
            "grown": content + b"x",
            "exchanged": (other / "large.safetensors").read_bytes(),
            "without lineage": content.replace(METADATA_KEY.encode(), b"aid.NOTHING"),
        }[change])  # fmt: skip
        os.utime(large, (1, 1))
    current = is_current(first, describe("swift", CopySettings().model_dump(), {"text": text}))
    if change == "edited" and not used:
        assert current  # only who has seen it before could tell
        return
    assert not current
    with pytest.raises(ArtifactError, match=r"first/large\.safetensors was changed or removed"):
        copy(CopySettings(), CopyInputs(text=text, others={"a": first}), tmp_path / "second")


def test_a_file_that_lies_in_anothers_place_keeps_its_own_lineage(text: Path, tmp_path: Path) -> None:
    first = swift(CopySettings(), CopyInputs(text=text), tmp_path / "first")
    other = swift(CopySettings(shout=True), CopyInputs(text=text), tmp_path / "other")
    shutil.copy(other / "large.safetensors", first / "large.safetensors")
    assert lineage_of(first / "large.safetensors").key == read_lineage(other).key


def test_a_settled_file_is_read_once_and_again_when_it_changes(
    text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    real = known_hash.sha256_file
    monkeypatch.setattr(known_hash, "sha256_file", lambda path: read.append(path) or real(path))
    monkeypatch.setattr(lineage, "SETTLED_NS", 0)
    before = lineage_of(text).sha256
    assert lineage_of(text).sha256 == before and len(read) == 1
    time.sleep(0.02)
    text.write_text("jello")
    os.utime(text, (1, 1))
    assert lineage_of(text).sha256 != before and len(read) == 2


def test_numbers_of_settings_are_finite() -> None:
    """JSON, in which lineages are written, has no others, and no setting means anything by them."""

    class Strong(Settings):
        strength: float = 1.0

    for odd in (math.inf, -math.inf, math.nan):
        with pytest.raises(ValidationError, match="finite"):
            Strong(strength=odd)
