# pyright: standard, reportPrivateImportUsage=false
"""Vision encoders (DINO, DINOv2, CLIP) from a folder or the hub, and their preprocessing."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pinxit.errors import PinxitError, RequestError
from pinxit.evaluation.metric import Images, Metric
from pinxit.evaluation.networks import network_folder, require_networks
from pinxit.models.source import FolderSource, read_json
from pinxit.pocket.tokenizer import vocabulary

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

_VOCABULARY = Path(__file__).parents[1] / "models" / "layouts" / "clip"
_BATCH = 32
# By `model_type` of a config: the class, and parts of it that are not needed.
_NETWORKS: dict[str, tuple[type, dict[str, bool]]] = {
    "vit": (transformers.ViTModel, {"add_pooling_layer": False}),
    "dinov2": (transformers.Dinov2Model, {}),
    "clip": (transformers.CLIPModel, {}),
}


@dataclass(frozen=True)
class Preprocessing:
    """Preprocessing of images: short side resized to `short`, centre crop, normalization."""

    short: int
    side: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, images: Images) -> Tensor:
        """Images of any sizes as one tensor (N, 3, side, side)."""
        if not images:
            raise RequestError("there are no images to score", "give at least one")
        return torch.stack([self._tensor(image.convert("RGB")) for image in images])

    def _tensor(self, image: Image.Image) -> Tensor:
        width, height = (int(self.short * side / min(image.size)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - self.side) // 2, (height - self.side) // 2
        square = image.crop((left, top, left + self.side, top + self.side))
        pixels = torch.from_numpy(np.array(square, dtype=np.float32)) / 255
        pixels = (pixels - torch.tensor(self.mean)) / torch.tensor(self.std)
        return pixels.permute(2, 0, 1)


# Mean and standard deviation of the training data: ImageNet, and CLIP's images.
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


class VisionEncoder:
    """A network that encodes images, and CLIP also texts, as vectors of length 1."""

    def __init__(self, weights: str) -> None:
        require_networks([weights])
        folder = network_folder(weights)
        assert folder
        config: dict[str, Any] = cast("dict[str, Any]", read_json(folder / "config.json"))
        network_class, options = _NETWORKS.get(str(config.get("model_type")), (None, {}))
        if network_class is None:
            raise RequestError(
                f"{weights} is a network of the type {config.get('model_type')}",
                f"images are scored by one of these types: {', '.join(_NETWORKS)}",
            )
        self.network: Any = _load_network(network_class, config, folder, weights, options)
        self.folder = folder
        clip = network_class is transformers.CLIPModel
        vision: dict[str, Any] = config.get("vision_config", {}) if clip else config
        side = int(vision.get("image_size", 224))
        # DINOv2 was trained at 518 pixels, but 224 is usual for comparisons.
        side = min(side, 224) if network_class is transformers.Dinov2Model else side
        short = side if clip else round(side * 256 / 224)
        self.preprocess = Preprocessing(short, side, *(_CLIP if clip else _IMAGENET))
        self.has_text_encoder = clip

    @torch.no_grad()
    def encode_images(self, images: Images) -> Tensor:
        """A vector of length 1 for each image, (N, width)."""
        batches = self.preprocess(images).split(_BATCH)
        return F.normalize(torch.cat([self._embed(pixels) for pixels in batches]), dim=1)

    @torch.no_grad()
    def encode_texts(self, prompts: Sequence[str]) -> Tensor:
        """A vector of length 1 for each text, (N, width); long texts are truncated."""
        max_length = self.network.config.text_config.max_position_embeddings
        tokens = self._tokenizer(
            list(prompts), padding=True, truncation=True, max_length=max_length, return_tensors="pt"
        )
        output = self.network.text_model(**tokens)
        return F.normalize(self.network.text_projection(output.pooler_output), dim=1)

    @cached_property
    def _tokenizer(self) -> Any:
        """A tokenizer with the folder's vocabulary, or CLIP's if it has none."""
        source = self.folder if (self.folder / "merges.txt").is_file() else _VOCABULARY
        lines = (source / "merges.txt").read_text(encoding="utf-8").splitlines()
        merges = [(a, b) for a, b in (line.split(" ") for line in lines[1:] if line)]
        return transformers.CLIPTokenizer(vocab=vocabulary(merges), merges=cast("Any", merges))

    def _embed(self, pixels: Tensor) -> Tensor:
        if self.has_text_encoder:
            pooled = self.network.vision_model(pixel_values=pixels).pooler_output
            return self.network.visual_projection(pooled)
        return self.network(pixels).last_hidden_state[:, 0]


@dataclass(frozen=True)
class ReferenceSimilarity(Metric):
    """Mean cosine to the references (arXiv:2208.12242); `weights` is a hub id or a folder."""

    better = "more"
    weights: str

    def score(self, images: Images, references: Images, prompts: Sequence[str] = ()) -> list[float]:  # noqa: ARG002
        """A mean cosine for each image, at most 1."""
        encode = vision_encoder(self.weights).encode_images
        return (encode(images) @ encode(references).T).mean(1).tolist()


@cache
def vision_encoder(weights: str) -> VisionEncoder:
    """The network of a hub id or folder, loaded once."""
    return VisionEncoder(weights)


def _load_network(
    network_class: Any, config: dict[str, Any], folder: Path, name: str, options: dict[str, bool]
) -> Any:
    """The network with its weights, which are read without running code from the file."""
    source = FolderSource(folder, name, ("vision",))
    try:
        network = network_class.from_pretrained(
            None,
            config=network_class.config_class.from_dict(config),
            state_dict=source.weights("vision"),
            **options,
        )
    except (PinxitError, ValueError, RuntimeError, TypeError, KeyError) as error:
        raise RequestError(
            f"{name} cannot be loaded: {str(error).splitlines()[0]}", "download it again"
        ) from error
    return network.float().eval().requires_grad_(False)
