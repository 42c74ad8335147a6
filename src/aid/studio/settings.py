"""What the studio can be told."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from aid.core.artifact import Settings
from aid.core.shot import DrawingPrecision


class StudioSettings(Settings):
    """What the studio draws with, and where it is reached."""

    models: tuple[Path, ...] = ()
    """Checkpoint files, releases and diffusers folders, or folders of them; the first draws until another
    is chosen. Left out: the starter that ships with AID."""
    vaes: tuple[Path, ...] = ()
    """VAE files, or folders of them."""
    embeddings: tuple[Path, ...] = ()
    """Files, or folders of embeddings; a release also has its own."""
    loras: tuple[Path, ...] = ()
    """Files, or folders of LoRAs, LoHas, LoKrs and DoRAs."""
    wildcards: Path | None = None
    """A folder of .txt files: `__hair__` is a line of hair.txt."""
    precision: DrawingPrecision = "auto"
    """Of the weights while drawing: `auto` is fp16 on a GPU, where it is quicker and takes half the memory,
    and fp32 on a CPU."""
    batch_size: int = Field(default=8, ge=1, le=256)
    """Pictures of one request that are drawn together."""
    keep_gb: float = Field(default=8.0, ge=0)
    """Of models kept in memory ready to draw, those used last; the one that draws always is."""
    waiting: int = Field(default=32, ge=1)
    """Requests that may wait; further ones are refused (429)."""
    megapixels: float = Field(default=4.2, gt=0)
    """The largest picture that may be asked for; 2048 by 2048 is 4.2."""
    host: str = "127.0.0.1"
    """The address that is listened on; 0.0.0.0 is every one, which lets others in. There are no accounts."""
    port: int = Field(default=7860, ge=0, le=65535)
    """A1111's; 0 takes a free one."""
    names: tuple[str, ...] = ()
    """Further host names by which the studio may be called, such as `studio.local`; others are refused, so
    that no web page can reach it by a name of its own. Any of its IP addresses will do as it is."""
