"""What AID makes of a prompt, before anything is drawn and without torch: chunks, tokens, weights, words for
each step, adapters, embeddings and styles, and what is odd about it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from aid.core.catalogue import Catalogue
from aid.core.spelling import fold, mistakes
from aid.sd.model.tokenizer import token_words
from aid.sd.prompt.adapter_call import LoraCall
from aid.sd.prompt.chunk import Chunk, Spelling, chunk_prompt, embeddings_in, spell
from aid.sd.prompt.mixing import Mix, show_mixes, variants
from aid.sd.prompt.note import Note, quote
from aid.sd.prompt.prompt import Part, Pass, read_prompt
from aid.sd.prompt.sugar import Wildcards, expand, strip_comments

PHRASE = re.compile(r"(?:\\.|[^,()\[\]{}|:<>\\\n])+")
BY = re.compile(r"\bby\s", re.IGNORECASE)
ESCAPED = re.compile(r"\\(.)")
WORD = re.compile(r"[^\s,()\[\]{}|:<>\\]+")
SHORTEST_NAME = 4  # letters; shorter names are like too many words
MOST_LOOKED_UP = 64  # different words or phrases compared with every name


@dataclass(frozen=True)
class Learned:
    """An embedding as far as a prompt is concerned: its name, and a place for each vector."""

    name: str
    vectors: range


@dataclass(frozen=True)
class Style:
    """A name of the catalogue that stands in a prompt: as it is written there, and what calls it now."""

    at: int
    written: str
    trigger: str
    match: str


@dataclass(frozen=True)
class Span:
    """The words from one of the denoiser's calls to another, counted from 0 and both included, and what
    the text encoder gets: for each chunk its tokens with their weights. A mix has a text for each variant."""

    first: int
    last: int
    text: str
    variants: tuple[tuple[float, tuple[tuple[tuple[str, float], ...], ...]], ...]


@dataclass(frozen=True)
class Explanation:
    """Everything, ready to be shown; `expanded` is the prompt after wildcards and choices."""

    prompt: str
    expanded: str
    parts: tuple[tuple[float, tuple[Span, ...]], ...]
    loras: tuple[LoraCall, ...]
    embeddings: tuple[tuple[str, int], ...]
    styles: tuple[Style, ...]
    notes: tuple[Note, ...]


@dataclass(frozen=True)
class Knowledge:
    """What names a prompt may use: embeddings with their vectors, LoRAs (None: unknown which there are),
    the catalogue's styles, and wildcards."""

    embeddings: Mapping[str, int]
    loras: Collection[str] | None
    catalogue: Catalogue
    wildcards: Wildcards


def explain(
    prompt: str,
    steps: int,
    known: Knowledge,
    seed: int = 0,
    negative: bool = False,
    old_editing: bool = False,
    emphasis: str = "Original",
    comments: bool = True,
) -> Explanation:
    """Explain one prompt. Raises SettingsError for an unknown emphasis mode, ModelError for an embedding
    too large for a chunk, and nothing for any text."""
    said = strip_comments(prompt) if comments else prompt
    expanded = expand(said, seed, known.wildcards)
    whole = show_mixes(expanded.text, expanded.mixes)
    read = read_prompt(expanded.text, Pass(steps, old_editing), negative)
    spelling = spell({name: Learned(name, range(count)) for name, count in known.embeddings.items()})
    used: dict[str, int] = {}
    parts = tuple(
        (part.weight, tuple(_spans(part, steps, expanded.mixes, spelling, emphasis, used)))
        for part in read.parts
    )
    styles, style_notes = find_styles(whole, known.catalogue)
    notes = [*read.notes, *style_notes, *near_embeddings(whole, known.embeddings, used)]
    notes += _unknown_loras(whole, read.loras, known.loras)
    notes = notes if whole == said else _displaced(notes)
    first = [*expanded.notes] if said == prompt else [_comment_note(prompt), *_displaced(expanded.notes)]
    notes = sorted(set(notes if said == prompt else _displaced(notes)))
    return Explanation(
        prompt,
        whole,
        parts,
        read.loras,
        tuple(used.items()),
        tuple(styles),
        (*first, *notes),
    )


def _displaced(notes: Iterable[Note]) -> list[Note]:
    """Of another text than the one shown, so without their places."""
    return [Note(-1, note.text) for note in notes]


def _comment_note(prompt: str) -> Note:
    return Note(prompt.index("#"), "from # to the end of the line is a comment, which A1111 leaves out too")


def find_styles(text: str, catalogue: Catalogue) -> tuple[list[Style], list[Note]]:
    """The catalogue's names in a prompt: right ones, old ones, and after `by` misspelt ones."""
    names = {
        fold(name): (entry, old) for entry in catalogue.entries() for name, old in catalogue.names_of(entry)
    }
    styles: list[Style] = []
    notes: list[Note] = []
    looked_up = 0
    for at, phrase in _phrases(text):
        entry, old = names.get(fold(phrase), (None, False))
        called_by = BY.match(phrase) is not None
        if entry is None and called_by and looked_up < MOST_LOOKED_UP:
            looked_up += 1
            near = [one for one in catalogue.search(phrase) if one.match == "near"]
            if near:
                notes.append(Note(at, f"{quote(phrase)} is unknown; did you mean {near[0].entry.trigger}?"))
                styles.append(Style(at, phrase, near[0].entry.trigger, "near"))
        elif entry is not None:
            match = "old name" if old else "same"
            if entry.trigger.startswith("by ") and not called_by:
                match = "without by"
                notes.append(Note(at, f"{quote(phrase)} is a style, and called by `{entry.trigger}`"))
            elif old:
                notes.append(Note(at, f"{quote(phrase)} is called `{entry.trigger}` now"))
            styles.append(Style(at, phrase, entry.trigger, match))
    return styles, notes


def style_notes(names: Iterable[str], catalogue: Catalogue) -> Iterator[str]:
    """What there is to say of names given as styles': one that the catalogue lacks is drawn as mere words."""
    for name in {fold(name): name for name in names if fold(name)}.values():
        best = next(iter(catalogue.search(name)), None)
        if best is None or best.match in ("part", "near"):
            hint = f"did you mean {best.entry.trigger}?" if best else "`aid styles --checkpoint` lists those"
            yield f"{quote(name)} is no style of this model; {hint}"
        elif best.match == "old name" or not best.entry.trigger.startswith("by "):
            yield f"{quote(name)} is called by `{best.entry.trigger}`"


def _phrases(text: str) -> Iterator[tuple[int, str]]:
    """What stands between commas and brackets, from `by` on if that is in it, without escapes."""
    for match in PHRASE.finditer(text):
        by = BY.search(match[0])
        start = by.start() if by else len(match[0]) - len(match[0].lstrip())
        piece = match[0][start:]
        phrase = (ESCAPED.sub(r"\1", piece) if "\\" in piece else piece).strip()
        if phrase:
            yield match.start() + start, phrase


def _spans(
    part: Part,
    steps: int,
    mixes: tuple[Mix, ...],
    spelling: Spelling[Learned],
    emphasis: str,
    used: dict[str, int],
) -> Iterator[Span]:
    """The part's words as they are used: ends that no call reaches left out, equal neighbours joined."""
    runs: list[tuple[int, int, str]] = []
    first = 0
    for entry in part.schedule:
        last = min(entry.last, steps - 1)
        if last < first:
            continue
        if runs and runs[-1][2] == entry.text:
            first = runs.pop()[0]
        runs.append((first, last, entry.text))
        first = last + 1
    made: dict[str, tuple[tuple[float, tuple[tuple[tuple[str, float], ...], ...]], ...]] = {}
    for first, last, text in runs:
        if text not in made:
            cut = [(share, chunk_prompt(w, spelling, emphasis)) for share, w in variants(text, mixes, False)]
            for word in (word for _, chunks in cut for word in embeddings_in(chunks)):
                used[word.name] = len(word.vectors)
            made[text] = tuple((share, tuple(map(_tokens, chunks))) for share, chunks in cut)
        yield Span(first, last, show_mixes(text, mixes), made[text])


def _tokens(chunk: Chunk[Learned]) -> tuple[tuple[str, float], ...]:
    """A chunk's tokens as they are spelt, an embedding as one."""
    words = token_words(chunk.ids[: chunk.size + 1])
    fixes = dict(chunk.fixes)
    found: list[tuple[str, float]] = []
    at = 1
    while at <= chunk.size:
        learned = fixes.get(at)
        found.append((f"<{learned.name}>" if learned else words[at], chunk.weights[at]))
        at += len(learned.vectors) if learned else 1
    return tuple(found)


def near_embeddings(text: str, known: Collection[str], used: Collection[str] = ()) -> Iterator[Note]:
    """Words that are almost the name of an embedding, save those `used`."""
    names = {fold(name): name for name in known if len(name) >= SHORTEST_NAME}
    seen = {fold(name) for name in used}
    for match in WORD.finditer(text) if names else ():
        word = fold(match[0])
        if word in seen or any(name in word for name in seen) or len(word) < SHORTEST_NAME:
            continue
        if len(seen) > MOST_LOOKED_UP + len(used):
            return
        seen.add(word)
        near = [(steps, name) for name in names if (steps := mistakes(word, name))]
        if near:
            yield Note(
                match.start(), f"{quote(match[0])} is no embedding; did you mean {names[min(near)[1]]}?"
            )


def _unknown_loras(text: str, calls: Collection[LoraCall], known: Collection[str] | None) -> Iterator[Note]:
    for call in calls if known is not None else ():
        if call.name not in (known or ()):
            near = [(steps, one) for one in known or () if (steps := mistakes(fold(call.name), fold(one)))]
            hint = f"; did you mean {min(near)[1]}?" if near else ""
            yield Note(max(0, text.find(f":{call.name}")), f"no LoRA is called {quote(call.name)}{hint}")
