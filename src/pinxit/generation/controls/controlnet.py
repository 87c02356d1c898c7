# pyright: standard, reportPrivateImportUsage=false, reportAttributeAccessIssue=false
"""controlnet: follow an edge, depth or pose image, with weights you give (arXiv:2302.05543)."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from pinxit.adapters.adapter import ModelChange
from pinxit.errors import ModelError, RequestError
from pinxit.files.untrusted import exists, expanded
from pinxit.generation.canny import canny_edges
from pinxit.generation.control import ControlHooks, ImageControl, SamplingContext
from pinxit.models import hub
from pinxit.models.loading import load_network
from pinxit.models.model import Model
from pinxit.models.quantized import dequantized
from pinxit.models.source import FolderSource, read_weights
from pinxit.options import Option

_WEIGHTS_HINT = "give the hub id, folder or file of a ControlNet with --weights"


class ControlNet(ImageControl):
    """A second network reads the source image and adds residuals to each level of the U-Net."""

    weights: str = ""
    """ControlNet: a hub id, a folder or a file"""
    scale: float = Option(1.0, ge=0)
    """scale of the ControlNet's residuals"""
    edges: bool = False
    """give the network the Canny edges of the image instead of the image"""

    def check(self) -> None:
        """The image must be one, and weights must be given."""
        super().check()
        if not self.weights:
            raise RequestError("the control controlnet needs weights", _WEIGHTS_HINT)

    def prepare(self, context: SamplingContext) -> Generator[Tensor, None, ControlHooks]:
        """Hooks whose adapter applies the network; no extra pass."""
        yield from ()
        pixels = context.pixels(self.image) / 2 + 0.5
        if self.edges:
            levels = (pixels[0] * 255).round().byte().permute(1, 2, 0).numpy()
            pixels = torch.from_numpy(canny_edges(levels) / np.float32(255)).expand(1, 3, -1, -1)
        hooks = ControlHooks()
        hooks.adapters = (_ControlNetAdapter(self, pixels),)
        return hooks


class _ControlNetAdapter(ModelChange):
    """An adapter that adds the residuals of a ControlNet to the U-Net."""

    def __init__(self, control: ControlNet, pixels: Tensor) -> None:
        self._control = control
        self._pixels = pixels
        self._network: Any = None

    @contextmanager
    def applied(self, model: Model) -> Generator[None]:
        """Apply the network; RequestError if the model has no U-Net or the weights do not fit."""
        unet: Any = model.networks["denoiser"]
        if not hasattr(unet, "up_blocks"):
            raise RequestError(
                f"{model.name} has no U-Net, and a ControlNet needs one",
                "choose another --control or a base model with a U-Net",
            )
        self._network = _load_controlnet(self._control.weights, model)
        actual, expected = _shape(self._network), _shape(unet)
        if actual != expected:
            raise RequestError(
                f"{self._control.weights} does not fit {model.name}: its channels and widths are "
                f"{actual}, and the model's are {expected}",
                "use a ControlNet for the family of the base model",
            )
        self._pixels = self._pixels.to(model.device, model.placement.dtype)
        hook = unet.register_forward_pre_hook(self._add_residuals, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()
            self._network = None

    def _add_residuals(
        self, _unet: nn.Module, arguments: tuple[Tensor, ...], options: dict[str, Any]
    ) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
        latents, timesteps, states = arguments
        down, middle = self._network(
            latents,
            timesteps,
            states,
            controlnet_cond=self._pixels.expand(len(latents), -1, -1, -1),
            conditioning_scale=self._control.scale,
            added_cond_kwargs=options.get("added_cond_kwargs"),
            return_dict=False,
        )
        options["down_block_additional_residuals"] = down
        options["mid_block_additional_residual"] = middle
        return arguments, options


def _shape(network: Any) -> str:
    """Channels and widths of a U-Net or a ControlNet; lists and tuples read the same."""
    keys = ("in_channels", "cross_attention_dim", "block_out_channels")
    return " ".join(str(network.config[key]).strip("()[]") for key in keys)


def _load_controlnet(weights: str, model: Model) -> nn.Module:
    """The frozen network; ModelError if there is none."""
    from diffusers.models.controlnets.controlnet import ControlNetModel

    path = expanded(weights)
    if not exists(path) and hub.looks_like_id(weights):
        path = hub.fetch(weights)
    if not weights or not path.exists():
        raise ModelError(f"there is no ControlNet `{weights}`", _WEIGHTS_HINT)
    part = "controlnet"
    source = FolderSource(path, weights, (part,)) if path.is_dir() else _ControlNetFile(path, model)
    return load_network(ControlNetModel, source, part, model.placement)


class _ControlNetFile(FolderSource):
    """A ControlNet in one file, with diffusers' or the original names, shaped like the U-Net."""

    def __init__(self, path: Path, model: Model) -> None:
        from diffusers.models.controlnets.controlnet import ControlNetModel

        super().__init__(path, str(path), "controlnet")
        unet = cast("Any", model.networks["denoiser"])
        with torch.device("meta"):
            like_unet = ControlNetModel.from_unet(unet, load_weights_from_unet=False)
        heads = {"addition_embed_type_num_heads": unet.config.addition_embed_type_num_heads}
        self._config = {**cast("Any", like_unet).config, **heads}

    def config(self, part: str) -> dict[str, Any]:  # noqa: ARG002
        """The config that fits the base model's U-Net."""
        return self._config

    def weights(self, part: str) -> dict[str, Tensor]:  # noqa: ARG002
        """The tensors under diffusers' names."""
        from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint

        weights = dequantized(read_weights(self.folder)[0], self.name)
        return convert_controlnet_checkpoint(weights, self._config)
