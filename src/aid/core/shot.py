"""A shot: everything that decides one generated picture except the weights."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Shot(BaseModel):
    """One picture to draw. Defaults are the card's: Euler a, 32 steps, clip skip 1."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    prompt: str
    """A1111 syntax."""
    negative_prompt: str = ""
    """A1111 syntax; an embedding is named by its file's stem."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """One generator a picture, on the CPU."""
    steps: int = Field(default=32, ge=1, le=1000)
    """Sampler steps."""
    cfg_scale: float = Field(default=7.0, ge=0, le=100)
    """Classifier-free guidance; 1 leaves the negative prompt out."""
    width: int = Field(default=512, ge=8, le=8192, multiple_of=8)
    """Pixels."""
    height: int = Field(default=512, ge=8, le=8192, multiple_of=8)
    """Pixels."""
    sampler: str = "Euler a"
    """The A1111 name."""
    clip_skip: int = Field(default=1, ge=1, le=12)
    """1 is the last layer."""
    style: str = ""
    """The style it is meant to show, for the judge; empty when unknown."""
    tags: tuple[str, ...] = ()
    """The content it is meant to show, for the judge."""
