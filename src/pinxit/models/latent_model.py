# pyright: standard, reportPrivateImportUsage=false, reportAttributeAccessIssue=false
"""What the families share: an autoencoder's latents, CLIP's text towers, and a U-Net's noise."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self, TypeVar

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from pinxit.models.kernels.cpu import suit_cpu
from pinxit.models.loading import clip_tokenizer, emptied, network, rare_words, refill
from pinxit.models.model import LITTLE, Conditioning, Encoded, Model, Placement
from pinxit.models.noise_schedule import Diffusion, Schedule
from pinxit.models.source import Source
from pinxit.models.text_encoder import LITERALLY, Reading, TextTower, Told, told

_T = TypeVar("_T")


class LatentModel(Model):
    """A denoiser of an autoencoder's latents that CLIP's text towers tell what to paint."""

    def __init__(
        self,
        source: Source,
        placement: Placement,
        denoiser: nn.Module,
        towers: Sequence[TextTower],
        schedule: Schedule,
    ) -> None:
        self.source = source
        self.placement = placement
        self.schedule = schedule
        self.solver_config = source.config("scheduler")
        self._vae = network(AutoencoderKL, source, "vae", placement, torch.float32)
        self.towers = _Waking({tower.name: tower for tower in towers}, self._awake)
        encoders: dict[str, Any] = {tower.name: tower.encoder for tower in towers}
        self._all: dict[str, Any] = {"denoiser": denoiser, **encoders, "autoencoder": self._vae}
        self._parts: dict[str, str] = dict(
            zip(encoders, ("text_encoder", "text_encoder_2"), strict=False)
        )
        self._parts["denoiser"] = "transformer" if source.has("transformer") else "unet"
        self._parts["autoencoder"] = "vae"
        self._resting: set[str] = set()
        self.networks = _Waking({"denoiser": denoiser, **encoders}, self._awake)
        self.words = {}
        shape: Any = denoiser.config
        scale: Any = self._vae.config
        self.factor = 2 ** (len(scale.block_out_channels) - 1)
        self.latent_channels = shape.in_channels
        self.picture_size = shape.sample_size * self.factor
        self._scale: float = scale.scaling_factor
        self._shift: float = scale.get("shift_factor") or 0.0
        if placement.device.type == "cpu" and self.size >= LITTLE:
            suit_cpu(denoiser)

    def rest(self, *names: str) -> None:
        """Let networks' weights, or all, leave memory until they are needed."""
        for name in set(names or self._all) - self._resting:
            emptied(self._all[name])
            self._resting.add(name)

    def vacated(self, name: str) -> nn.Module:
        """A network without its own weights, taken to have others from now on."""
        if name not in self._resting:
            emptied(self._all[name])
        self._resting.discard(name)
        return self._all[name]

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Encoded:
        """Pictures to latents, shifted and scaled as the denoiser takes them."""
        vae = self._awake("autoencoder")
        found = vae.encode(pixels.to(self.device), return_dict=False)[0]
        return Encoded((found.mean - self._shift) * self._scale, found.std * self._scale)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents to pictures."""
        vae = self._awake("autoencoder")
        return vae.decode(latents.float() / self._scale + self._shift, return_dict=False)[0]

    def condition(self, prompts: Sequence[str], reading: Reading = LITERALLY) -> Conditioning:
        """What the towers say of the prompts, put together as the denoiser takes it."""
        found = told(tuple(self.towers.values()), prompts, self.words, reading)
        return self._joined(prompts, reading, found)

    def denoise(self, latents: Tensor, times: Tensor, conditioning: Conditioning) -> Tensor:
        """The denoiser's answer, computed in the placement's numbers."""
        network = self._awake("denoiser")
        kept = self.placement.dtype
        return self._answer(network, latents.to(kept), times, conditioning.to(kept)).float()

    def economise(self, wanted: bool) -> None:
        """Whether the denoiser computes again in the backward pass what it would else keep."""
        network = self._all["denoiser"]
        (
            network.enable_gradient_checkpointing
            if wanted
            else network.disable_gradient_checkpointing
        )()

    @abstractmethod
    def _answer(
        self, network: Any, latents: Tensor, times: Tensor, conditioning: Conditioning
    ) -> Tensor:
        """What the denoiser says, in its own numbers."""

    @abstractmethod
    def _joined(
        self, prompts: Sequence[str], reading: Reading, found: Sequence[Told]
    ) -> Conditioning:
        """What the towers found in the prompts, as the denoiser takes it."""

    def _awake(self, name: str) -> Any:
        """One of the networks, with its weights in memory."""
        if name in self._resting:
            refill(self._all[name], self.source, self._parts[name])
            self.source.close()
            self._resting.discard(name)
        return self._all[name]


class _Waking(Mapping[str, _T]):
    """Things of which each is a network's own: one that rests wakes when it is asked for."""

    def __init__(self, held: Mapping[str, _T], wake: Callable[[str], object]) -> None:
        self._held = held
        self._wake = wake

    def __getitem__(self, name: str) -> _T:
        found = self._held[name]
        self._wake(name)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)


class NoisePredictor(LatentModel):
    """A U-Net on a diffusion's schedule."""

    def __init__(self, source: Source, placement: Placement, towers: Sequence[TextTower]) -> None:
        unet = network(UNet2DConditionModel, source, "unet", placement)
        noise: Any = DDPMScheduler.from_config(source.config("scheduler"))
        schedule = Diffusion(noise.alphas_cumprod, noise.config.prediction_type)
        super().__init__(source, placement, unet, towers, schedule)


class OneTower(NoisePredictor):
    """A U-Net that one text tower speaks to: the last hidden states it was trained with."""

    @classmethod
    def has_one_tower(cls, source: Source) -> bool:
        """Whether the base has these parts and no second text tower."""
        parts = all(map(source.has, ("text_encoder", "tokenizer", "unet", "vae", "scheduler")))
        return parts and not source.has("text_encoder_2")

    @classmethod
    def open(cls, source: Source, placement: Placement) -> Self:
        """The base, frozen, laid out for its device."""
        # Where the U-Net also pools the text, it has learned to do so over one window.
        long = source.config("unet").get("addition_embed_type") != "text"
        return cls(source, placement, [clip_tower(CLIPTextModel, source, 1, placement, long=long)])

    def _answer(
        self, network: Any, latents: Tensor, times: Tensor, conditioning: Conditioning
    ) -> Tensor:
        """The U-Net's answer."""
        return network(latents, times, conditioning.states, return_dict=False)[0]

    def _joined(
        self,
        prompts: Sequence[str],  # noqa: ARG002
        reading: Reading,  # noqa: ARG002
        found: Sequence[Told],
    ) -> Conditioning:
        """Its tower's states as they are."""
        return Conditioning(found[0].states)


def clip_tower(
    kind: type[CLIPTextModel] | type[CLIPTextModelWithProjection],
    source: Source,
    number: int,
    placement: Placement,
    *,
    penultimate: bool = False,
    long: bool = True,
) -> TextTower:
    """The so-many-th text tower of a base, with its tokenizer."""
    end = f"_{number}" if number > 1 else ""
    encoder: Any = network(kind, source, f"text_encoder{end}", placement)
    tokenizer: Any = clip_tokenizer(source, f"tokenizer{end}")
    rare = rare_words(source, f"tokenizer{end}")
    return TextTower(
        f"text{end}", tokenizer, encoder, penultimate=penultimate, long=long, rare=rare
    )
