"""`aid studio`: draw from a browser, and from what speaks A1111's or OpenAI's language."""

from __future__ import annotations

from typing import Any

import click

from aid.cli.options import collect, options
from aid.cli.verb_command import DEVICE, THREADS, bench
from aid.make import checked
from aid.studio.settings import StudioSettings


def run(device: str, threads: int, **given: Any) -> None:
    """Serve a page to draw from, and A1111's and OpenAI's interfaces for other programs, until Ctrl-C. Models
    stay loaded between requests."""
    settings = checked(StudioSettings, collect(StudioSettings, given), "settings")

    from aid.studio.server import serve

    serve(settings, bench(device, threads))


COMMAND = click.Command(
    "studio", callback=run, help=run.__doc__, params=[*options(StudioSettings), DEVICE, THREADS]
)
