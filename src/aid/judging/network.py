"""The judge's network: a small residual CNN over 64 x 64 RGB, one linear layer for all its answers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from aid.judging.panel import Panel, Verdict
from aid.sd.file.tensorfile import is_finite

EDGE_PX = 64


class Residual(nn.Module):
    """relu(x + conv(relu(conv(x)))), with batch norm (He et al. 2016)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = convolution(channels, channels)
        self.second = convolution(channels, channels, activated=False)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.second(self.first(x)))


def convolution(
    channels_in: int, channels_out: int, stride: int = 1, edge: int = 3, activated: bool = True
) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(channels_in, channels_out, edge, stride, edge // 2, bias=False),
        nn.BatchNorm2d(channels_out),
    ]
    return nn.Sequential(*layers, *([nn.ReLU(inplace=True)] if activated else []))


class JudgeNetwork(nn.Module):
    """Trunk [b, 3, 64, 64] -> features [b, 8 * width]; head -> logits [b, answers].

    Logits stand in the panel's order: styles, each group's tags, single tags.
    """

    def __init__(self, panel: Panel, width: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            convolution(3, width, stride=2, edge=5),
            convolution(width, 2 * width, stride=2),
            Residual(2 * width),
            convolution(2 * width, 4 * width, stride=2),
            Residual(4 * width),
            convolution(4 * width, 8 * width, stride=2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.sizes = [len(panel.styles), *map(len, panel.groups.values()), len(panel.tags)]
        self.head = nn.Linear(8 * width, sum(self.sizes))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.trunk(x)
        return features, self.head(features)

    def split(self, logits: Tensor) -> tuple[Tensor, ...]:
        """Logits of the styles, of each group, and of the single tags."""
        return torch.split(logits, self.sizes, dim=1)


def fresh_network(panel: Panel, width: int, seed: int) -> JudgeNetwork:
    """A network with random weights, laid out channels last: a third faster on CPUs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = JudgeNetwork(panel, width)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def network_of(panel: Panel, width: int, weights: Mapping[str, Tensor]) -> JudgeNetwork:
    """A network of these weights, laid out in the same way. Raises ValueError or RuntimeError for any that
    are not its own, before there is memory for them."""
    if not any((panel.styles, *panel.groups.values(), panel.tags)):
        raise ValueError("a judge without answers")
    with torch.device("meta"):
        network = JudgeNetwork(panel, width)
    for name, like in network.state_dict().items():
        own = weights.get(name)
        if own is None or (own.shape, own.dtype) != (like.shape, like.dtype) or not is_finite(own):
            raise ValueError(f"{name} should be {list(like.shape)}, finite")
    network.load_state_dict(weights, assign=True)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def normalised(pictures: Tensor) -> Tensor:
    """[b, 3, 64, 64] in 0..1 -> what the trunk expects, channels last."""
    return ((pictures - 0.5) * 4.0).contiguous(memory_format=torch.channels_last)


def verdicts(panel: Panel, network: JudgeNetwork, logits: Tensor) -> list[Verdict]:
    """The most likely answers, one verdict a row."""
    styles, *groups, tags = network.split(logits)
    named_styles = _named(styles, panel.styles)
    named = [_named(group, options) for group, options in zip(groups, panel.groups.values(), strict=True)]
    present, chances = (tags > 0).tolist(), styles.softmax(1).tolist()
    return [
        Verdict(
            style=named_styles[row],
            choices={group: column[row] for group, column in zip(panel.groups, named, strict=True)},
            present=dict(zip(panel.tags, present[row], strict=True)),
            chances=dict(zip(panel.styles, chances[row], strict=True)),
        )
        for row in range(len(logits))
    ]


def _named(logits: Tensor, names: tuple[str, ...]) -> list[str]:
    return [names[index] for index in logits.argmax(1).tolist()] if names else [""] * len(logits)


def loss(network: JudgeNetwork, logits: Tensor, choices: Tensor, present: Tensor, rarity: Tensor) -> Tensor:
    """The sum of each question's mean cross-entropy over the pictures that answer it.

    `choices` int64 [b, 1 + groups] and `present` float [b, tags]; -1 stands for "doesn't answer".
    `rarity` [2, tags] weighs absence and presence, so that a rare tag isn't answered by "never".
    """
    styles, *groups, tags = network.split(logits)
    total = logits.sum() * 0.0
    for column, group in enumerate((styles, *groups)):
        asked = choices[:, column]
        answered = (asked >= 0).sum().clamp(min=1)
        total = total + functional.cross_entropy(group, asked, ignore_index=-1, reduction="sum") / answered
    weight = torch.where(present > 0.5, rarity[1], rarity[0]) * (present >= 0)
    each = functional.binary_cross_entropy_with_logits(tags, present.clamp(min=0), reduction="none")
    return total + ((each * weight).sum(0) / weight.sum(0).clamp(min=1e-6)).sum()
