"""What a model's parts cost: FLOPs, and bytes alive, told from a file's header without loading it.

Counted on diffusers' and transformers' modules: FLOPs by torch's counter at each family's widths, and bytes
at SD1's as autograd keeps them (attention without its matrix). Narrower models of the topology scale:
convolutions and linear layers with the square of the width, attention and what is kept with the width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from aid.core.release import MODEL_FILE
from aid.errors import AidError
from aid.sd.file.tensorfile import is_pickle, read_header
from aid.sd.model.architecture import FAMILY_NAMES, REAL, SD1, SD2, SDXL, Architecture, Family
from aid.sd.model.detection import detect
from aid.sd.model.layouts import TEXT_2, TEXT_ROOT, UNET, VAE, modern_key

PASS: dict[Family, tuple[float, float, float]] = {
    "sd1": (3.01e9, 1.655e8, 7.3e3),
    "sd2": (3.99e9, 1.655e8, 7.3e3),
    "sdxl": (5.25e10, 3.636e8, 2.8e3),
}
"""FLOPs of a U-Net pass: of the text once, of each latent cell, and of each pair of cells that attend."""
ENCODE_PIXEL, DECODE_PIXEL = 4.3e6, 9.6e6  # FLOPs of the VAE
TRAINED, RECOMPUTED, FROZEN, DRAWN = 390, 160, 310, 39  # numbers alive a latent cell and U-Net channel
WINDOW = 77  # tokens of a window
WORDS = 49_408  # that a text encoder knows
TEXT_KEPT = 20  # numbers kept a token, channel and layer
ENCODED, DECODED = 5.0, 7.5  # numbers alive a pixel and VAE channel


@dataclass(frozen=True)
class Cost:
    """A model's parameters, and what it costs to use them; SD1's where nothing is known."""

    architecture: Architecture = SD1
    unet: int = 859_520_964
    text: int = 123_060_480
    vae: int = 83_653_863
    text_2: int = 0
    """Those of `text` that are in SDXL's second encoder."""
    note: str = ""
    """What had to be assumed."""

    @property
    def parameters(self) -> int:
        return self.unet + self.text + self.vae

    @property
    def learners(self) -> dict[str, int]:
        """Parameters of each part that can be trained."""
        first = self.text - self.text_2
        return {"unet": self.unet, "text_encoder": first, "text_encoder_2": self.text_2}

    @property
    def words(self) -> int:
        """Parameters of the text encoders' words."""
        return WORDS * sum(width for width, _ in self._text_sizes())

    @property
    def largest(self) -> int:
        """Parameters in one tensor: a text encoder's words."""
        return WORDS * max(width for width, _ in self._text_sizes())

    def unet_flops(self, cells: int) -> float:
        """Of one picture of so many latent cells, forward."""
        once, each, pair = PASS[self.architecture.family]
        real = REAL[self.architecture.family]
        wide = self.architecture.unet_widths[0] / real.unet_widths[0]
        text = self.architecture.context_width / real.context_width
        return once * wide * text + each * wide**2 * cells + pair * wide * cells**2

    def text_flops(self) -> float:
        """Of one window of 77 tokens through every text encoder, forward."""
        sizes = self._text_sizes()
        return float(sum(n * (24 * width**2 * WINDOW + 4 * width * WINDOW**2) for width, n in sizes))

    def _text_sizes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Width and layers of both text encoders; zeros where there is no second."""
        model = self.architecture
        return (model.text_width, model.text_layers), (model.text_2_width, model.text_2_layers)

    def encode_flops(self, pixels: int) -> float:
        return ENCODE_PIXEL * (self.architecture.vae_widths[0] / 128) ** 2 * pixels

    def decode_flops(self, pixels: int) -> float:
        return DECODE_PIXEL * (self.architecture.vae_widths[0] / 128) ** 2 * pixels

    def unet_numbers(self, alive: int, cells: int) -> float:
        """`alive` is one of TRAINED, RECOMPUTED (with checkpointing), FROZEN and DRAWN."""
        return float(alive * cells * self.architecture.unet_widths[0])

    def text_numbers(self) -> float:
        """Kept for the backward pass of one window."""
        return float(TEXT_KEPT * WINDOW * sum(width * layers for width, layers in self._text_sizes()))

    def vae_numbers(self, alive: float, pixels: int) -> float:
        """`alive` is ENCODED or DECODED."""
        return alive * pixels * self.architecture.vae_widths[0]


COSTS: dict[Family, Cost] = {
    "sd1": Cost(),
    "sd2": Cost(SD2, unet=865_910_724, text=340_387_840),
    "sdxl": Cost(SDXL, unet=2_567_463_684, text=817_720_320, text_2=694_659_840),
}
"""Of the released models."""


def read_cost(path: Path, instead: Cost = COSTS["sd1"]) -> Cost:
    """The cost of a checkpoint, from its header, or `instead`, with a note, where there is none yet. SD1's,
    with a note, where the header can't be read."""
    if not path.exists():
        size = FAMILY_NAMES[instead.architecture.family]
        return replace(instead, note=f"{path} is taken to be as large as {size}")
    file = path / MODEL_FILE if path.is_dir() else path
    try:
        if is_pickle(file):
            return Cost(
                note=f"{file.name} tells its sizes only when loaded; it is taken to be as large as SD1"
            )
        header = read_header(file)
        tensors = {modern_key(key): info for key, info in header.tensors.items()}
        shapes = {key: info.shape for key, info in tensors.items()}
        architecture = detect(shapes, header.metadata, str(path))
    except AidError as error:
        return Cost(note=str(error))
    counts = {key: math.prod(info.shape) for key, info in tensors.items() if info.dtype.is_floating_point}
    prefixes = UNET, TEXT_ROOT[architecture.family], VAE, TEXT_2
    unet, text, vae, text_2 = (_under(prefix, counts) for prefix in prefixes)
    return Cost(architecture, unet, text, vae, text_2)


def _under(prefix: str, counts: Mapping[str, int]) -> int:
    return sum(count for key, count in counts.items() if key.startswith(prefix))
