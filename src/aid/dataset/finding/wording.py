"""Tags that follow from the whole of the data or from the picture itself, not from what was written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from aid.dataset.finding.tag import Patterns, Tags
from aid.dataset.settings import PrepareSettings

QUALITIES = ((9.0, "amazing"), (7.5, "best"), (6.0, "high"), (4.0, "normal"), (2.5, "low"), (1.0, "worst"))
LEAST_QUALITY = "horrible"
SIZES = ((256**2, "thumbnail"), (640**2, "lowres"))  # pixels of the original, at most
RATINGS = {
    "g": ("rating: general", "safe"),
    "s": ("rating: sensitive",),
    "q": ("rating: questionable",),
    "e": ("rating: explicit", "nsfw"),
}
RATING_NAMES = {
    "general": "g", "safe": "g", "sensitive": "s", "questionable": "q", "explicit": "e", "nsfw": "e",
}  # fmt: skip


def quality_word(score: float) -> str:
    """A score of 0 to 10 in words. Source: waifuset's thresholds, which the author trained with."""
    word = next((word for least, word in QUALITIES if score >= least), LEAST_QUALITY)
    return f"{word} quality"


def size_word(width: int, height: int) -> str:
    """What a small original is called, empty for others. Source: the author's training scripts."""
    return next((word for most, word in SIZES if width * height <= most), "")


def rating_words(rating: str) -> tuple[str, ...]:
    """The words of a rating given as a letter or a word; none for one that isn't known."""
    name = rating.strip().lower()
    return RATINGS.get(RATING_NAMES.get(name, name), ())


def added_words(
    size: tuple[int, int], score: float | None, rating: str, settings: PrepareSettings
) -> tuple[str, ...]:
    """What the settings have said after a picture's tags: rating, size, quality."""
    words: list[str] = []
    if settings.rating_words:
        words += rating_words(rating)
    if settings.size_words:
        words += filter(None, [size_word(*size)])
    if settings.quality_words and score is not None:
        words.append(quality_word(score))
    return tuple(words)


def character_features(pictures: Sequence[Tags], settings: PrepareSettings) -> dict[str, frozenset[str]]:
    """Character -> tags that are its own: on enough of its pictures, of which there are enough."""
    features = Patterns.of(settings.character_features)
    totals: Counter[str] = Counter()
    seen: dict[str, Counter[str]] = {}
    for picture in pictures:
        own = [tag for tag in picture.tags if tag in features]
        for character in picture.characters:
            totals[character] += 1
            seen.setdefault(character, Counter()).update(own)
    return {
        character: frozenset(
            tag for tag, n in counts.items() if n >= settings.feature_share * totals[character]
        )
        for character, counts in seen.items()
        if totals[character] >= settings.feature_pictures
    }


def without_features(tags: Tags, features: Mapping[str, frozenset[str]]) -> Tags:
    """A picture's tags without those that its only character has anyway; of several, whose is it?"""
    if len(tags.characters) != 1:
        return tags
    own = features.get(tags.characters[0], frozenset()) - set(tags.tags[: tags.fixed])
    return Tags(tuple(tag for tag in tags.tags if tag not in own), tags.fixed, tags.characters)
