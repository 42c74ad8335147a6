"""`aid prompt`: what a prompt means, word for word, before anything is drawn. No torch is loaded for words
alone; folders of embeddings and LoRAs are read as `aid generate` reads them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from aid.cli.options import InputPath

PATH = click.Path(path_type=Path)
HELP = """Explain PROMPT: its chunks, tokens and weights, the words for each step, the parts of AND, and which
embeddings, LoRAs and styles it names; misspelt and old names are found. Nothing is drawn."""


def show_prompt(
    words_of_prompt: str,
    negative: str,
    steps: int,
    seed: int,
    emphasis: str,
    old_editing: bool,
    comments: bool,
    as_json: bool,
    **folders: Path | None,
) -> None:
    from aid.sd.prompt.explanation import explain

    known = _knowledge(folders)
    settings = {"seed": seed, "old_editing": old_editing, "emphasis": emphasis, "comments": comments}
    told = {"prompt": explain(words_of_prompt, steps, known, **settings)}  # type: ignore[arg-type]
    if negative:
        told["negative_prompt"] = explain(negative, steps, known, negative=True, **settings)  # type: ignore[arg-type]
    if as_json:
        click.echo(
            json.dumps({name: _plain(one) for name, one in told.items()}, ensure_ascii=False, indent=1)
        )
        return
    for name, one in told.items():
        click.echo("\n".join(_lines(name, one)))


def _knowledge(folders: Mapping[str, Path | None]) -> Any:
    """What the prompt's names are looked up in. A release's folder brings its catalogue and embeddings."""
    from aid.core.catalogue import Catalogue, load_catalogue
    from aid.core.release import CATALOGUE_FILE, EMBEDDING_FOLDER
    from aid.sd.prompt.explanation import Knowledge
    from aid.sd.prompt.sugar import read_wildcards

    checkpoint, wildcards, loras = (folders[name] for name in ("checkpoint", "wildcards", "loras"))
    release = checkpoint if checkpoint and (checkpoint / CATALOGUE_FILE).is_file() else None
    own = release is not None and (release / EMBEDDING_FOLDER).is_dir()
    embeddings = folders["embeddings"] or (release if own else None)
    return Knowledge(
        _embedding_sizes(embeddings) if embeddings else {},
        _lora_names(loras) if loras else None,
        Catalogue.read(release / CATALOGUE_FILE) if release else load_catalogue(),
        read_wildcards(wildcards) if wildcards else {},
    )


def _embedding_sizes(path: Path) -> dict[str, int]:
    """How many vectors each embedding of a folder (or one file) has, whatever model it is for."""
    from aid.sd.embedding.file import load_embedding
    from aid.sd.embedding.folder import embedding_files, load_embeddings

    if path.is_file():
        one = load_embedding(path)
        return {one.name: len(one.vectors)}
    found = load_embeddings(embedding_files(path))
    known = {file.with_suffix("") for file in found.paths.values()}  # in another format: needs no word
    _tell_skipped({file: why for file, why in found.skipped.items() if file.with_suffix("") not in known})
    return {name: len(embedding.vectors) for name, embedding in sorted(found.embeddings.items())}


def _lora_names(path: Path) -> set[str]:
    from aid.sd.adapter.folder import AdapterFolder, skipped_adapters

    _tell_skipped(skipped_adapters(path) if path.is_dir() else {})
    return AdapterFolder(path).names()


def _tell_skipped(files: Mapping[Path, str]) -> None:
    """Beside what is asked for, so that JSON stays JSON."""
    for file, reason in sorted(files.items()):
        told = reason if str(file) in reason else f"{file}: {reason}"
        click.echo(f"skipped: {told}", err=True)


def _plain(explanation: Any) -> dict[str, Any]:
    """As JSON: named fields throughout."""
    told = dataclasses.asdict(explanation)
    told["parts"] = [
        {"weight": weight, "schedule": [_span(span) for span in spans]} for weight, spans in explanation.parts
    ]
    told["embeddings"] = [{"name": name, "vectors": count} for name, count in explanation.embeddings]
    told["notes"] = [{"at": note.at, "text": note.text} for note in explanation.notes]
    return told


def _span(span: Any) -> dict[str, Any]:
    variants = [
        {"share": share, "chunks": [[list(token) for token in chunk] for chunk in chunks]}
        for share, chunks in span.variants
    ]
    return {"first": span.first, "last": span.last, "text": span.text, "variants": variants}


def _lines(name: str, told: Any) -> Iterator[str]:
    yield f"{name.replace('_', ' ')}: {told.prompt}"
    if told.expanded != told.prompt:
        yield f"  expanded: {told.expanded.strip()}"
    for number, (weight, spans) in enumerate(told.parts, 1):
        if len(told.parts) > 1 or weight != 1:
            yield f"  part {number} of {len(told.parts)}, weight {weight:g}"
        for steps, span in _by_text(spans):
            if len(spans) > 1:
                yield f"  {steps}: {span.text.strip()}"
            for share, chunks in span.variants:
                yield from _chunk_lines(share, chunks, len(span.variants) > 1)
    for call in told.loras:
        yield f"  LoRA {call.name}: text encoder {call.text_weight:g}, U-Net {call.unet_weight:g}"
    for embedding, count in told.embeddings:
        yield f"  embedding {embedding}: {count} vector{'s' * (count != 1)}"
    for style in told.styles:
        written = f", written `{style.written}` ({style.match})" if style.match != "same" else ""
        yield f"  style {style.trigger}{written}"
    for note in told.notes:
        yield f"  note{f' at {note.at + 1}' if note.at >= 0 else ''}: {note.text}"


def _by_text(spans: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """Each text once, with all the steps that have it: `steps 1-2, 4, 6`."""
    ranges: dict[str, list[str]] = {}
    for span in spans:
        first, last = span.first + 1, span.last + 1
        ranges.setdefault(span.text, []).append(f"{first}-{last}" if last > first else f"{first}")
    for text, steps in ranges.items():
        many = len(steps) > 1 or "-" in steps[0]
        yield f"step{'s' * many} {', '.join(steps)}", next(span for span in spans if span.text == text)


def _chunk_lines(share: float, chunks: Any, mixed: bool) -> Iterator[str]:
    for number, chunk in enumerate(chunks, 1):
        head = f"{share:.0%} of the mix, " if mixed else ""
        words, last = [], 1.0
        for token, weight in chunk:
            if weight != last:
                words.append(f"[{weight:.4g}]")
                last = weight
            words.append(token.removesuffix("</w>") + (" " if token.endswith(("</w>", ">")) else ""))
        count = f"{len(chunk)} token{'s' * (len(chunk) != 1)}"
        yield f"    {head}chunk {number}: {count}: {''.join(words).strip()}"


COMMAND = click.Command(
    "prompt",
    callback=show_prompt,
    help=HELP,
    params=[
        click.Argument(["words_of_prompt"], metavar="PROMPT"),
        click.Option(["--negative"], default="", help="A negative prompt to explain beside it."),
        click.Option(["--steps"], default=32, type=click.IntRange(1, 1000), help="Sampler steps.  [32]"),
        click.Option(["--seed"], default=0, help="Of the picture: decides {a|b} and __wildcards__.  [0]"),
        click.Option(
            ["--emphasis"],
            default="Original",
            type=click.Choice(["Original", "No norm", "Ignore", "None", "ComfyUI"]),
            help="How weights are read.  [Original]",
        ),
        click.Option(["--old-editing"], is_flag=True, help="[a:b:x] as before A1111 1.6: x < 1 is a share."),
        click.Option(
            ["--comments/--no-comments"],
            default=True,
            help="Whether `# ...` to a line's end is left out.  [yes]",
        ),
        click.Option(["--checkpoint"], type=InputPath(), help="A release: its styles and embeddings."),
        click.Option(["--embeddings"], type=PATH, help="A folder of embeddings, or one."),
        click.Option(["--loras"], type=PATH, help="A folder of LoRAs."),
        click.Option(["--wildcards"], type=PATH, help="A folder of .txt files, a choice a line."),
        click.Option(["--json", "as_json"], is_flag=True, help="Print JSON."),
    ],
)
