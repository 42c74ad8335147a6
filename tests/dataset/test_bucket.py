"""Bucket sizes and the choice among them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from aid.dataset.bucket import bucket_sizes, choose, crop_box, ladder
from aid.dataset.settings import PrepareSettings

edges = st.integers(8, 9000)
settings_of_any_kind = st.builds(
    lambda step, cells, buckets, upscale, limit: PrepareSettings(
        resolution_px=step * cells,
        bucket_step_px=step,
        buckets=buckets,
        upscale=upscale,
        aspect_limit=limit,
        minimum_edge_px=8,
    ),
    st.sampled_from([8, 16, 32, 64]),
    st.integers(2, 12),
    st.booleans(),
    st.booleans(),
    st.sampled_from([1.0, 1.5, 4.0]),
)


def test_sizes_are_kohyas() -> None:
    """sd-scripts' make_bucket_resolutions((512, 512), 256, 1024, 64), worked out by hand."""
    wide = {(1024, 256), (960, 256), (896, 256), (832, 256), (768, 320), (704, 320), (640, 384), (576, 448)}
    assert set(bucket_sizes(512, PrepareSettings())) == wide | {size[::-1] for size in wide} | {(512, 512)}


def test_choices() -> None:
    rungs = ladder(PrepareSettings())
    assert choose(3000, 3000, rungs) == (512, 512)
    assert choose(1000, 1400, rungs) == (448, 576)
    assert choose(1400, 1000, rungs) == (576, 448)
    assert choose(450, 450, rungs) == (448, 448), "nothing is enlarged"
    assert choose(450, 450, ladder(PrepareSettings(upscale=True)), upscale=True) == (512, 512)
    assert choose(2000, 1000, ladder(PrepareSettings(buckets=False))) == (512, 512)
    assert choose(63, 500, rungs) is None


@given(settings_of_any_kind)
def test_every_bucket_keeps_to_its_area_step_and_aspect(settings: PrepareSettings) -> None:
    for width, height in {size for sizes in ladder(settings) for size in sizes}:
        assert width % settings.bucket_step_px == height % settings.bucket_step_px == 0 < min(width, height)
        assert width * height <= settings.resolution_px**2
        assert max(width, height) <= settings.aspect_limit * min(width, height)


@given(settings_of_any_kind, edges, edges)
def test_the_choice_is_the_nearest_that_fits(settings: PrepareSettings, width: int, height: int) -> None:
    rungs = ladder(settings)
    size = choose(width, height, rungs, settings.upscale)
    if size is None:
        assert not settings.upscale and all(w > width or h > height for w, h in rungs[-1])
        return
    assert settings.upscale or (size[0] <= width and size[1] <= height)
    rung = next(sizes for sizes in rungs if size in sizes)

    def error(w: int, h: int) -> float:
        return abs(math.log((w / h) / (width / height)))

    assert error(*size) <= min(error(*other) for other in rung) + 1e-9
    left, top, right, bottom = crop_box(width, height, size)
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    assert (right - left) / (bottom - top) == pytest.approx(size[0] / size[1])
    assert right - left == pytest.approx(width) or bottom - top == pytest.approx(height)


def test_settings_that_can_t_be_meant() -> None:
    with pytest.raises(ValidationError, match="not a multiple of bucket_step_px 64"):
        PrepareSettings(resolution_px=520)
    with pytest.raises(ValidationError, match="not between bucket_min_px 640"):
        PrepareSettings(bucket_min_px=640)
