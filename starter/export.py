"""Write a checkpoint from an unfinished training's newest state, so that a long run can be used midway.

    python starter/export.py runs/base/.base.building INITIAL.safetensors OUT.safetensors

INITIAL is the checkpoint that the training started from. The averaged weights are written as fp16 with where
they come from: settings, data hash, and the steps of this training and of those before it.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

import torch

from aid.core.artifact import under_construction
from aid.core.lineage import METADATA_KEY
from aid.errors import FileError
from aid.sd.file.state import load_state
from aid.sd.model.checkpoint import load_checkpoint, load_vae, save_checkpoint

DECODER = ("decoder.", "post_quant_conv.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("unfinished", type=Path)
    parser.add_argument("initial", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--decoder",
        type=Path,
        help="a VAE trained on with --decoder-only, or a checkpoint: its decoder is taken",
    )
    chosen = parser.parse_args()
    state = load_state(chosen.unfinished)
    if state is None:
        raise FileError(f"{chosen.unfinished} holds no state", "an unfinished training")
    steps, saved = state
    model = load_checkpoint(chosen.initial)
    parameters = [*model.unet.parameters(), *model.text_encoder.parameters()]
    with torch.no_grad():
        for index, parameter in enumerate(parameters):
            parameter.copy_(saved.read(f"average.{index}"))
    if chosen.decoder:
        trained = load_vae(chosen.decoder).state_dict()
        decoder = {name: trained[name] for name in trained if name.startswith(DECODER)}
        model.vae.load_state_dict({**model.vae.state_dict(), **decoder})
    lineage = under_construction(chosen.unfinished)
    earlier = json.loads(model.metadata.get("aid.starter", "{}")).get("steps", 0)
    made = {"steps": earlier + steps, "machine": f"CPU, {platform.machine()}"}
    metadata = {METADATA_KEY: lineage.embedded(), "aid.starter": json.dumps(made, sort_keys=True)}
    save_checkpoint(model, chosen.out, metadata)
    print(f"{chosen.out}: {steps} steps, {chosen.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
