"""The verb `generate`: a Checkpoint and shots in, a gallery of pictures out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from PIL import Image

from aid.core.artifact import asked, under_construction, verb
from aid.core.dataset import Dataset
from aid.core.files import write_bytes
from aid.core.shot import Shot, Source
from aid.core.workbench import Workbench
from aid.errors import FileError, SettingsError
from aid.generate.gallery import picture_name, write_gallery
from aid.generate.material import Material, called_files, load_material, source_of, tell_styles, tell_uncalled
from aid.generate.plan import read_shots, shots_of_plan, shots_of_prompt
from aid.generate.settings import DrawingSettings, GenerateInputs, GenerateSettings
from aid.generate.unheeded import unheeded
from aid.sd.drawing.pipeline import draw_batch, plan_batches, steps_of
from aid.sd.picture.file import SUFFIX, picture_bytes, require_room
from aid.sd.picture.infotext import write_infotext

WRITERS = 4  # of pictures: nothing is drawn beside the last batch's


@verb("generate", resumable=True)
def generate(settings: GenerateSettings, inputs: GenerateInputs, out: Path, bench: Workbench) -> None:
    """Draw every shot that isn't drawn yet, list the shots, and lay the pictures out on grids.

    Batches are the same in an interrupted run's second half, so its pictures are too.
    """
    material = load_material(settings, inputs, bench)
    shots = choose_shots(settings, inputs, material)
    _tell(settings, inputs, material, shots, bench)
    suffix = SUFFIX[settings.format]
    files = [out / picture_name(index, shot, suffix) for index, shot in enumerate(shots)]
    lineage = under_construction(out).embedded(ancestors=False)
    draw_missing(material, shots, files, settings, lineage, bench)
    write_gallery(out, shots, suffix)


def one_off(
    settings: GenerateSettings, inputs: GenerateInputs, folder: Path, bench: Workbench | None = None
) -> list[Path]:
    """Draw into a plain folder, without an artifact: pictures take the next free numbers, and none that
    is there is ever overwritten. Returns the new files."""
    bench = bench or Workbench()
    material = load_material(settings, inputs, bench)
    shots = choose_shots(settings, inputs, material)
    _tell(settings, inputs, material, shots, bench)
    with _folder_made(folder):
        first, suffix = next_number(folder), SUFFIX[settings.format]
        files = [folder / picture_name(first + index, shot, suffix) for index, shot in enumerate(shots)]
        lineage = asked("generate", settings, narrowed(inputs, shots, material)).embedded(ancestors=False)
        draw_missing(material, shots, files, settings, lineage, bench)
    return files


@contextmanager
def _folder_made(folder: Path) -> Iterator[None]:
    """Before drawing, so that one that can't be is told at once; an error leaves no empty one behind."""
    if folder.is_file():
        raise FileError(f"{folder} is a file", "a folder to draw into")
    there = folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        if not there:
            with suppress(OSError):  # it holds pictures
                folder.rmdir()
        raise


def _tell(
    settings: GenerateSettings,
    inputs: GenerateInputs,
    material: Material,
    shots: Sequence[Shot],
    bench: Workbench,
) -> None:
    """What is given and won't be seen."""
    for note in unheeded(settings, inputs):
        bench.progress.say(note)
    tell_styles(_styles(settings, shots), inputs.checkpoint, bench)
    tell_uncalled(material, inputs, shots, bench)


def _styles(settings: GenerateSettings, shots: Sequence[Shot]) -> list[str]:
    """Those that are asked for by name, by the settings, a plan or a list."""
    return [*(shot.style for shot in shots), *settings.styles]


def narrowed(inputs: GenerateInputs, shots: Sequence[Shot], material: Material) -> GenerateInputs:
    """With the adapters that are called, in place of whole folders of others."""
    if material.adapters is None:
        return inputs
    return inputs.model_copy(update={"loras": tuple(called_files(material, shots))})


def choose_shots(settings: GenerateSettings, inputs: GenerateInputs, material: Material) -> list[Shot]:
    """The shots of the list, of the plan, or of the prompt; these two from the picture given, if one is.

    Raises SettingsError if a list and a plan are given.
    """
    plan, edge_px = settings.plan, material.model.architecture.native_edge_px
    names = list(material.embeddings)
    if inputs.shots is not None:
        if plan is not None:
            raise SettingsError("both a plan and a list of shots are given", "one of them")
        return read_shots(inputs.shots)
    if plan is None:
        shots = shots_of_prompt(settings, names, edge_px)
    elif inputs.dataset is None:
        raise SettingsError("a plan is given without a dataset", "the dataset whose styles and tags it draws")
    else:
        shots = shots_of_plan(settings, plan, Dataset(inputs.dataset), names, edge_px)
    return drawn_from(shots, source_of(settings, inputs))


def drawn_from(shots: Sequence[Shot], source: Source | None) -> list[Shot]:
    """The shots, made from a picture. Raises SettingsError for shots that have a hires pass."""
    if source is None:
        return list(shots)
    if any(shot.hires for shot in shots):
        raise SettingsError("a picture to draw from and a hires pass", "one of them")
    return [shot.model_copy(update={"source": source}) for shot in shots]


def draw_missing(
    material: Material,
    shots: Sequence[Shot],
    files: Sequence[Path],
    settings: DrawingSettings,
    lineage: str,
    bench: Workbench,
) -> None:
    """Draw the batches of which a picture is missing. Each picture is written as soon as it is whole, while
    the next batch is drawn. Raises SettingsError before all for prompts that a JPEG has no room for."""
    if settings.format == "jpeg":
        for shot in shots:
            require_room(settings.format, write_infotext(shot), lineage)

    def write(picture: Image.Image, file: Path, parameters: str) -> None:
        content = picture_bytes(picture, parameters, lineage, settings.format, settings.quality)
        write_bytes(file, content)

    with material.texts() as texts:
        batches = plan_batches(texts, shots, settings.batch_size)
        missing = [batch for batch in batches if not all(files[index].is_file() for index in batch)]
        done = len(shots) - sum(map(len, missing))
        progress = bench.progress.task("generate", len(shots), "picture", done)
        with progress as tick, ThreadPoolExecutor(WRITERS) as writer:
            writing: list[Future[None]] = []
            for batch in missing:
                together = [shots[index] for index in batch]
                on_step = _step_counter(tick, steps_of(together[0]))
                pictures = draw_batch(material.model, together, texts, on_step, material.pictures)
                _finish(writing, tick)
                for index, shot, picture in zip(batch, together, pictures, strict=True):
                    text = material.infotext(shot, texts)
                    writing.append(writer.submit(write, picture, files[index], text))
            _finish(writing, tick)
        for note in texts.notes:
            bench.progress.say(note)


def _finish(writing: list[Future[None]], tick: Callable[[int], None]) -> None:
    """Wait for the pictures being written. Raises what writing raised."""
    while writing:
        writing.pop(0).result()
        tick(1)


def next_number(folder: Path) -> int:
    """One more than the highest number that a picture in the folder begins with."""
    endings = set(SUFFIX.values())
    pictures = (file for file in folder.glob("*-*") if file.suffix in endings)
    numbers = (file.name.partition("-")[0] for file in pictures)
    return max((int(number) for number in numbers if number.isdecimal()), default=-1) + 1


def _step_counter(tick: Callable[[int, str], None], steps: int) -> Callable[[], None]:
    done = 0

    def step() -> None:
        nonlocal done
        done = done % steps + 1  # several rounds, where memory is short
        tick(0, f"step {done}/{steps}")

    return step
