"""Styles are measured alike at all times, weights stay in bounds, a balanced run resumes bitwise."""

from __future__ import annotations

import json
import math
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_trouble import Telling
from tests.interrupting import Interrupting

from aid.core.dataset import Dataset
from aid.core.workbench import Workbench
from aid.dataset.run import prepare
from aid.dataset.settings import PrepareInputs, PrepareSettings
from aid.errors import SettingsError
from aid.evaluate.judge_run import judge as teach
from aid.evaluate.settings import JudgeInputs, JudgeSettings
from aid.sd.file.tensorfile import read_header, read_tensors
from aid.sd.model.checkpoint import StableDiffusion, load_checkpoint
from aid.train.balance.balance import (
    Row,
    at_point,
    best,
    beyond,
    bounded,
    gaps,
    held_shares,
    remaining,
    weigh,
)
from aid.train.balance.jury import Jury, informedness
from aid.train.balance.measure import Losses, Meter, fixed_timesteps
from aid.train.lora import lora
from aid.train.run import finetune
from aid.train.settings import (
    BalanceSettings,
    FinetuneInputs,
    FinetuneSettings,
    LoraInputs,
    LoraSettings,
    SampleSettings,
)
from aid.train.step.plan import plan_styles
from aid.train.tables import TimestepSettings
from aid.train.team import Team
from aid.train.training import Training

MEASURED = BalanceSettings(rule="measured", by="word", strength=3.0, every=4, pictures=2, timesteps=3)
SHEETS = SampleSettings(every=10, styles=("*",), per_style=1, steps=2, width=64, height=64, near_copies=True)
LOSS = st.floats(1e-3, 10)
LEVELS = st.lists(LOSS, min_size=3, max_size=3)


@pytest.fixture(scope="module")
def inputs(tiny_checkpoint: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> FinetuneInputs:
    """Two styles that are both new, with held-out pictures."""
    inputs = PrepareInputs(
        pictures={"alpha": pictures / "alpha", "beta": pictures / "beta"}, vae=tiny_checkpoint
    )
    settings = PrepareSettings(resolution_px=64, held_fraction=0.25, buckets=False)
    dataset = prepare(settings, inputs, tmp_path_factory.mktemp("both") / "dataset")
    return FinetuneInputs(checkpoint=tiny_checkpoint, dataset=dataset)


def settings(balance: BalanceSettings, **change: Any) -> FinetuneSettings:
    quick = FinetuneSettings(
        steps=20, batch_size=3, unet_rate=2e-3, text_rate=2e-3, warmup=1, save_every=5, seed=3,
        checkpointing=False, balance=balance, tensorboard=True, samples=SHEETS,
    )  # fmt: skip
    return quick.model_copy(update=change)


def rows_of(out: Path) -> list[Row]:
    return [Row.read(json.loads(line)) for line in (out / "balance.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def straight(inputs: FinetuneInputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("straight") / "out"
    return finetune(settings(MEASURED), inputs, out, Workbench(threads=1))


@pytest.mark.parametrize("stops", [[10], [3, 4, 7]])
def test_a_balanced_run_resumes_bitwise(
    inputs: FinetuneInputs, straight: Path, tmp_path: Path, stops: list[int]
) -> None:
    out = tmp_path / "out"
    for stop in stops:
        with pytest.raises(KeyboardInterrupt):
            finetune(settings(MEASURED), inputs, out, Workbench(threads=1, progress=Interrupting(stop)))
    finetune(settings(MEASURED), inputs, out, Workbench(threads=1))
    for path in sorted(straight.rglob("*")):
        if path.is_file():
            assert (out / path.relative_to(straight)).read_bytes() == path.read_bytes(), path.name


def test_exposure_follows_the_weights_to_the_picture(straight: Path) -> None:
    rows = rows_of(straight)
    assert [row.step for row in rows] == [0, 4, 8, 12, 16, 20]
    due = {"alpha": 0.0, "beta": 0.0}
    for row, after in pairwise(rows):
        for style, weight in row.weights.items():
            due[style] += 4 * 3 * weight / sum(row.weights.values())
            assert abs(after.seen[style] - due[style]) <= 0.5 + 1e-9
    assert rows[-1].weights["alpha"] != rows[-1].weights["beta"], "something was measured"


def test_the_start_is_measured_before_anything_is_trained(straight: Path, inputs: FinetuneInputs) -> None:
    start = rows_of(straight)[0]
    assert start.weights == pytest.approx({"alpha": 1.0, "beta": 1.0}, abs=0.2), "words that say nothing yet"
    assert start.seen == {"alpha": 0, "beta": 0}
    assert set(held_shares(start, start).values()) == {1.0} and set(gaps(start, start).values()) == {0.0}
    assert all(
        len(losses) == 3 and min(losses) > 0 for losses in (*start.held.values(), *start.trained.values())
    )


def test_it_measures_what_diffusers_would(inputs: FinetuneInputs, straight: Path) -> None:
    """The start model's held-out loss of one style, computed by other means."""
    from diffusers import DDPMScheduler

    from aid.train.step.condition import encode_captions

    model = load_checkpoint(inputs.checkpoint, "cpu")
    chosen = settings(MEASURED)
    meter = Meter(Dataset(inputs.dataset), ["alpha"], chosen, model.architecture.vae_scale)
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    found = []
    with torch.no_grad():
        for probe in meter.probes["held"]:
            mean = torch.from_numpy(Dataset(inputs.dataset).fetch([probe.record])[:, 0]).float()
            noise = meter._noise(probe.number, mean.shape[1:])
            noised = scheduler.add_noise(
                (mean * model.architecture.vae_scale).expand_as(noise), noise, meter.t
            )
            told = encode_captions(model, [probe.record.caption] * 3, 1).context
            predicted = model.unet(noised, meter.t, told).sample
            found.append((predicted - noise).square().mean((1, 2, 3)))
    expected = torch.stack(found).mean(0)
    assert torch.allclose(torch.tensor(rows_of(straight)[0].held["alpha"]), expected, rtol=1e-4)


def test_what_the_word_does_is_measured_on_the_same_pictures_and_noise(
    inputs: FinetuneInputs, straight: Path
) -> None:
    meter = Meter(Dataset(inputs.dataset), ["alpha", "beta"], settings(MEASURED), 0.18215)
    for held, wordless in zip(meter.probes["held"], meter.probes["wordless"], strict=True):
        assert held.caption == f"by {held.record.style}, {wordless.caption}"
        assert (held.record, held.number) == (wordless.record, wordless.number)
    assert all(row.wordless.keys() == row.held.keys() != set() for row in rows_of(straight))
    plain = MEASURED.model_copy(update={"by": "loss"})
    assert not Meter(Dataset(inputs.dataset), ["alpha"], settings(plain), 0.18215).probes["wordless"]


def test_measuring_disturbs_nothing(inputs: FinetuneInputs, tmp_path: Path) -> None:
    plain, watched = BalanceSettings(), BalanceSettings(measure=True, every=3)
    models = []
    for name, balance in (("plain", plain), ("watched", watched)):
        out = finetune(settings(balance, steps=7), inputs, tmp_path / name, Workbench(threads=1))
        models.append(read_tensors(out / "model.safetensors"))
    assert all(torch.equal(models[0][key], models[1][key]) for key in models[0])
    assert [row.step for row in rows_of(tmp_path / "watched")] == [0, 3, 6, 7]


def test_a_style_without_held_out_pictures_has_the_usual_share_and_it_is_said(
    inputs: FinetuneInputs, tmp_path: Path
) -> None:
    shutil.copytree(inputs.dataset, tmp_path / "dataset")
    records = [r for r in Dataset(inputs.dataset).records if r.style != "beta" or r.split == "train"]
    (tmp_path / "dataset" / "records.jsonl").write_text("".join(r.model_dump_json() + "\n" for r in records))
    (tmp_path / "dataset" / "lineage.json").unlink()  # it was changed by hand
    lone = inputs.model_copy(update={"dataset": tmp_path / "dataset"})
    telling = Telling()
    out = finetune(
        settings(MEASURED, steps=8), lone, tmp_path / "out", Workbench(threads=1, progress=telling)
    )
    assert any("measured; later losses are shares of these" in line for line in telling.said[:3])
    assert any("beta: no held-out pictures, so the usual share" in line for line in telling.said)
    assert all(row.weights["beta"] == 1.0 and "beta" not in row.held for row in rows_of(out))


@pytest.mark.parametrize(
    ("chosen", "told"),
    [
        ({"balance": BalanceSettings(rule="measured", by="loss")}, "balance goes by held-out pictures"),
        ({"balance": BalanceSettings(stop_at="slightly overfit")}, "balance goes by held-out pictures"),
        ({"samples": SHEETS}, "near copies are told by held-out pictures"),
    ],
)
def test_what_held_out_pictures_tell_is_refused_before_a_step_where_there_are_none(
    chosen: dict[str, Any], told: str, pictures: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    plain = PrepareSettings(resolution_px=64, held_fraction=0.0, held_minimum=0, buckets=False)
    asked = PrepareInputs(pictures={"alpha": pictures / "alpha"}, vae=tiny_checkpoint)
    inputs = FinetuneInputs(checkpoint=tiny_checkpoint, dataset=prepare(plain, asked, tmp_path / "dataset"))
    telling = Telling()
    whole = settings(BalanceSettings()).model_copy(update={"samples": SampleSettings(), **chosen})
    with pytest.raises(SettingsError, match=f"{told}, and there are none.*held_fraction"):
        finetune(whole, inputs, tmp_path / "out", Workbench(threads=1, progress=telling))
    assert not telling.said, "nothing was begun"


def test_replay_goes_on_beside_it(dataset: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """`beta` is regularisation: it has its share of every batch, and no weight."""
    inputs = FinetuneInputs(checkpoint=tiny_checkpoint, dataset=dataset)
    chosen = settings(MEASURED, steps=8, regularisation_share=0.34)
    rows = rows_of(finetune(chosen, inputs, tmp_path / "out", Workbench(threads=1)))
    assert set(rows[-1].weights) == {"alpha"} and rows[-1].seen == {"alpha": 16}
    plan = plan_styles(Dataset(dataset), chosen, 0.18215)
    plan.order.lay({"alpha": 1.0})
    assert all(sum(r.regularisation for r in plan.step(index).records) == 1 for index in range(4))


def test_a_lora_is_balanced_and_resumes_bitwise(inputs: FinetuneInputs, tmp_path: Path) -> None:
    chosen = LoraSettings(steps=8, batch_size=3, rank=2, unet_rate=1e-2, save_every=3, balance=MEASURED)
    given = LoraInputs(checkpoint=inputs.checkpoint, dataset=inputs.dataset)
    lora(chosen, given, tmp_path / "a", Workbench(threads=1))
    with pytest.raises(KeyboardInterrupt):
        lora(chosen, given, tmp_path / "b", Workbench(threads=1, progress=Interrupting(5)))
    lora(chosen, given, tmp_path / "b", Workbench(threads=1))
    for name in ("style.safetensors", "balance.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_run_ends_when_all_styles_are_overfit_and_saves_the_best_weights(
    inputs: FinetuneInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With curves as given: lowest after 8 steps, overfit after 12. What is saved is what 8 steps make."""
    curves = {"held": [1.0, 0.6, 0.5, 0.55, 0.6, 0.6], "train": [1.0, 0.5, 0.4, 0.3, 0.2, 0.2]}
    balance = MEASURED.model_copy(update={"by": "loss", "stop_at": "slightly overfit"})
    telling, models = Telling(), {}
    for name, steps in (("long", 20), ("short", 8)):
        left = {split: iter(curve) for split, curve in curves.items()}

        def losses(self: Meter, training: Training, split: str, left: Any = left) -> Losses:
            return dict.fromkeys(("alpha", "beta"), [next(left[split])] * 3)

        monkeypatch.setattr(Meter, "losses", losses)
        out = finetune(
            settings(balance, steps=steps), inputs, tmp_path / name, Workbench(threads=1, progress=telling)
        )
        models[name] = read_tensors(out / "model.safetensors")
    rows = rows_of(tmp_path / "long")
    assert [row.step for row in rows] == [0, 4, 8, 12] and rows[-1].at_point == ("alpha", "beta")
    assert any("the weights are those of step 8" in line for line in telling.said)
    assert all(torch.equal(models["long"][key], models["short"][key]) for key in models["short"])


def test_a_lora_tells_after_how_many_steps_its_weights_were_as_saved(
    inputs: FinetuneInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With curves as given: lowest at the second measurement, overfit at the third."""
    curves = {"held": iter([1.0, 0.5, 0.55]), "train": iter([1.0, 0.4, 0.3])}
    monkeypatch.setattr(
        Meter, "losses", lambda _, __, split: dict.fromkeys(("alpha", "beta"), [next(curves[split])] * 3)
    )
    balance = MEASURED.model_copy(update={"by": "loss", "stop_at": "slightly overfit", "every": 1})
    chosen = LoraSettings(steps=6, batch_size=3, rank=2, balance=balance)
    given = LoraInputs(checkpoint=inputs.checkpoint, dataset=inputs.dataset)
    out = lora(chosen, given, tmp_path / "out", Workbench(threads=1))
    told = read_header(out / "style.safetensors").metadata
    _, lowest, last = (row.step for row in rows_of(out))
    assert lowest < last and (told["ss_steps"], told["ss_max_train_steps"]) == (str(lowest), "6")


@given(st.lists(LEVELS, min_size=2, max_size=2), st.lists(st.floats(0.1, 10), min_size=3, max_size=3))
def test_progress_does_not_hang_on_a_levels_scale(levels: list[list[float]], scale: list[float]) -> None:
    now, start = levels
    scaled = [[a * s for a, s in zip(row, scale, strict=True)] for row in levels]
    assert math.isclose(remaining(now, start), remaining(*scaled), rel_tol=1e-6)
    assert math.isclose(remaining([x / 2 for x in start], start), 0.5, rel_tol=1e-6)


@given(
    st.lists(st.dictionaries(st.sampled_from("abc"), LEVELS, min_size=3, max_size=3), min_size=2, max_size=6),
    st.floats(0, 10), st.floats(1, 8), st.floats(0, 0.9), st.sampled_from(["never", "slightly overfit"]),
    st.sampled_from(["word", "loss"]),
)  # fmt: skip
def test_weights_are_bounded(
    measured: list[dict[str, list[float]]],
    strength: float,
    bound: float,
    smoothing: float,
    stop: str,
    by: str,
) -> None:
    chosen = BalanceSettings.model_validate(
        {
            "rule": "measured",
            "strength": strength,
            "bound": bound,
            "smoothing": smoothing,
            "stop_at": stop,
            "by": by,
        }
    )
    weights = dict.fromkeys("abcd", 1.0)
    rows: list[Row] = []
    for step, held in enumerate(measured):
        turned = {style: losses[::-1] for style, losses in held.items()}
        rows.append(Row(step, held, turned, wordless=dict(zip(held, [*turned.values()][::-1], strict=True))))
        weights = weigh(rows, weights, at_point(rows, chosen), chosen)
        least = min(chosen.rest, 1 / bound) if stop != "never" else 1 / bound
        assert all(least - 1e-9 <= weight <= bound + 1e-9 for weight in weights.values())
        assert weights["d"] == 1.0, "never measured"


def test_who_is_behind_comes_up_more_often() -> None:
    by_loss = MEASURED.model_copy(update={"by": "loss"})
    start = Row(0, {"slow": [1.0], "fast": [1.0]}, {"slow": [1.0], "fast": [1.0]})
    later = Row(9, {"slow": [0.9], "fast": [0.4]}, {"slow": [0.9], "fast": [0.4]})
    weights = weigh([start, later], {"slow": 1.0, "fast": 1.0}, (), by_loss)
    assert weights["slow"] > 1.5 and weights["fast"] < 0.8
    known = Row(9, {"slow": [0.2], "fast": [0.4]}, {}, wordless={"slow": [0.2], "fast": [0.8]})
    weights = weigh([start, known], {"slow": 1.0, "fast": 1.0, "nameless": 1.0}, (), MEASURED)
    assert weights["slow"] > 1.5 and weights["fast"] < 0.8 and weights["nameless"] == 1.0
    assert bounded(9.0, MEASURED) == pytest.approx(4) and bounded(-9.0, MEASURED) == pytest.approx(0.25)


def test_who_is_seen_less_by_the_judge_comes_up_more_often() -> None:
    judged = MEASURED.model_copy(update={"by": "judge", "strength": 1.0, "smoothing": 0.5, "pictures": 4})
    row = Row(9, {}, {}, missed={"slow": 5 / 6, "fast": 1 / 6})
    weights = weigh([row], {"slow": 1.0, "fast": 1.0, "unjudged": 1.0}, (), judged)
    assert weights["slow"] == pytest.approx((1 + 5**0.5) / 2), "halfway to the root of 5/6 over 1/6"
    assert weights["fast"] == pytest.approx((1 + 5**-0.5) / 2) and weights["unjudged"] == 1.0


def test_no_style_waits_where_none_is_to_stop() -> None:
    row = Row(9, {"a": [0.5], "b": [0.5]}, {}, wordless={"a": [1.0], "b": [1.0]})
    assert weigh([row], {"a": 1.0, "b": 1.0}, ("a",), MEASURED) == {"a": 1.0, "b": 1.0}
    stops = MEASURED.model_copy(update={"stop_at": "slightly overfit"})
    assert weigh([row], {"a": 1.0, "b": 1.0}, ("a",), stops)["a"] < 0.6


@pytest.fixture(scope="module")
def judge(inputs: FinetuneInputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("judge") / "judge"
    return teach(JudgeSettings(epochs=2, batch_size=24, width=4), JudgeInputs(dataset=inputs.dataset), out)


def test_balance_by_the_judge_resumes_bitwise(inputs: FinetuneInputs, judge: Path, tmp_path: Path) -> None:
    balance = MEASURED.model_copy(update={"by": "judge"})
    chosen, asked = settings(balance, steps=10), inputs.model_copy(update={"judge": judge})
    straight = finetune(chosen, asked, tmp_path / "straight", Workbench(threads=1))
    for row in rows_of(straight):
        assert set(row.missed) == {"alpha", "beta"}
        assert all(1 / 4 <= share <= 3 / 4 for share in row.missed.values()), "two pictures each"
    with pytest.raises(KeyboardInterrupt):
        finetune(chosen, asked, tmp_path / "out", Workbench(threads=1, progress=Interrupting(7)))
    finetune(chosen, asked, tmp_path / "out", Workbench(threads=1))
    for name in ("model.safetensors", "balance.jsonl"):
        assert (tmp_path / "out" / name).read_bytes() == (straight / name).read_bytes()


def test_a_judge_that_says_one_thing_of_all_says_little_of_it() -> None:
    def told(asked: str, *chances: float) -> dict[str, float]:
        """`chances` are those of the style "a", of two."""
        return informedness([(style, {"a": p, "b": 1 - p}) for style, p in zip(asked, chances, strict=True)])

    assert told("aabb", 1, 1, 1, 1) == {"a": 0.0, "b": 0.0}
    assert told("aabb", 1, 1, 0, 0) == {"a": 1.0, "b": 1.0}
    assert told("aabb", 0, 0, 1, 1) == {"a": 0.0, "b": 0.0}
    assert told("aab", 0.9, 0.7, 0.3) == {"a": pytest.approx(0.5), "b": pytest.approx(0.5)}
    assert told("aa", 0.6, 0.4) == {"a": pytest.approx(0.5)}


def test_the_judge_sees_the_newest_weights(
    inputs: FinetuneInputs, judge: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is averaged, or whether anything is, changes no order; this judge goes by the weights themselves,
    as one taught for seconds sees nothing."""

    def missed(self: Jury, model: StableDiffusion, team: Team) -> dict[str, float]:
        return {"alpha": float(model.unet.conv_in.weight.double().square().mean().sigmoid()), "beta": 0.5}

    monkeypatch.setattr(Jury, "missed", missed)
    balance = MEASURED.model_copy(update={"by": "judge"})
    asked = inputs.model_copy(update={"judge": judge})
    plain, averaged = (
        rows_of(finetune(settings(balance, ema=ema), asked, tmp_path / str(ema), Workbench(threads=1)))
        for ema in (0.0, 0.9)
    )
    assert [row.missed for row in plain] == [row.missed for row in averaged]
    assert [row.weights for row in plain] == [row.weights for row in averaged]
    assert len({row.missed["alpha"] for row in plain}) == len(plain)


def test_a_judge_must_be_given_and_know_the_styles(
    inputs: FinetuneInputs, judge: Path, tmp_path: Path
) -> None:
    chosen = settings(MEASURED.model_copy(update={"by": "judge"}))
    with pytest.raises(SettingsError, match=r'balance\.by is "judge", and none is given'):
        finetune(chosen, inputs, tmp_path / "none", Workbench(threads=1))
    with pytest.raises(SettingsError, match="a judge is given, and nobody asks it"):
        unasked = inputs.model_copy(update={"judge": judge})
        finetune(settings(MEASURED), unasked, tmp_path / "unasked", Workbench(threads=1))
    with pytest.raises(SettingsError, match="knows none of the styles trained on"):
        Jury(judge, Dataset(inputs.dataset), ["gamma"], chosen, 64, Workbench(threads=1))


def curve(held: list[float], trained: list[float]) -> list[Row]:
    pairs = zip(held, trained, strict=True)
    return [Row(step, {"a": [h], "b": [1.0]}, {"a": [t], "b": [1.0]}) for step, (h, t) in enumerate(pairs)]


def test_the_overfit_point_needs_an_open_gap_and_a_standing_loss() -> None:
    still_falling = curve([1.0, 0.8, 0.6], [1.0, 0.6, 0.3])
    no_gap = curve([1.0, 0.8, 0.8], [1.0, 0.8, 0.79])
    there = curve([1.0, 0.6, 0.6], [1.0, 0.5, 0.4])
    assert at_point(still_falling, MEASURED) == at_point(no_gap, MEASURED) == ()
    assert at_point(there, MEASURED) == ("a",) and beyond(there, MEASURED) == ()
    assert at_point(no_gap, MEASURED, ("b",)) == ("b",), "what is drawn of it is copied"


def test_the_best_weights_are_the_newest_with_few_beyond() -> None:
    rows = curve([1.0, 0.6, 0.6, 0.65, 0.7], [1.0, 0.5, 0.4, 0.3, 0.2])
    assert beyond(rows, MEASURED) == ("a",)
    assert best(rows, MEASURED) == 2
    assert best(rows, MEASURED.model_copy(update={"beyond_share": 0.5})) == 4


def test_fixed_timesteps_are_even_shares_of_the_law() -> None:
    assert fixed_timesteps(4, TimestepSettings()).tolist() == [125, 375, 625, 875]
    normal = fixed_timesteps(4, TimestepSettings(law="logit_normal")).tolist()
    assert normal[0] > 125 and normal[3] < 875 and normal == sorted(normal)
