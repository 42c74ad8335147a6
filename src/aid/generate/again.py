"""A picture drawn again from nothing but its own text, with weights found by their hashes."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from aid.core.files import write_bytes
from aid.core.gallery import SHOTS_FILE, read_gallery
from aid.core.lineage import Lineage, content_sha256, embedded_lineage
from aid.core.shot import Shot
from aid.core.workbench import Workbench
from aid.errors import AidError, FileError, PictureError
from aid.generate.gallery import picture_name
from aid.generate.material import ADAPTER_DIGITS, Material, adapter_hash, load_model, weights_sha256
from aid.generate.run import next_number
from aid.generate.settings import GenerateSettings
from aid.sd.adapter.folder import SUFFIXES, AdapterFolder
from aid.sd.drawing.pipeline import draw_batch, plan_batches
from aid.sd.embedding.file import Embedding, load_embedding
from aid.sd.file.hashes import hash_file
from aid.sd.file.tensorfile import is_pickle, read_header
from aid.sd.model.checkpoint import StableDiffusion
from aid.sd.model.folder import is_part
from aid.sd.model.location import MODEL_INDEX
from aid.sd.model.weights import open_weights
from aid.sd.picture.file import SUFFIX, picture_bytes
from aid.sd.picture.infotext import Infotext, Weights, parse_infotext, shot_of
from aid.sd.picture.shot_fields import tells_no_embeddings, unread_fields
from aid.sd.picture.text import picture_text
from aid.sd.prompt.adapter_call import extract_loras
from aid.sd.prompt.sugar import read_wildcards

DRAWING = ("generate", "grid")  # verbs
OLD_DIGITS = 8  # of A1111's first hash
WORD, HASH = re.compile(r"\w+"), re.compile(r"[0-9a-fA-F]{8,64}")
OTHER_TOOLS = (  # texts of ComfyUI, NovelAI, InvokeAI, its first versions, and a site
    "prompt", "workflow", "Comment", "invokeai_metadata", "sd-metadata", "Dream", "generation_data",
)  # fmt: skip
PICTURES = (".png", ".jpg", ".jpeg", ".webp")

Matches = Callable[[Path], bool]


@dataclass(frozen=True)
class Found:
    """The files that a picture was drawn with."""

    model: Path
    vae: Path | None
    embeddings: dict[str, Path]
    adapters: dict[str, Path]
    pictures: dict[str, Path]
    """By sha256."""


def again(
    picture: Path,
    places: Sequence[Path],
    out: Path,
    bench: Workbench | None = None,
    wildcards: Path | None = None,
) -> Path:
    """Draw the picture again into the folder `out`, and return the new file.

    `places` are files and folders in which its model, VAE, embeddings, LoRAs and the pictures that it was
    made from are looked for. On the machine that drew it, a picture of AID's comes out the same to the bit:
    it is drawn in a batch like its first one. Noise of a GPU that isn't there is computed on the CPU.

    Raises PictureError for a picture without a text, SettingsError for a text that asks for what can't be
    drawn, FileError naming everything that is missing, by name and hash.
    """
    bench = bench or Workbench()
    infotext = read_infotext(picture)
    if left := unread_fields(infotext.fields):
        told = ", ".join(f"{key}: {value}" for key, value in left.items())
        bench.progress.say(f"its text also says {told}, which AID draws without")
    if (vae := infotext.weights.vae) and not infotext.weights.vae_hash:
        bench.progress.say(f"its text names the VAE {vae} without a hash; it is drawn with the model's own")
    lineage = embedded_lineage(picture)
    settings = _settings_of(lineage)
    shots, at = _alike(*_neighbours(picture, shot_of(infotext), settings))
    finder = Finder(places)
    if lineage and "wildcards" in lineage.node.inputs and wildcards is None:
        finder.missing.append(f"wildcards ({lineage.node.inputs['wildcards'].sha256[:12]})")
    found = finder.find(infotext, shots[at])
    if not infotext.weights.model_hash:
        bench.progress.say(f"its text tells no model's hash; it is drawn with {found.model}")
    material = _load(found, infotext.weights, settings, bench)
    if wildcards:
        material = replace(material, wildcards=read_wildcards(wildcards))
    if material.model.device.type != "cuda":
        shots = [_without_gpu(shot) for shot in shots]
    with material.texts() as texts:
        batch = next(one for one in plan_batches(texts, shots, settings.batch_size) if at in one)
        drawn = draw_batch(
            material.model, [shots[index] for index in batch], texts, pictures=material.pictures
        )
        text = material.infotext(shots[at], texts)
    out.mkdir(parents=True, exist_ok=True)
    file = out / picture_name(next_number(out), shots[at], SUFFIX[settings.format])
    embedded = lineage.embedded() if lineage else ""
    content = picture_bytes(drawn[batch.index(at)], text, embedded, settings.format, settings.quality)
    write_bytes(file, content)
    return file


def read_infotext(picture: Path) -> Infotext:
    """Raises PictureError for a file that is no picture, or carries no text of A1111's kind."""
    if not picture.is_file():
        found = "is a folder" if picture.is_dir() else "does not exist"
        raise PictureError(f"{picture} {found}", "a picture")
    told = picture_text(picture)
    if not told.parameters:
        if others := [name for name in OTHER_TOOLS if name in told.texts]:
            raise PictureError(
                f"{picture} tells how it was made as another tool does ({', '.join(others)})",
                "A1111's parameters",
                "`aid inspect` shows what it says.",
            )
        raise PictureError(
            f"{picture} carries no text of how it was made",
            "A1111's parameters",
            "Sites and messengers often strip them: find the original file.",
        )
    infotext = parse_infotext(told.parameters)
    if not infotext.fields:
        raise PictureError(
            f"{picture} doesn't tell its steps, seed and size as A1111 does",
            "A1111's parameters",
            "`aid inspect` shows what it says.",
        )
    return infotext


class Finder:
    """Looks for files by their hashes in some places: those of the right name first, each read once."""

    def __init__(self, places: Sequence[Path]) -> None:
        self.places = places
        self.files = [file for place in places for file in _files_in(place)]
        parents = dict.fromkeys(file.parent for file in self.files)
        self.folders = [folder for folder in parents if (folder / MODEL_INDEX).is_file()]
        self.vae_folders = self.folders + [folder for folder in parents if is_part(folder, "vae")]
        self.missing: list[str] = []

    def find(self, infotext: Infotext, shot: Shot) -> Found:
        """Everything that the text names. Raises FileError for what isn't there."""
        weights = _sure(infotext.weights)
        model = self.model(weights)
        vae = None
        if weights.vae_hash:
            same = self._whole(weights.vae_hash)
            vae = self._look("VAE", weights.vae, weights.vae_hash, same, SUFFIXES, self.vae_folders)
        embeddings = {
            name: self._look(
                "embedding", name, sha, self._whole(sha) if sha else _called_so(name), (*SUFFIXES, *PICTURES)
            )
            for name, sha in weights.embeddings.items()
        }
        if not embeddings and tells_no_embeddings(infotext.fields):
            embeddings = self.embeddings(shot)
        adapters = {name: self.adapter(name, weights) for name in _called(shot)}
        pictures = self.pictures(shot)
        if self.missing or model is None:
            raise FileError(
                f"missing: {'; '.join(self.missing)}",
                "the files that the picture was drawn with",
                "Name them, or folders that hold them, with --checkpoint or --from.",
            )
        return Found(model, vae, _present(embeddings), _present(adapters), _present(pictures))

    def model(self, weights: Weights) -> Path | None:
        """By its hash; where the text has none, the one model that is named itself, if there is one."""
        sha = weights.model_hash
        if sha:
            return self._look("model", weights.model, sha, self._whole(sha), SUFFIXES, self.folders)
        if len(named := [place for place in self.places if _is_model(place)]) == 1:
            return named[0]
        return self._look("model", weights.model or "(not named)", "", _never, SUFFIXES)

    def adapter(self, name: str, weights: Weights) -> Path | None:
        """By the hash of its tensors, or for some tools of its file; where the text has none, by its name."""
        sha = weights.adapters.get(name.replace(":", "").replace(",", ""), "")

        def same(file: Path) -> bool:
            metadata = {} if is_pickle(file) else read_header(file).metadata
            known = adapter_hash(file, metadata).startswith(sha[:ADAPTER_DIGITS])
            return known or content_sha256(file).startswith(sha)

        return self._look("LoRA", name, sha, same if sha else _called_so(name), SUFFIXES)

    def embeddings(self, shot: Shot) -> dict[str, Path | None]:
        """Those that the prompts name."""
        words = set(WORD.findall(" ".join(_prompts(shot)).lower()))
        stems = ((file, set(WORD.findall(file.stem.lower()))) for file in self.files)
        named = [file for file, own in stems if own and own <= words]
        return {file.stem: file for file in named if _is_embedding(file)}

    def pictures(self, shot: Shot) -> dict[str, Path | None]:
        source = shot.source
        if source is None:
            return {}
        wanted = {source.sha256: source.picture or "that it was made from, which its text doesn't name"}
        if source.mask or source.mask_sha256:
            wanted[source.mask_sha256] = source.mask
        return {
            sha: self._look("picture", name, sha, self._whole(sha) if sha else _never, PICTURES)
            for sha, name in wanted.items()
        }

    def _look(
        self,
        kind: str,
        name: str,
        sha: str,
        matches: Matches,
        suffixes: tuple[str, ...],
        folders: Sequence[Path] = (),
    ) -> Path | None:
        of_kind = [*(file for file in self.files if file.suffix.lower() in suffixes), *folders]
        ordered = sorted(of_kind, key=lambda file: name not in (file.stem, file.name, file.parent.name))
        for file in ordered:
            try:
                if matches(file):
                    return file
            except AidError:
                continue  # a damaged file is none that a picture was drawn with
        self.missing.append(f"{kind} {name}" + (f" ({sha[:12]})" if sha else ""))
        return None

    def _whole(self, sha: str) -> Matches:
        """By the hash of the file: A1111's new one, or its first one of 8 digits."""
        if len(sha) == OLD_DIGITS:
            return lambda file: not file.is_dir() and hash_file(file).autov1 == sha
        return lambda file: weights_sha256(file).startswith(sha.lower())


def _never(_: Path) -> bool:
    return False


def _called_so(name: str) -> Matches:
    return lambda file: file.stem == name


def _sure(weights: Weights) -> Weights:
    """Hashes in lower case; what is too short to tell a file counts as none."""

    def sure(sha: str) -> str:
        return sha.lower() if HASH.fullmatch(sha) else ""

    return replace(
        weights,
        model_hash=sure(weights.model_hash),
        vae_hash=sure(weights.vae_hash),
        embeddings={name: sure(sha) for name, sha in weights.embeddings.items()},
        adapters={name: sure(sha) for name, sha in weights.adapters.items()},
    )


def _is_model(place: Path) -> bool:
    try:
        return (place.is_file() or (place / MODEL_INDEX).is_file()) and open_weights(place) is not None
    except AidError:
        return False


def _is_embedding(file: Path) -> bool:
    try:
        return file.suffix.lower() in (*SUFFIXES, *PICTURES) and load_embedding(file) is not None
    except AidError:
        return False


def _present(found: dict[str, Path | None]) -> dict[str, Path]:
    return {name: path for name, path in found.items() if path is not None}


def _files_in(place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise FileError(f"{place} does not exist", "a file or folder of weights")
    return sorted(file for file in place.rglob("*") if file.is_file() and not file.name.startswith("."))


def _called(shot: Shot) -> list[str]:
    """The LoRAs. A negative prompt calls none."""
    prompts = [shot.prompt, shot.hires.prompt if shot.hires else ""]
    return list(dict.fromkeys(call.name for prompt in prompts for call in extract_loras(prompt)[1]))


def _prompts(shot: Shot) -> list[str]:
    second = [shot.hires.prompt, shot.hires.negative_prompt] if shot.hires else []
    return [shot.prompt, shot.negative_prompt, *second]


def _settings_of(lineage: Lineage | None) -> GenerateSettings:
    """The settings of the run that drew it; the defaults of one picture for any other tool's."""
    if lineage is None or lineage.node.verb not in DRAWING:
        return GenerateSettings(batch_size=1)
    known = set(GenerateSettings.model_fields)
    given = {name: value for name, value in lineage.node.settings.items() if name in known}
    alone = {"batch_size": 1} if lineage.node.verb == "grid" else {}  # its neighbours have other settings
    try:
        return GenerateSettings.model_validate({**given, **alone})
    except ValueError:
        return GenerateSettings(batch_size=1)


def _neighbours(picture: Path, shot: Shot, settings: GenerateSettings) -> tuple[list[Shot], int]:
    """The shots that were drawn in one run with it, and its place among them: convolutions of another
    batch round otherwise. They stand in its gallery's list, or follow from its settings."""
    told = shot.model_copy(update={"style": "", "tags": ()})
    if (picture.parent / SHOTS_FILE).is_file():
        frames = read_gallery(picture.parent)
        for index, frame in enumerate(frames):
            if frame.file == picture.name and _bare(frame.shot) == told:
                return [one.shot for one in frames], index
    counted = "variation_seed" if settings.variation_strength else "seed"
    first = getattr(settings, counted)
    at = getattr(shot, counted) - first
    if settings.plan is None and 0 <= at < settings.count and settings.steps == shot.steps:
        return [shot.model_copy(update={counted: first + index}) for index in range(settings.count)], at
    return [shot], 0


def _alike(shots: list[Shot], at: int) -> tuple[list[Shot], int]:
    """Without those that call other adapters: they are in batches of their own, and not all may be there."""
    own = set(_called(shots[at]))
    kept = [index for index, shot in enumerate(shots) if set(_called(shot)) <= own]
    return [shots[index] for index in kept], kept.index(at)


def _bare(shot: Shot) -> Shot:
    return shot.model_copy(update={"style": "", "tags": ()})


def _without_gpu(shot: Shot) -> Shot:
    return shot.model_copy(update={"noise_source": "NV"}) if shot.noise_source == "GPU" else shot


def _load(found: Found, weights: Weights, settings: GenerateSettings, bench: Workbench) -> Material:
    model = load_model(found.model, found.vae, settings.precision, bench)
    if weights.zero_terminal_snr:
        model.architecture = model.architecture.model_copy(update={"zero_terminal_snr": True})
    adapters = AdapterFolder(*found.adapters.values()) if found.adapters else None
    if adapters:
        adapters.paths = dict(found.adapters)
    return Material(
        model,
        {name: _embedding(name, path, model) for name, path in found.embeddings.items()},
        found.embeddings,
        replace(weights, embeddings={}, adapters={}),
        adapters,
        pictures=found.pictures,
    )


def _embedding(name: str, path: Path, model: StableDiffusion) -> Embedding:
    """Under the name that the prompt calls it by, whatever its file is called now."""
    width, width_g = model.architecture.text_width, model.architecture.text_2_width or None
    return replace(load_embedding(path, width, width_g), name=name)
