"""Training images as latents: cropped to their aspect-ratio bucket and encoded once."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pinxit.errors import ImageError
from pinxit.images.crop import bucket_for, crop_box, crop_center
from pinxit.images.folder import TrainingImage
from pinxit.images.tensors import to_pixels
from pinxit.models.model import Model
from pinxit.training.encoding_cache import EncodingCache

# Images of one shape are encoded together: at most this many, and this many pixels in all.
_ENCODED_PIXELS = 2**16
_ENCODED_IMAGES = 8


@dataclass(frozen=True)
class EncodedImage:
    """Mean and standard deviation of the latents of an image, and its mask (1, H, W)."""

    mean: Tensor
    std: Tensor
    mask: Tensor | None


def encode_by_shape(
    model: Model, images: Sequence[TrainingImage], resolution: int, cache: EncodingCache
) -> Iterator[dict[int, tuple[EncodedImage, EncodedImage]]]:
    """Images as they are and mirrored, by index, encoded in groups of one shape; on the CPU."""
    groups: dict[torch.Size, dict[int, tuple[Tensor, Tensor | None]]] = {}
    for index, image in enumerate(images):
        pixels, mask = _crop(model, image, resolution)
        group = groups.setdefault(pixels.shape, {})
        group[index] = pixels, mask
        num_pixels = pixels[0, 0].numel()
        if len(group) >= min(_ENCODED_IMAGES, max(1, _ENCODED_PIXELS // num_pixels)):
            yield _encode_group(cache, groups.pop(pixels.shape))
    yield from (_encode_group(cache, group) for group in groups.values())


def _encode_group(
    cache: EncodingCache, group: Mapping[int, tuple[Tensor, Tensor | None]]
) -> dict[int, tuple[EncodedImage, EncodedImage]]:
    pixels = torch.cat([pixels for pixels, _ in group.values()])
    originals, mirrored = cache.encode(pixels), cache.encode(pixels.flip(-1))
    encoded: dict[int, tuple[EncodedImage, EncodedImage]] = {}
    for row, (index, (_, mask)) in enumerate(group.items()):
        mirrored_mask = None if mask is None else mask.flip(-1)
        encoded[index] = (
            EncodedImage(originals.mean[row].cpu(), originals.std[row].cpu(), mask),
            EncodedImage(mirrored.mean[row].cpu(), mirrored.std[row].cpu(), mirrored_mask),
        )
    return encoded


def _crop(model: Model, image: TrainingImage, resolution: int) -> tuple[Tensor, Tensor | None]:
    """Pixels of an image, cropped to its aspect-ratio bucket, and the mask of the latents."""
    pil_image, mask = image.open_with_mask()
    width, height = bucket = bucket_for(pil_image.size, resolution, model.size_multiple)
    center = crop_center(pil_image, bucket, mask)
    pixels = to_pixels(pil_image, width, height, center)
    if mask is None:
        return pixels, None
    latent_size = (width // model.vae_scale_factor, height // model.vae_scale_factor)
    box = crop_box(pil_image.size, bucket, center)
    latent_mask = mask.resize(latent_size, Image.Resampling.BOX, box)
    if not latent_mask.getbbox():
        raise ImageError(
            f"nothing of the mask of {image.path.name} is left in its latents, which are "
            f"{latent_size[0]}x{latent_size[1]}: its white part is too small",
            "make the white part larger, train at a larger --resolution, or use --masks none",
        )
    return pixels, torch.from_numpy(np.asarray(latent_mask, dtype=np.float32) / 255).unsqueeze(0)
