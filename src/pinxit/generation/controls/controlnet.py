# pyright: standard, reportPrivateImportUsage=false, reportAttributeAccessIssue=false
"""controlnet: follow an edge, depth or pose picture, by weights you have (arXiv:2302.05543)."""

from collections.abc import Generator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pinxit.errors import ModelError, RequestError
from pinxit.generation.canny import edges
from pinxit.generation.control import Hold, Pictured, Walk
from pinxit.models import hub
from pinxit.models.loading import network
from pinxit.models.model import Model
from pinxit.models.source import Folder, read_weights


class ControlNet(Pictured):
    """A second network looks at the picture and tells every level of the U-Net what it sees."""

    weights: str = Field(default="", description="the network: a hub id, a folder, or a file")
    scale: float = Field(default=1.0, ge=0, description="how much it counts")
    edges: bool = Field(
        default=False, description="show it the picture's edges (Canny), not the picture itself"
    )

    def begin(self, walk: Walk) -> Generator[Tensor, None, Hold]:
        """Open the network."""
        yield from ()
        pixels = walk.pixels(self.picture) / 2 + 0.5
        if self.edges:
            levels = (pixels[0] * 255).round().byte().permute(1, 2, 0).numpy()
            pixels = torch.from_numpy(edges(levels) / np.float32(255)).expand(1, 3, -1, -1)
        hold = Hold()
        hold.adapters = (_Steering(self, pixels),)
        return hold


class _Steering:
    """An adapter: what a ControlNet sees in a picture is added to what the U-Net computes."""

    def __init__(self, control: ControlNet, pixels: Tensor) -> None:
        self._control = control
        self._pixels = pixels
        self._network: Any = None
        self._hook: RemovableHandle | None = None

    def inject(self, model: Model) -> None:
        """The U-Net is steered; RequestError if the base has none, or the weights fit another."""
        unet: Any = model.networks["denoiser"]
        if not hasattr(unet, "up_blocks"):
            raise RequestError(
                f"{model.name} has no U-Net, which a ControlNet speaks to",
                "take another --control, or a base with a U-Net",
            )
        self._network = _opened(self._control.weights, model)
        shapes = ("in_channels", "cross_attention_dim", "block_out_channels")
        own, wanted = ([str(n.config[one]) for one in shapes] for n in (self._network, unet))
        if [one.strip("()[]") for one in own] != [one.strip("()[]") for one in wanted]:
            raise RequestError(
                f"{self._control.weights} is made for another kind of base than {model.name}: its "
                f"channels and widths are {' '.join(own)}, and not {' '.join(wanted)}",
                "take a ControlNet of the base's family",
            )
        self._pixels = self._pixels.to(model.device, model.placement.dtype)
        self._hook = unet.register_forward_pre_hook(self._steered, with_kwargs=True)

    def eject(self, model: Model) -> None:  # noqa: ARG002
        """The U-Net is alone again."""
        if self._hook:
            self._hook.remove()
        self._hook = self._network = None

    def _steered(
        self, _unet: nn.Module, given: tuple[Tensor, ...], named: dict[str, Any]
    ) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
        latents, times, told = given
        down, middle = self._network(
            latents,
            times,
            told,
            controlnet_cond=self._pixels.expand(len(latents), -1, -1, -1),
            conditioning_scale=self._control.scale,
            added_cond_kwargs=named.get("added_cond_kwargs"),
            return_dict=False,
        )
        seen = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        return given, {**named, **seen}


def _opened(weights: str, model: Model) -> nn.Module:
    """The network, frozen; ModelError if there is none."""
    from diffusers.models.controlnets.controlnet import ControlNetModel

    path = Path(weights).expanduser()
    if not path.exists() and hub.looks_like_id(weights):
        path = hub.fetch(weights)
    if not weights or not path.exists():
        raise ModelError(
            f"there is no ControlNet `{weights}`",
            "give --weights: a hub id, a folder or a file of one",
        )
    source = Folder(path, weights, "controlnet") if path.is_dir() else _File(path, model)
    return network(ControlNetModel, source, "controlnet", model.placement)


class _File(Folder):
    """A ControlNet in one file, of diffusers' names or of its authors'; shaped as the base is."""

    def __init__(self, path: Path, model: Model) -> None:
        from diffusers.models.controlnets.controlnet import ControlNetModel

        super().__init__(path, str(path), "controlnet")
        unet = cast("Any", model.networks["denoiser"])
        with torch.device("meta"):
            made = ControlNetModel.from_unet(unet, load_weights_from_unet=False)
        heads = {"addition_embed_type_num_heads": unet.config.addition_embed_type_num_heads}
        self._config = {**cast("Any", made).config, **heads}

    def config(self, part: str) -> dict[str, Any]:  # noqa: ARG002
        """As the base's U-Net has it."""
        return self._config

    def weights(self, part: str) -> dict[str, Tensor]:  # noqa: ARG002
        """The tensors, by diffusers' names."""
        from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint

        return convert_controlnet_checkpoint(read_weights(self.folder)[0], self._config)
