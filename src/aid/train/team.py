"""Processes that train one model together: each computes its share of every batch, gradients are summed, and
the leader alone writes.

accelerate starts them, on one machine or many (`accelerate launch`, `torchrun`), and joins them: NCCL between
GPUs, gloo between CPUs. Sharded (`accelerate launch --use_fsdp`), U-Net, gradients and moments are shared out
among them by torch's fully_shard (FSDP2), which accelerate itself would only do for GPUs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, TypeVar

import torch
from torch import Tensor

from aid.core.workbench import Workbench
from aid.errors import SettingsError
from aid.sd.model.checkpoint import StableDiffusion, with_unet
from aid.train.optimiser.fused import norm_of
from aid.train.step.plan import Step

T = TypeVar("T")
BUCKET_NUMBERS = 1 << 24  # gradients summed in one message: 64 MiB of float32


@dataclass(frozen=True)
class Team:
    """This process among those that train together; alone by default."""

    rank: int = 0
    size: int = 1
    sharded: bool = False

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        """Until all have come here."""
        if self.size > 1:
            torch.distributed.barrier()

    def share(self, step: Step) -> Step:
        """This process's rows of a step: as many as any other's, those beyond the last without weight."""
        if self.size == 1:
            return step
        count, draws = -(-len(step.records) // self.size), len(step.noised.t) // len(step.records)
        own = range(self.rank * count, (self.rank + 1) * count)
        rows = [row if row < len(step.records) else 0 for row in own]
        real = torch.tensor([row < len(step.records) for row in own])
        return replace(
            step,
            records=tuple(step.records[row] for row in rows),
            captions=tuple(step.captions[row] for row in rows),
            noised=step.noised.rows([row * draws + draw for row in rows for draw in range(draws)]),
            weights=step.weights[rows] * real,
            beside=tuple(map(self.share, step.beside)),
        )

    def led(self, value: T) -> T:
        """The leader's value, which all then go by: another card may round otherwise."""
        values = [value]
        if self.size > 1:
            torch.distributed.broadcast_object_list(values)
        return values[0]

    def gathered(self, values: Sequence[T]) -> list[T]:
        """Those of all processes, the first's before the second's; all must ask at once."""
        if self.size == 1:
            return list(values)
        found: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(found, list(values))
        return [value for one in found for value in one]

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            torch.distributed.all_reduce(value)
        return value

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Over all processes; those of sharded weights are summed already, while the backward pass runs."""
        if self.size == 1:
            return
        gradients = [one.grad for one in parameters if one.grad is not None and not is_sharded(one)]
        for bucket in buckets(gradients, BUCKET_NUMBERS):
            flat = self.sum(torch.cat([gradient.flatten() for gradient in bucket]))
            pieces = torch.split(flat, [gradient.numel() for gradient in bucket])
            for gradient, piece in zip(bucket, pieces, strict=True):
                gradient.copy_(piece.view(gradient.shape))

    def norm(self, parameters: Sequence[Tensor]) -> Tensor:
        """Of all gradients."""
        gradients = [one.grad for one in parameters if one.grad is not None]
        if not self.sharded:
            return norm_of(gradients)
        spread, whole = (
            [local(one) for one in gradients if is_sharded(one) is side] for side in (True, False)
        )
        square = self.sum(torch.nn.utils.get_total_norm(spread).square())
        return (square + torch.nn.utils.get_total_norm(whole).square()).sqrt()

    def scale(self, parameters: Iterable[Tensor], factor: float) -> None:
        """Multiply all gradients."""
        torch._foreach_mul_([local(one.grad) for one in parameters if one.grad is not None], factor)

    def spread(self, model: StableDiffusion) -> None:
        """Share out the U-Net, block by block."""
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh, unet = init_device_mesh(model.device.type, (self.size,)), model.unet
        for module in (*unet.down_blocks, unet.mid_block, *unet.up_blocks, unet):
            shared = fully_shard(
                module, mesh=mesh, reshard_after_forward=True
            )  # also where styles are measured
            shared.set_gradient_divide_factor(1.0)
            shared.set_force_sum_reduction_for_comms(True)  # gloo knows no other

    def whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors put together from their shards, in the memory of the CPU; all must ask at once."""
        if not self.sharded:
            return dict(tensors)
        return {name: full(tensor) for name, tensor in tensors.items()}

    def whole_model(self, model: StableDiffusion) -> StableDiffusion:
        """A model that can be used by one process alone; all must ask at once."""
        if not self.sharded:
            return model
        whole = with_unet(model, self.whole(model.unet.state_dict()))
        if self.leads:
            whole.unet.to(next(model.text_encoder.parameters()).device)
        return whole


ALONE = Team()


def join(bench: Workbench) -> Team:
    """The team of a bench's processes; waits for all. Raises SettingsError where accelerate is missing."""
    if bench.ranks == 1:
        return ALONE
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise SettingsError(
            f"{bench.ranks} processes are to train together, and accelerate isn't installed ({error})",
            "an installed library",
            "pip install accelerate",
        ) from error
    own = torch.cuda.current_device() if torch.cuda.is_available() else None
    PartialState(cpu=bench.device == "cpu" or own is None)
    if own is not None:
        torch.cuda.set_device(own)  # which `torch_device` has chosen
    return Team(bench.rank, bench.ranks, bench.sharded)


def buckets(tensors: Iterable[Tensor], most: int) -> Iterator[list[Tensor]]:
    """Neighbours of one type together, until they have `most` numbers."""
    for _, alike in groupby(tensors, lambda tensor: tensor.dtype):
        bucket: list[Tensor] = []
        for tensor in alike:
            bucket.append(tensor)
            if sum(one.numel() for one in bucket) >= most:
                yield bucket
                bucket = []
        if bucket:
            yield bucket


def is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "device_mesh")


def local(tensor: Any) -> Tensor:
    """This process's shard, or the tensor itself."""
    own: Tensor = tensor.to_local() if is_sharded(tensor) else tensor
    return own


def full(tensor: Any) -> Tensor:
    whole: Tensor = tensor.full_tensor() if is_sharded(tensor) else tensor
    return whole.detach().cpu()
