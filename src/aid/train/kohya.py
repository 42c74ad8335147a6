"""What a LoRA says about its training, in kohya's and ModelSpec's words. No times: the same run gives the
same bytes."""

from __future__ import annotations

from aid.core.dataset import count_tags
from aid.sd.file.hashes import hash_file
from aid.sd.model.architecture import Architecture
from aid.sd.model.checkpoint import StableDiffusion, resolve_checkpoint
from aid.sd.model.metadata import ModelSpec, Training, architecture_name, base_version
from aid.train.settings import LoraSettings
from aid.train.step.plan import Plan


def lora_metadata(
    model: StableDiffusion, plan: Plan, settings: LoraSettings, name: str, done: int
) -> dict[str, str]:
    """`ss_*` and `modelspec.*` of a file of that name, after so many steps, but for the hashes of the file
    itself and what `base_words` tells."""
    return {
        **model_spec(model.architecture, plan, settings, name).written(),
        **training_words(model, plan, settings, name, done),
    }


def model_spec(architecture: Architecture, plan: Plan, settings: LoraSettings, name: str) -> ModelSpec:
    return ModelSpec(
        architecture=f"{architecture_name(architecture)}/lora",
        title=name,
        resolution=max(plan.order.sizes, key=lambda size: size[0] * size[1]),
        tags=tuple(plan.dataset.styles()),
        prediction_type=architecture.prediction,
        encoder_layer=settings.clip_skip if architecture.has_clip_skip else None,
    )


def training_words(
    model: StableDiffusion, plan: Plan, settings: LoraSettings, name: str, done: int
) -> dict[str, str]:
    """How it was trained, in the fields that tools read."""
    trained = plan.dataset.split("train")
    pyramid = {
        "multires_noise_iterations": settings.pyramid_levels,
        "multires_noise_discount": settings.pyramid_discount,
    }
    told = Training(
        output_name=name,
        base_model_version=base_version(model.architecture),
        v2=model.architecture.family == "sd2",
        network_module="networks.lora",
        network_dim=settings.rank,
        network_alpha=settings.alpha,
        network_args=network_arguments(settings),
        learning_rate=settings.unet_rate,
        unet_lr=settings.unet_rate,
        text_encoder_lr=settings.text_rate,
        optimizer=settings.optimiser,
        lr_scheduler=settings.schedule,
        lr_warmup_steps=settings.warmup,
        max_grad_norm=settings.gradient_norm,
        num_train_images=plan.pictures,
        num_reg_images=sum(record.regularisation for record in trained),
        num_batches_per_epoch=plan.order.steps_per_epoch,
        num_epochs=-(-plan.steps // plan.order.steps_per_epoch),
        steps=done,
        max_train_steps=plan.steps,
        total_batch_size=settings.batch_size,
        gradient_checkpointing=settings.checkpointing,
        mixed_precision="bf16" if settings.precision == "bf16" else "no",
        cache_latents=True,
        clip_skip=settings.clip_skip if model.architecture.has_clip_skip else None,
        max_token_length=75 * settings.caption.windows,
        seed=settings.seed,
        noise_offset=settings.noise_offset or None,
        zero_terminal_snr=model.architecture.zero_terminal_snr,
        min_snr_gamma=settings.snr_gamma if settings.weighting == "min_snr" else None,
        debiased_estimation=settings.weighting == "debiased",
        loss_type=settings.distance,
        prior_loss_weight=settings.regularisation_weight,
        caption_dropout_rate=settings.caption.dropout,
        caption_tag_dropout_rate=settings.caption.tag_dropout,
        keep_tokens=settings.caption.keep,
        shuffle_caption=settings.caption.shuffle,
        tag_frequency={"dataset": count_tags(trained)},
        **(pyramid if settings.pyramid_levels else {}),
    )
    return told.written()


def base_words(model: StableDiffusion) -> dict[str, str]:
    """Name and hashes of the checkpoint that it was trained on, as `ss_*`."""
    if model.path is None or not model.path.is_file():
        return {}
    path = resolve_checkpoint(model.path)
    found = hash_file(path)
    told = Training(sd_model_name=path.name, sd_model_hash=found.autov1, new_sd_model_hash=found.sha256)
    return told.written()


def network_arguments(settings: LoraSettings) -> dict[str, str]:
    if not settings.conv_rank:
        return {}
    return {"conv_dim": str(settings.conv_rank), "conv_alpha": str(settings.conv_alpha)}
