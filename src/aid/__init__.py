"""AID: illustrators' pictures in, a released multi-style Stable Diffusion model out."""

__version__ = "0.1.0"
