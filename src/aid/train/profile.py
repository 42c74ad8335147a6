"""What fits a GPU's memory, by name: settings of full fine-tuning that trade exactness and time for memory.

Made for SD1.5's or SD2's U-Net and text encoder at 512 px and for SDXL's at 1024 px, batches of 4, on `40gb`
of 8, on `80gb` of 32 and on `sdxl-24gb` of 1; `aid make --dry-run` tells what a run would take.
"""

from __future__ import annotations

from typing import Any, Literal

Profile = Literal["12gb", "16gb", "24gb", "40gb", "80gb", "sdxl-24gb", "sdxl-40gb", "sdxl-80gb"]

SMALL = {"precision": "bf16", "optimiser": "adamw_bf16", "checkpointing": True}
LARGE = {"precision": "bf16", "optimiser": "adamw", "checkpointing": False}
PROFILES: dict[Profile, dict[str, Any]] = {
    "12gb": {**SMALL, "fused_backward": True, "gradient_norm": 0.0},
    "16gb": SMALL,
    "24gb": {**LARGE, "checkpointing": True},
    "40gb": LARGE,
    "80gb": LARGE,
    "sdxl-24gb": {**SMALL, "fused_backward": True, "gradient_norm": 0.0, "ema": 0.0},
    "sdxl-40gb": {**SMALL, "part_size": 1},
    "sdxl-80gb": {**SMALL, "checkpointing": False},
}
