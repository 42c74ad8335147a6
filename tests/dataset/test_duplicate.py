"""What counts as the same picture."""

from __future__ import annotations

import io
import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.conftest import draw_portrait

from aid.dataset.duplicate import Fingerprint, fingerprint, first_copies, near_duplicates


def portrait(seed: int, hair: str = "red") -> Image.Image:
    return draw_portrait("alpha", hair, True, random.Random(seed)).resize(
        (128, 128), Image.Resampling.BICUBIC
    )


def jpeg(picture: Image.Image, quality: int) -> Image.Image:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=quality)
    return Image.open(stream).convert("RGB")


def test_copies() -> None:
    assert first_copies(["a", "b", "a", "c", "b", "a"]) == {2: 0, 4: 1, 5: 0}


def test_reencoded_and_rescaled_pictures_are_found_and_other_colours_are_not() -> None:
    first = portrait(1)
    others = [jpeg(first, 60), first.resize((90, 90)), portrait(1, "blue"), portrait(5)]
    result = near_duplicates([fingerprint(picture) for picture in [first, *others]], 6, 4.0)
    assert [(a, b) for a, b, _ in result.pairs] == [(0, 1), (0, 2)]
    assert result.leader == (0, 0, 0, 3, 4)


def test_the_same_look_is_joined_without_comparing() -> None:
    look = fingerprint(portrait(1))
    assert near_duplicates([look] * 3, 0, 0.0).pairs == ((0, 1, 0), (0, 2, 0))


@settings(max_examples=50)
@given(st.lists(st.integers(0, 255), min_size=1, max_size=24), st.integers(0, 3))
def test_groups_are_the_connected_components(hashes: list[int], most: int) -> None:
    """Against the closure of the relation by matrix products."""
    looks = [Fingerprint(bits, bytes(192)) for bits in hashes]
    near = np.array([[(a ^ b).bit_count() <= most for a in hashes] for b in hashes], dtype=int)
    reach = np.linalg.matrix_power(near.astype(float), len(hashes)) > 0
    leader = near_duplicates(looks, most, 4.0).leader
    assert list(leader) == [int(np.flatnonzero(row)[0]) for row in reach]
