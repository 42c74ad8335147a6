"""The verb `generate`: a Checkpoint and shots in, a gallery of pictures out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from aid.core.artifact import asked, under_construction, verb
from aid.core.dataset import Dataset
from aid.core.files import write_bytes
from aid.core.shot import Shot
from aid.core.workbench import Workbench
from aid.errors import SettingsError
from aid.generate.gallery import picture_name, write_gallery
from aid.generate.material import Material, load_material
from aid.generate.plan import read_shots, shots_of_plan, shots_of_prompt
from aid.generate.settings import GenerateInputs, GenerateSettings
from aid.sd.infotext import png_bytes
from aid.sd.pipeline import Texts, draw_batch, plan_batches


@verb("generate", resumable=True)
def generate(settings: GenerateSettings, inputs: GenerateInputs, out: Path, bench: Workbench) -> None:
    """Draw every shot that isn't drawn yet, list the shots, and lay the pictures out on grids.

    Batches are the same in an interrupted run's second half, so its pictures are too.
    """
    material = load_material(settings, inputs, bench)
    shots = choose_shots(settings, inputs, material)
    files = [out / picture_name(index, shot) for index, shot in enumerate(shots)]
    lineage = under_construction(out).embedded(ancestors=False)
    draw_missing(material, shots, files, settings.batch_size, lineage, bench)
    write_gallery(out, shots)


def one_off(
    settings: GenerateSettings, inputs: GenerateInputs, folder: Path, bench: Workbench | None = None
) -> list[Path]:
    """Draw into a plain folder, without an artifact: pictures take the next free numbers, and none that
    is there is ever overwritten. Returns the new files."""
    bench = bench or Workbench()
    material = load_material(settings, inputs, bench)
    shots = choose_shots(settings, inputs, material)
    folder.mkdir(parents=True, exist_ok=True)
    first = next_number(folder)
    files = [folder / picture_name(first + index, shot) for index, shot in enumerate(shots)]
    lineage = asked("generate", settings, inputs).embedded(ancestors=False)
    draw_missing(material, shots, files, settings.batch_size, lineage, bench)
    return files


def choose_shots(settings: GenerateSettings, inputs: GenerateInputs, material: Material) -> list[Shot]:
    """The shots of the list, of the plan, or of the prompt. Raises SettingsError if two of them are given."""
    plan, edge_px = settings.plan, material.model.architecture.native_edge_px
    names = list(material.embeddings)
    if inputs.shots is not None:
        if plan is not None:
            raise SettingsError("both a plan and a list of shots are given", "one of them")
        return read_shots(inputs.shots)
    if plan is None:
        return shots_of_prompt(settings, names, edge_px)
    if inputs.dataset is None:
        raise SettingsError("a plan is given without a dataset", "the dataset whose styles and tags it draws")
    return shots_of_plan(settings, plan, Dataset(inputs.dataset), names, edge_px)


def draw_missing(
    material: Material,
    shots: Sequence[Shot],
    files: Sequence[Path],
    batch_size: int,
    lineage: str,
    bench: Workbench,
) -> None:
    """Draw the batches of which a picture is missing, and write each picture as soon as it is whole."""
    texts = Texts(material.model, material.embeddings)
    batches = plan_batches(texts, shots, batch_size)
    missing = [batch for batch in batches if not all(files[index].is_file() for index in batch)]
    done = len(shots) - sum(map(len, missing))
    with bench.progress.task("generate", len(shots), "picture", done) as tick:
        for batch in missing:
            together = [shots[index] for index in batch]
            pictures = draw_batch(material.model, together, texts, _step_counter(tick, together[0].steps))
            for index, shot, picture in zip(batch, together, pictures, strict=True):
                write_bytes(files[index], png_bytes(picture, material.infotext(shot, texts), lineage))
                tick(1)


def next_number(folder: Path) -> int:
    """One more than the highest number that a picture in the folder begins with."""
    numbers = (file.name.partition("-")[0] for file in folder.glob("*-*.png"))
    return max((int(number) for number in numbers if number.isdecimal()), default=-1) + 1


def _step_counter(tick: Callable[[int, str], None], steps: int) -> Callable[[], None]:
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        tick(0, f"step {done}/{steps}")

    return step
