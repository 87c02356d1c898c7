# pyright: standard, reportPrivateImportUsage=false
"""Networks that look at photographs, by hub id or from a folder, and what they are shown."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import transformers
from torch import Tensor
from torch.nn import functional as F

from pinxit.errors import ModelError, PinxitError, RequestError
from pinxit.evaluation.metric import Metric
from pinxit.models import hub
from pinxit.models.source import read_json, read_weights, weight_files
from pinxit.pocket.tokenizer import vocabulary

if TYPE_CHECKING:
    from PIL.Image import Image

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

_VOCABULARY = Path(__file__).parents[1] / "models" / "layouts" / "clip"
_BATCH = 32
# The only classes that a folder's settings can choose, and what each makes no use of.
_KINDS: dict[str, tuple[type, dict[str, bool]]] = {
    "vit": (transformers.ViTModel, {"add_pooling_layer": False}),
    "dinov2": (transformers.Dinov2Model, {}),
    "clip": (transformers.CLIPModel, {}),
}


@dataclass(frozen=True)
class Preparation:
    """How a network wants its pictures: the short side scaled, the middle cut out, normalised."""

    short: int
    side: int
    mean: tuple[float, float, float]
    spread: tuple[float, float, float]

    def __call__(self, images: Sequence["Image"]) -> Tensor:
        """Pictures of any sizes as one tensor (N, 3, side, side)."""
        if not images:
            raise RequestError("there is no picture to look at", "give at least one")
        return torch.stack([self._one(image.convert("RGB")) for image in images])

    def _one(self, image: "Image") -> Tensor:
        from PIL import Image

        width, height = (int(self.short * side / min(image.size)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - self.side) // 2, (height - self.side) // 2
        cut = image.crop((left, top, left + self.side, top + self.side))
        pixels = torch.from_numpy(np.array(cut, dtype=np.float32)) / 255
        pixels = (pixels - torch.tensor(self.mean)) / torch.tensor(self.spread)
        return pixels.permute(2, 0, 1)


# What each was trained on: ImageNet's colours, or those of CLIP's own pictures.
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


class Onlooker:
    """A network of a known kind: pictures, and with CLIP texts, to vectors of length one."""

    def __init__(self, weights: str) -> None:
        folder = _found(weights)
        config: dict[str, Any] = cast("dict[str, Any]", read_json(folder / "config.json"))
        kind, left_out = _KINDS.get(str(config.get("model_type")), (None, {}))
        if kind is None:
            raise RequestError(
                f"{weights} is a network of the kind {config.get('model_type')}",
                f"pictures are judged by one of: {', '.join(_KINDS)}",
            )
        self.network: Any = _opened(kind, config, folder, weights, left_out)
        self.folder = folder
        clip = kind is transformers.CLIPModel
        seen: dict[str, Any] = config.get("vision_config", {}) if clip else config
        side = int(seen.get("image_size", 224))
        # DINOv2 was trained at 518 and is asked at 224, as everybody does.
        side = min(side, 224) if kind is transformers.Dinov2Model else side
        short = side if clip else round(side * 256 / 224)
        self.prepare = Preparation(short, side, *(_CLIP if clip else _IMAGENET))
        self.reads = clip

    @torch.no_grad()
    def look(self, images: Sequence["Image"]) -> Tensor:
        """A vector (N, width) of length one for each picture."""
        pixels = self.prepare(images)
        return F.normalize(torch.cat([self._seen(part) for part in pixels.split(_BATCH)]), dim=1)

    @torch.no_grad()
    def read(self, prompts: Sequence[str]) -> Tensor:
        """A vector (N, width) of length one for each text; what is too long is cut."""
        longest = self.network.config.text_config.max_position_embeddings
        told = self._tokenizer(
            list(prompts), padding=True, truncation=True, max_length=longest, return_tensors="pt"
        )
        found = self.network.text_model(told["input_ids"], attention_mask=told["attention_mask"])
        return F.normalize(self.network.text_projection(found.pooler_output), dim=1)

    @cached_property
    def _tokenizer(self) -> Any:
        return _tokenizer(self.folder)

    def _seen(self, pixels: Tensor) -> Tensor:
        if self.reads:
            seen = self.network.vision_model(pixel_values=pixels).pooler_output
            return self.network.visual_projection(seen)
        return self.network(pixels).last_hidden_state[:, 0]


@dataclass(frozen=True)
class Alike(Metric):
    """Mean cosine to the references (arXiv:2208.12242) by the network of a hub id or folder."""

    better = "more"
    weights: str

    def score(
        self,
        images: Sequence["Image"],
        references: Sequence["Image"],
        prompts: Sequence[str] = (),  # noqa: ARG002
    ) -> list[float]:
        """A mean cosine for each picture, 1 at best."""
        eyes = onlooker(self.weights)
        return (eyes.look(images) @ eyes.look(references).T).mean(1).tolist()


@cache
def onlooker(weights: str) -> Onlooker:
    """The network of a hub id or folder, opened once."""
    return Onlooker(weights)


def _found(weights: str) -> Path:
    folder = Path(weights).expanduser()
    if not folder.is_dir():
        try:
            folder = hub.fetch(weights)
        except ModelError as trouble:
            raise RequestError(
                f"pictures cannot be judged by {weights}: {trouble.message}",
                "download it once where there is a network, and give its folder",
            ) from trouble
    return folder


def _opened(
    kind: Any, config: dict[str, Any], folder: Path, name: str, left_out: dict[str, bool]
) -> Any:
    """The network with its weights; the class is ours and weights are read without executing."""
    files = weight_files([path.name for path in folder.iterdir()])
    try:
        stored = {
            name: tensor
            for file in files
            if not file.endswith(".json")
            for name, tensor in read_weights(folder / file)[0].items()
        }
        settings = kind.config_class.from_dict(config)
        network = kind.from_pretrained(None, config=settings, state_dict=stored, **left_out)
    except (PinxitError, ValueError, RuntimeError, TypeError, KeyError) as trouble:
        raise RequestError(
            f"{name} cannot be opened: {str(trouble).splitlines()[0]}", "download it again"
        ) from trouble
    return network.float().eval().requires_grad_(False)


def _tokenizer(folder: Path) -> Any:
    """The folder's own vocabulary if it has one, or CLIP's."""
    where = folder if (folder / "merges.txt").is_file() else _VOCABULARY
    lines = (where / "merges.txt").read_text(encoding="utf-8").splitlines()
    merges = [(a, b) for a, b in (line.split(" ") for line in lines[1:] if line)]
    return transformers.CLIPTokenizer(vocab=vocabulary(merges), merges=cast("Any", merges))
