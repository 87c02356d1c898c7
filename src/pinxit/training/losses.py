"""The weighted denoising loss of each sample, for every family and method."""

from dataclasses import replace

import torch
from torch import Tensor

from pinxit.adapters.adapter import before_denoise
from pinxit.models.model import Model
from pinxit.training.batches import Batch
from pinxit.training.memory_trial import Conditioner


def denoising_losses(
    model: Model, batch: Batch, conditioner: Conditioner, min_snr_gamma: float | None = None
) -> Tensor:
    """The weighted denoising loss of each sample, (B,), for any family and method."""
    before_denoise(model, batch.timesteps, batch.concepts)
    schedule = model.schedule
    noisy = schedule.add_noise(batch.latents, batch.noise, batch.timesteps)
    prediction = model.denoise(noisy, batch.timesteps, conditioner(batch.prompts))
    target = schedule.target(batch.latents, batch.noise, batch.timesteps)
    if batch.answers is not None:
        target = torch.where(batch.answers.isnan(), target, batch.answers)
    losses = _masked_mean((prediction - target).square(), batch.mask)
    return losses * batch.weights * schedule.loss_weight(batch.timesteps, min_snr_gamma)


def _masked_mean(errors: Tensor, mask: Tensor | None) -> Tensor:
    """The mean error of each sample, (B,), over the whole image or where the mask is set."""
    if mask is None:
        return errors.mean(dim=(1, 2, 3))
    return (errors.mean(dim=1, keepdim=True) * mask).sum(dim=(1, 2, 3)) / mask.sum(dim=(1, 2, 3))


def padded_losses(
    min_snr_gamma: float | None, model: Model, batch: Batch, conditioner: Conditioner
) -> Tensor:
    """The losses with the whole padding of each prompt, as the most memory that they can need.

    A dry pass has no values, so it does not know which tokens a mask of a prompt leaves out.
    """
    padded = replace(conditioner(batch.prompts), mask=None)
    return denoising_losses(model, batch, lambda _: padded, min_snr_gamma)
