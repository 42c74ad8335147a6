"""Preparing beyond one machine: pictures are hashed, cut and encoded by the workers of a Ray cluster.

Ray Data hands out the jobs and gives the results back in their order, so that the artifact is, to the byte,
the one that threads make (of latents only as far as all machines compute alike). Workers read pictures and
write cut ones where this process would: folders lie on a file system that all share.
"""

from __future__ import annotations

import pickle
import socket
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from aid.core.artifact import Inputs
from aid.errors import SettingsError

I = TypeVar("I", bound=Inputs)  # noqa: E741
T = TypeVar("T")
R = TypeVar("R")
CONNECT_SECONDS = 5


def connected(address: str) -> Any:
    """Ray, joined to the cluster at `address`, to one that is found (`auto`) or to this machine (`local`)."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise SettingsError(
            f"--ray is given, and Ray isn't installed ({error})", "it", 'pip install "ray[data]"'
        ) from error
    if not ray.is_initialized():
        try:
            _knock(address)
            ray.init(address=address, log_to_driver=False, include_dashboard=False)
        except (OSError, OverflowError, ValueError, RuntimeError) as error:
            raise SettingsError(
                f"no Ray cluster at {address} ({error})", "auto, local or HOST:PORT"
            ) from error
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    return ray


def _knock(address: str) -> None:
    """Raises OSError where nobody listens: Ray itself would try for many minutes."""
    host, _, port = address.rpartition(":")
    if port.isdecimal():
        socket.create_connection((host.rpartition("/")[2], int(port)), CONNECT_SECONDS).close()


def in_order(work: Callable[[T], R], jobs: Iterable[T], address: str) -> Iterator[R]:
    """`work` over `jobs` on the cluster; results in the jobs' order. An error of a job is raised here."""
    ray = connected(address)
    rows = [{"job": pickle.dumps(job)} for job in jobs]
    for row in ray.data.from_items(rows).map(Worked(work)).iter_rows() if rows else ():
        yield opened(row)


def absolute(inputs: I) -> I:
    """Inputs with paths that mean the same to a process at work elsewhere."""

    def told(value: Any) -> Any:
        if isinstance(value, Path):
            return value.absolute()
        return {name: told(one) for name, one in value.items()} if isinstance(value, dict) else value

    return inputs.model_copy(update={name: told(value) for name, value in inputs})


class Worked:
    """A job's result, or its error, in bytes."""

    def __init__(self, work: Callable[[Any], Any]) -> None:
        self.work = work

    def __call__(self, row: dict[str, bytes]) -> dict[str, bytes]:
        try:
            return {"done": pickle.dumps((self.work(pickle.loads(row["job"])), None))}
        except Exception as error:
            return {"done": pickle.dumps((None, error))}


def opened(row: dict[str, bytes]) -> Any:
    result, error = pickle.loads(row["done"])
    if error is not None:
        raise error
    return result
