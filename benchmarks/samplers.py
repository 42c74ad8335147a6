"""Our samplers beside k-diffusion's, on the starter's U-Net with the same noise: the largest difference of
the final latents, relative to their spread. The limit is 1e-5.

    pip install scipy && pip install --no-deps k-diffusion torchdiffeq torchsde trampoline
    python benchmarks/samplers.py [--json FILE] [--record tests/sd/sampling/k_diffusion.json]

`--record` writes what k-diffusion gives on a denoiser in closed form, for tests that run without it.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import sys
import types
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from reporting import Row, report
from torch import Tensor

from aid.sd.sampling.course import Course, noise_for, plan_course
from aid.sd.sampling.noise import input_scale, levels, to_denoised
from aid.sd.sampling.random import PictureNoise
from aid.sd.sampling.samplers import SAMPLERS, TRAITS, Denoise

REPOSITORY = Path(__file__).parents[1]
STARTER = REPOSITORY / "src/aid/starter/release/model.safetensors"
LIMIT = 1e-5
STEPS = (20, 32, 40)
PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    "Euler a": ("sample_euler_ancestral", {}),
    "Euler": ("sample_euler", {}),
    "Heun": ("sample_heun", {}),
    "DPM2": ("sample_dpm_2", {}),
    "DPM2 a": ("sample_dpm_2_ancestral", {}),
    "DPM++ 2S a": ("sample_dpmpp_2s_ancestral", {}),
    "DPM++ 2M": ("sample_dpmpp_2m", {}),
    "DPM++ SDE": ("sample_dpmpp_sde", {}),
    "DPM++ 2M SDE": ("sample_dpmpp_2m_sde", {}),
    "DPM++ 2M SDE Heun": ("sample_dpmpp_2m_sde", {"solver_type": "heun"}),
    "DPM++ 3M SDE": ("sample_dpmpp_3m_sde", {}),
    "LMS": ("sample_lms", {}),
}
VARIANTS: list[tuple[str, dict[str, float]]] = [
    ("Euler", {"s_churn": 8.0, "s_tmin": 0.1, "s_tmax": 5.0, "s_noise": 1.01}),
    ("Heun", {"s_churn": 8.0}),
    ("DPM2", {"s_churn": 8.0}),
    ("Euler a", {"eta": 0.5, "s_noise": 0.9}),
    ("DPM2 a", {"eta": 0.0}),
    ("DPM++ 2S a", {"eta": 0.5}),
    ("DPM++ SDE", {"eta": 0.5, "r": 0.4}),
    ("DPM++ 2M SDE", {"eta": 0.0}),
    ("DPM++ 3M SDE", {"eta": 0.5}),
    ("LMS", {"order": 2}),
]


def import_peer() -> types.ModuleType:
    """k-diffusion's sampling module alone: the package would import torchvision, CLIP and wandb."""
    spec = importlib.util.find_spec("k_diffusion")
    if spec is None or spec.submodule_search_locations is None:
        raise SystemExit("k-diffusion is not installed. " + (__doc__ or "").split("\n\n")[1].strip())
    package, tools = types.ModuleType("k_diffusion"), types.ModuleType("k_diffusion.utils")
    package.__path__ = list(spec.submodule_search_locations)
    tools.append_dims = lambda x, ndim: x[(..., *[None] * (ndim - x.ndim))]  # type: ignore[attr-defined]
    package.utils = tools  # type: ignore[attr-defined]
    sys.modules |= {"k_diffusion": package, "k_diffusion.utils": tools}
    warnings.filterwarnings("ignore", module="torchsde")  # σ outside the tree by one rounding
    return importlib.import_module("k_diffusion.sampling")


def run_ours(
    name: str, denoise: Denoise, course: Course, seeds: Sequence[int], shape: tuple[int, ...]
) -> Tensor:
    noise = PictureNoise(seeds, shape)
    x = course.start(noise())
    return SAMPLERS[name](denoise, x, course.sigmas, noise_for(name, course, noise), lambda: None)


def run_peer(
    peer: types.ModuleType,
    name: str,
    denoise: Denoise,
    course: Course,
    seeds: Sequence[int],
    shape: tuple[int, ...],
    **own: float,
) -> Tensor:
    """k-diffusion as A1111 runs it: one generator a picture, and one Brownian tree a picture. It computes in
    the precision of the course."""
    function, options = PEERS[name]
    dtype = course.sigmas.dtype
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def draw(*_: object) -> Tensor:
        return torch.stack([torch.randn(shape, generator=one, dtype=dtype) for one in generators])

    x = draw() * course.sigmas[0]
    options = {**options, **own}
    if TRAITS[name].eta is not None:
        tree = peer.BrownianTreeNoiseSampler(x, course.lowest, course.highest, seed=list(seeds))
        options["noise_sampler"] = tree if TRAITS[name].brownian else draw
    peer.torch.randn_like, kept = draw, torch.randn_like
    try:
        latent: Tensor = getattr(peer, function)(denoise, x, course.sigmas, disable=True, **options)
    finally:
        torch.randn_like = kept
    return latent


def starter_denoiser() -> Denoise:
    """The starter's U-Net with a prompt of its own, unguided."""
    from aid.sd.model.checkpoint import load_checkpoint
    from aid.sd.prompt.text import encode_prompts

    model = load_checkpoint(STARTER)
    encoded = encode_prompts(model, ["by lorelei, blue hair, smile"])
    context = getattr(encoded, "context", encoded)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        level = sigma.reshape(-1)[0]
        t = levels().sigma_to_t(level)
        noise = model.unet(x * input_scale(level), t, context.expand(len(x), -1, -1), return_dict=False)[0]
        return to_denoised("epsilon", x, noise, level)

    return denoise


@torch.inference_mode()
def measure(peer: types.ModuleType, denoise: Denoise) -> list[Row]:
    rows = []
    for name in PEERS:
        for steps in STEPS:
            course = plan_course(name, "Automatic", steps, levels())
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                theirs = run_peer(peer, name, denoise, course, [7], (4, 8, 8))
            ours = run_ours(name, denoise, course, [7], (4, 8, 8))
            difference = ((ours - theirs).abs().max() / theirs.std()).item()
            rows.append(Row(f"{name}, {steps} steps", difference, "1", limit=LIMIT))
            print(rows[-1].name, f"{difference:.2g}", file=sys.stderr, flush=True)
    return rows


def record(peer: types.ModuleType) -> dict[str, Any]:
    """k-diffusion on the mixture: final latents and Brownian noise, in float64; its schedules; quantiles
    of scipy."""
    from scipy import stats

    sys.path.append(str(REPOSITORY / "tests/sd/sampling"))
    from sampler_problem import SEEDS, SHAPE, exact_course, mixture

    def final(name: str, steps: int, **own: float) -> list[float]:
        latent = run_peer(peer, name, mixture, exact_course(steps), SEEDS, SHAPE, **own)
        return [float(value) for value in latent.flatten()]

    low, high = levels().sigma_min, levels().sigma_max
    ends = {"sigma_min": low, "sigma_max": high}
    schedules: dict[str, Callable[..., Tensor]] = {
        "Karras": peer.get_sigmas_karras,
        "Exponential": peer.get_sigmas_exponential,
        "Polyexponential": peer.get_sigmas_polyexponential,
    }
    at = [(low, high), (10.0, 14.0), (1.0, 10.0), (0.5, 1.0), (0.1, 0.100003), (2.0, 3.0)]
    exact = {"dtype": torch.float64}
    tree = peer.BrownianTreeNoiseSampler(torch.zeros(2, 4, **exact), low, high, seed=[1, 2**40])
    return {
        "latents": {name: {str(steps): final(name, steps) for steps in STEPS} for name in PEERS},
        "variants": [[name, own, final(name, 20, **own)] for name, own in VARIANTS],
        "schedules": {name: make(20, **ends).tolist() for name, make in schedules.items()},
        "polyexponential_rho_2": peer.get_sigmas_polyexponential(12, **ends, rho=2.0).tolist(),
        "brownian": [[*ends, tree(*torch.tensor(ends[::-1], **exact)).tolist()] for ends in at],
        "beta": [[a, b, p, float(stats.beta.ppf(p, a, b))] for a, b, p in _beta_cases()],
    }


def _beta_cases() -> list[tuple[float, float, float]]:
    shares = (0.001, 0.05, 0.3, 0.5, 0.77, 0.95, 0.999)
    return [(a, b, p) for a, b in ((0.6, 0.6), (0.5, 0.8), (2.0, 1.0)) for p in shares]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--record", type=Path)
    arguments = parser.parse_args()
    peer = import_peer()
    if arguments.record:
        arguments.record.write_text(json.dumps(record(peer)) + "\n")
    else:
        report(measure(peer, starter_denoiser()), arguments.json)


if __name__ == "__main__":
    main()
