"""Teaching the judge: AdamW along a cosine, the same bytes every time, to be continued after a stop."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from aid.core.rate import rate_factor
from aid.core.workbench import Workbench
from aid.evaluate.augment import augment
from aid.evaluate.settings import JudgeSettings
from aid.judging.network import JudgeNetwork, fresh_network, loss, normalised
from aid.judging.panel import Asked, Panel
from aid.sd.file.state import (
    fitting,
    load_state,
    module_tensors,
    optimiser_tensors,
    restore_module,
    restore_optimiser,
    save_state,
)
from aid.sd.model.device import torch_device

WARM_UP = 0.05
LEAST_EPOCHS = 4


@dataclass(frozen=True)
class Lessons:
    """Pictures uint8 [n, 3, 64, 64] with their answers: see `network.loss`."""

    pictures: Tensor
    choices: Tensor
    present: Tensor

    def rarity(self) -> Tensor:
        """[2, tags]: half the inverse frequency of a tag's absence and of its presence."""
        answered = (self.present >= 0).sum(0).clamp(min=1)
        often = ((self.present == 1).sum(0) / answered).clamp(0.01, 0.99)
        return torch.stack([0.5 / (1 - often), 0.5 / often])


def answer_sheet(panel: Panel, asked: list[Asked]) -> tuple[Tensor, Tensor]:
    """`choices` int64 [n, 1 + groups] and `present` float [n, tags]; -1 where a picture doesn't answer."""
    choices = [
        [
            panel.styles.index(style) if style in panel.styles else -1,
            *(
                options.index(panel.choice(group, tags)) if panel.choice(group, tags) else -1
                for group, options in panel.groups.items()
            ),
        ]
        for style, tags in asked
    ]
    present = [
        [float(tag in tags) if panel.can_show(style, tag) else -1.0 for tag in panel.tags]
        for style, tags in asked
    ]
    return torch.tensor(choices), torch.tensor(present).reshape(len(asked), len(panel.tags))


def fair_order(styles: Tensor, generator: torch.Generator) -> Tensor:
    """An epoch's rows: as many as there are pictures, every style alike often, each one's pictures in turn.

    Of styles with equally many it is a pass over all. A judge that sees rare ones rarely never names them.
    """
    known = torch.unique(styles)
    ends = [len(styles) * number // len(known) for number in range(len(known) + 1)]
    rows: list[Tensor] = []
    for style, start, end in zip(known, ends, ends[1:], strict=False):
        own = (styles == style).nonzero().flatten()
        turns = -(-(end - start) // len(own))
        shuffled = [own[torch.randperm(len(own), generator=generator)] for _ in range(turns)]
        rows.append(torch.cat(shuffled)[: end - start])
    return torch.cat(rows)[torch.randperm(len(styles), generator=generator)]


def train(
    panel: Panel, lessons: Lessons, settings: JudgeSettings, folder: Path, bench: Workbench
) -> JudgeNetwork:
    """A taught network in eval mode, on the bench's device; `folder` keeps the state meanwhile.

    Every epoch draws from a generator of its own, so that the state is weights, moments and a number.
    """
    device = torch_device(bench)
    count = len(lessons.pictures)
    steps = max(1, count // settings.batch_size)
    epochs = settings.epochs or max(LEAST_EPOCHS, math.ceil(settings.pictures_seen / count))
    network = fresh_network(panel, settings.width, settings.seed).to(device)
    optimizer = torch.optim.AdamW(
        network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay
    )
    done = _resume(folder, network, optimizer)
    rarity = lessons.rarity().to(device)
    with bench.progress.task("judge", total=epochs, unit="epoch", done=done) as tick:
        for epoch in range(done, epochs):
            if epoch > done and epoch % settings.save_every == 0:
                save_state(folder, epoch, {**module_tensors(network), **optimiser_tensors(optimizer)}, keep=1)
            generator = torch.Generator().manual_seed((settings.seed + 1_000_003 * (epoch + 1)) % 2**63)
            order = fair_order(lessons.choices[:, 0], generator)
            total = torch.zeros((), device=device)
            for step in range(steps):
                rows = order[step * settings.batch_size : (step + 1) * settings.batch_size]
                _set_rate(optimizer, settings.learning_rate, epoch * steps + step, epochs * steps)
                seen = augment(lessons.pictures[rows], generator, settings.flip, settings.spoil)
                answers = lessons.choices[rows].to(device), lessons.present[rows].to(device)
                total += _step(network, optimizer, seen.to(device), *answers, rarity)
            tick(1, f"loss {float(total) / steps:.2f}")
    return network.eval()


def _step(
    network: JudgeNetwork,
    optimizer: torch.optim.Optimizer,
    pictures: Tensor,
    choices: Tensor,
    present: Tensor,
    rarity: Tensor,
) -> Tensor:
    _, logits = network(normalised(pictures))
    value = loss(network, logits, choices, present, rarity)
    optimizer.zero_grad(set_to_none=True)
    value.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return value.detach()


def _set_rate(optimizer: torch.optim.Optimizer, peak: float, step: int, steps: int) -> None:
    warm = max(1, round(WARM_UP * steps))
    for group in optimizer.param_groups:
        group["lr"] = peak * rate_factor(step, steps, warm, "cosine")


def _resume(folder: Path, network: JudgeNetwork, optimizer: torch.optim.Optimizer) -> int:
    """Load the state of an interrupted run; returns the epochs it had done."""
    state = load_state(folder)
    if state is None:
        return 0
    done, saved = state
    with fitting(saved):
        restore_module(network, saved)
        restore_optimiser(optimizer, saved)
    return done
