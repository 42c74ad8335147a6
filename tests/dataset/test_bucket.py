"""Bucket sizes and the choice among them."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from aid.dataset.cutting.bucket import Rule, Size, bucket_sizes, crop_box, ladder, rules
from aid.dataset.cutting.fitting import aspect, candidates, fit_sizes, lost
from aid.dataset.settings import PrepareSettings

edges = st.integers(8, 9000)
settings_of_any_kind = st.builds(
    lambda step, cells, buckets, upscale, limit, bucketing, count: PrepareSettings(
        resolution_px=step * cells,
        bucket_step_px=step,
        buckets=buckets,
        bucketing=bucketing,
        bucket_count=count,
        upscale=upscale,
        aspect_limit=limit,
        minimum_edge_px=8,
    ),
    st.sampled_from([8, 16, 32, 64]),
    st.integers(2, 12),
    st.booleans(),
    st.booleans(),
    st.sampled_from([1.0, 1.5, 4.0]),
    st.sampled_from(["fitted", "kohya", "nai"]),
    st.integers(1, 12),
)


def rule(settings: PrepareSettings, *pictures: Size) -> Rule:
    [only] = rules(Counter(pictures), settings)
    return only


def mixed_pictures(count: int, widest: float, seed: int = 5) -> list[Size]:
    """Aspects evenly from 1:widest to widest:1 in logarithms, areas of 0.5 to 9 megapixels."""
    chance = random.Random(seed)
    pictures = []
    for _ in range(count):
        shape = math.exp(chance.uniform(-1, 1) * math.log(widest))
        area = chance.uniform(700**2, 3000**2)
        pictures.append((round(math.sqrt(area * shape)), round(math.sqrt(area / shape))))
    return pictures


def kept_share(picture: Size, size: Size) -> float:
    left, top, right, bottom = crop_box(*picture, size)
    return (right - left) * (bottom - top) / (picture[0] * picture[1])


def test_sizes_are_kohyas() -> None:
    """sd-scripts' make_bucket_resolutions((512, 512), 256, 1024, 64), worked out by hand."""
    wide = {(1024, 256), (960, 256), (896, 256), (832, 256), (768, 320), (704, 320), (640, 384), (576, 448)}
    settings = PrepareSettings(bucketing="kohya")
    assert set(bucket_sizes(512, settings)) == wide | {size[::-1] for size in wide} | {(512, 512)}


def test_sizes_are_novelais() -> None:
    """Some of NovelAI's aspect ratio buckets: 512x768 pixels at most, edges of 256 to 1024 by 64."""
    found = set(bucket_sizes(512, PrepareSettings(bucketing="nai")))
    assert {(512, 512), (512, 768), (1024, 384), (384, 960)} <= found
    assert all(w * h <= 512 * 768 and min(w, h) >= 256 and max(w, h) <= 1024 for w, h in found)


def test_kohyas_choice_is_by_the_linear_aspect() -> None:
    """1.14 lies nearer to 576x448 by difference of logarithms, and nearer to 1 by difference."""
    picture = (1140, 1000)
    assert rule(PrepareSettings(bucketing="kohya")).choose(*picture) == (512, 512)
    assert rule(PrepareSettings(bucketing="nai")).choose(*picture) == (640, 576)


def test_choices() -> None:
    square = rule(PrepareSettings(bucketing="kohya"))
    assert square.choose(3000, 3000) == (512, 512)
    assert square.choose(1000, 1400) == (448, 576)
    assert square.choose(1400, 1000) == (576, 448)
    assert square.choose(450, 450) == (448, 448), "nothing is enlarged"
    assert square.choose(63, 500) is None
    assert rule(PrepareSettings(upscale=True), (450, 450)).choose(450, 450) == (512, 512)
    assert rule(PrepareSettings(buckets=False), (2000, 1000)).choose(2000, 1000) == (512, 512)


def test_mixed_shapes_keep_their_pixels() -> None:
    """300 pictures of mixed shapes at 512 px: mean .965, least .90, a dozen buckets or fewer."""
    pictures = mixed_pictures(300, widest=2.0)
    fitted, kohya = rule(PrepareSettings(), *pictures), rule(PrepareSettings(bucketing="kohya"))
    sizes = [fitted.choose(*picture) for picture in pictures]
    assert None not in sizes and len(set(sizes)) <= 12
    kept = [kept_share(picture, size) for picture, size in zip(pictures, sizes, strict=True) if size]
    assert fmean(kept) >= 0.965 and min(kept) >= 0.90
    theirs = [kept_share(picture, kohya.choose(*picture) or (1, 1)) for picture in pictures]
    assert fmean(theirs) < 0.94 and min(theirs) < 0.87


def test_a_few_pictures_get_the_best_there_is() -> None:
    """Against every possible set of two buckets: mostly the best one, never much worse."""
    settings, ratios = PrepareSettings(resolution_px=256, bucket_count=2), []
    for seed in range(8):
        pictures = mixed_pictures(7, 3.0, seed)

        loss = {
            (picture, size): lost(picture, size, 256**2)
            for picture in pictures
            for size in candidates(256, settings)
        }

        def total(sizes: tuple[Size, ...], loss: dict[tuple[Size, Size], float] = loss) -> float:
            return sum(min(loss[picture, size] for size in sizes) for picture in {key[0] for key in loss})

        best = min(map(total, itertools.combinations(candidates(256, settings), 2)))
        ratios.append(total(fit_sizes(Counter(pictures), 256, settings)) / best)
    assert sum(ratio < 1.001 for ratio in ratios) >= 6 and max(ratios) < 1.25


def test_a_small_picture_gets_a_bucket_that_it_fills() -> None:
    pictures = [(1000, 1000)] * 20 + [(330, 260)] * 5 + [(70, 260)]
    chosen = rule(PrepareSettings(), *pictures)
    assert set(chosen.fitted) == {(512, 512), (320, 256), (64, 256)}
    assert chosen.choose(90, 90) == (64, 64), "one that came later has the table's"
    assert rule(PrepareSettings(upscale=True), (330, 260)).choose(330, 260) == (576, 448)


def test_sizes_told_are_those_taken() -> None:
    settings = PrepareSettings(shapes=("512x512", "448x576"), more_resolutions_px=(448,))
    large, small = rules({(1000, 1000): 9}, settings)
    assert large.choose(1000, 1000) == (512, 512) and large.choose(780, 1000) == (448, 576)
    assert small.choose(1000, 1000) == (448, 448)


@given(settings_of_any_kind, st.lists(st.tuples(edges, edges), max_size=8))
def test_every_bucket_keeps_to_its_area_step_and_aspect(settings: PrepareSettings, sizes: list[Size]) -> None:
    area = settings.resolution_px**2 * (1.5 if settings.bucketing == "nai" else 1.0)
    fitted = fit_sizes(Counter(sizes), settings.resolution_px, settings)
    assert len(fitted) <= settings.bucket_count
    for width, height in {size for rung in ladder(settings.resolution_px, settings) for size in rung} | {
        *fitted
    }:
        assert width % settings.bucket_step_px == height % settings.bucket_step_px == 0 < min(width, height)
        assert width * height <= area
        assert max(width, height) <= settings.aspect_limit * min(width, height)


@given(settings_of_any_kind, st.lists(st.tuples(edges, edges), min_size=1, max_size=8))
def test_no_picture_is_dropped_or_enlarged_and_crops_lie_inside(
    settings: PrepareSettings, pictures: list[Size]
) -> None:
    chosen = rule(settings, *pictures)
    assert chosen == rule(settings, *reversed(pictures)), "the order doesn't matter"
    for width, height in pictures:
        if aspect(width, height) > settings.aspect_limit:
            continue
        size = chosen.choose(width, height)
        if size is None:
            assert not settings.upscale and min(width, height) < settings.bucket_step_px
            continue
        assert settings.upscale or (size[0] <= width and size[1] <= height)
        left, top, right, bottom = crop_box(width, height, size)
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
        assert (right - left) / (bottom - top) == pytest.approx(size[0] / size[1])
        assert right - left == pytest.approx(width) or bottom - top == pytest.approx(height)


@given(st.integers(64, 4000), st.integers(64, 4000))
def test_the_choice_loses_least(width: int, height: int) -> None:
    settings = PrepareSettings()
    chosen = rule(settings, *mixed_pictures(40, 3.0), (300, 200))
    size = chosen.choose(width, height)
    if size in chosen.fitted:
        least = min(lost((width, height), other, 512**2) for other in chosen.fitted)
        assert lost((width, height), size, 512**2) == least


def test_settings_that_can_t_be_meant() -> None:
    with pytest.raises(ValidationError, match="not a multiple of bucket_step_px 64"):
        PrepareSettings(resolution_px=520)
    with pytest.raises(ValidationError, match="not a multiple of bucket_step_px 64"):
        PrepareSettings(more_resolutions_px=(0,))
    with pytest.raises(ValidationError, match="not between bucket_min_px 640"):
        PrepareSettings(bucket_min_px=640)
    with pytest.raises(ValidationError, match="shape 512x513 has an edge that is no multiple of 8"):
        PrepareSettings(shapes=("512x513",))
    with pytest.raises(ValidationError, match="pattern"):
        PrepareSettings(shapes=("square",))
