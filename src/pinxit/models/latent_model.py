# pyright: standard, reportPrivateImportUsage=false, reportAttributeAccessIssue=false
"""The base class of the families: a denoiser in a VAE's latent space with text encoders."""

from abc import abstractmethod
from collections import UserDict
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils import checkpoint

from pinxit.errors import ModelError
from pinxit.models.conditioning import Conditioning
from pinxit.models.config_limits import check_latent_config
from pinxit.models.device import multiplies_int8
from pinxit.models.kernels.cpu import optimize_for_cpu, release_freed_memory
from pinxit.models.loading import Buffers, load_network, release_weights, reload_weights
from pinxit.models.model import SMALL, LatentDistribution, LatentNormalization, Model, Placement
from pinxit.models.noise_schedule import Schedule
from pinxit.models.source import Source
from pinxit.models.text_encoder import (
    DEFAULT_PARSING,
    EncodedPrompt,
    PlaceholderEncoder,
    PromptParsing,
    TextEncoder,
    encode_prompts,
)

_VAE_WIDTHS = "block_out_channels"


class LatentModel(Model):
    """A denoiser in a VAE's latent space, conditioned by text encoders.

    The denoiser's input has the values of `packing` x `packing` latent positions as channels.
    """

    # A text encoder has only self-attention; the second names are T5's.
    text_layer_groups: ClassVar[Mapping[str, str]] = {
        "cross-attention": r"\.(self_attn|SelfAttention)\.",
        "attention": r"\.(self_attn|SelfAttention)\.",
        "transformer": r"(^|\.)(layers|block)\.\d+\.",
        "all": r"(^|\.)(layers|block)\.\d+\.",
    }
    packing: ClassVar[int] = 1

    def __init__(
        self,
        source: Source,
        placement: Placement,
        denoiser: nn.Module,
        text_encoders: Sequence[PlaceholderEncoder],
        schedule: Schedule,
        frozen_text_encoders: Sequence[TextEncoder] = (),
    ) -> None:
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        self.source = source
        self.placement = placement
        self.schedule = schedule
        self.scheduler_config = source.config("scheduler")
        exact = replace(placement, precision="fp32")
        self._vae = load_network(AutoencoderKL, source, "vae", exact, lazy=True)
        self.text_encoders = {encoder.name: encoder for encoder in text_encoders}
        self.frozen_text_encoders = {encoder.name: encoder for encoder in frozen_text_encoders}
        for encoder in (*text_encoders, *frozen_text_encoders):
            encoder.load = self.network
        trainable: dict[str, Any] = {"denoiser": denoiser}
        trainable |= {encoder.name: encoder.network for encoder in text_encoders}
        frozen: dict[str, Any] = {encoder.name: encoder.network for encoder in frozen_text_encoders}
        self._all: dict[str, Any] = {**trainable, **frozen, "vae": self._vae}
        folders = {**self.facts.networks, **self.facts.frozen_networks}
        self._part_names = {name: folder for folder, name in folders.items()}
        # Text encoders and autoencoder are read when they are first needed.
        self._offloaded = self._all.keys() - {"denoiser"}
        self.networks = _LoadedOnAccess(trainable, self.network)
        self.placeholders = {}
        self.changes = []
        vae_config: Any = self._vae.config
        denoiser_config: Any = denoiser.config
        check_latent_config(denoiser_config, vae_config, source.name)
        self.vae_scale_factor = 2 ** (len(vae_config[_VAE_WIDTHS]) - 1)
        self._normalization = LatentNormalization(
            vae_config.scaling_factor, vae_config.get("shift_factor") or 0.0
        )
        if placement.device.type == "cpu" and self.num_parameters >= SMALL:
            optimize_for_cpu(denoiser)

    @classmethod
    def load_denoiser(
        cls, kind: type[Any], source: Source, placement: Placement, buffers: Buffers | None = None
    ) -> Any:
        """The denoiser of a class of diffusers; with a quantized precision in 8 or 4 bits.

        Products of integers are less exact than weights in few bits, and have fewer layers.
        """
        layers = cls.layer_groups["int8" if multiplies_int8(placement) else "all"]
        folder = cls.facts.denoiser
        return load_network(
            kind, source, folder, placement, quantized_layers=layers, buffers=buffers
        )

    @classmethod
    def matches(cls, source: Source) -> bool:
        """Whether the source has the parts of this family, and the config value that marks it."""
        parts = {*cls.facts.networks, "text_encoder", "vae"}
        known = ("", *source.config(cls.facts.denoiser))
        return all(map(source.has, parts)) and cls.facts.config_key in known

    @classmethod
    def check_usable(cls, source: Source) -> None:
        """Raise ModelError if the denoiser needs more input than latents, as for inpainting."""
        in_channels = source.config(cls.facts.denoiser).get("in_channels")
        latent_channels = source.config("vae").get("latent_channels")
        if (
            isinstance(in_channels, int)
            and isinstance(latent_channels, int)
            and in_channels != latent_channels * cls.packing**2
        ):
            counts = f"{source.name} expects {in_channels} input channels, but "
            if source.vae:
                counts += f"the VAE {source.vae} has {latent_channels}"
                raise ModelError(counts, "give a VAE of the same model family to --vae")
            raise ModelError(
                f"{counts}its VAE has {latent_channels}: it may be an inpainting model, which is "
                "not supported",
                "use a text-to-image model",
            )

    @property
    def default_size(self) -> int:
        """The size that the denoiser's config names, or else the VAE's, in pixels."""
        size = getattr(self._all["denoiser"].config, "sample_size", None)
        if size is not None:
            return size * self.vae_scale_factor
        return self.resolution(self.source) or self.facts.native_size

    @classmethod
    def resolution(cls, source: Source) -> int | None:
        """The resolution that a base model was trained at, in pixels, from its configs."""
        vae = source.config("vae")
        size, blocks = source.config(cls.facts.denoiser).get("sample_size"), vae.get(_VAE_WIDTHS)
        if isinstance(size, int) and isinstance(blocks, list):
            return size * 2 ** (len(blocks) - 1)
        size = vae.get("sample_size")
        return size if isinstance(size, int) else None

    @property
    def latent_channels(self) -> int:
        """The number of channels of the autoencoder's latents."""
        return self._vae.config["latent_channels"]

    def offload(self, *names: str) -> None:
        """Remove the weights of these networks, or of all, from memory until they are needed."""
        unused = set(names or self._all) - self._offloaded
        for name in unused:
            release_weights(self._all[name])
            self._offloaded.add(name)
        if unused:
            release_freed_memory()

    @property
    def all_networks(self) -> Mapping[str, nn.Module]:
        """All networks by name, with those that cannot be trained; some may be offloaded."""
        return self._all

    def emptied(self, name: str) -> nn.Module:
        """A network without weights, to be given other ones; `offload` brings back its own."""
        if name not in self._offloaded:
            release_weights(self._all[name])
        self._offloaded.discard(name)
        return self._all[name]

    @contextmanager
    def replaced(self, name: str, network: nn.Module) -> Generator[None]:
        """Compute with another network of the same class inside the block."""
        original, offloaded = self._all[name], self._offloaded & {name}
        self._put(name, network)
        self._offloaded -= offloaded
        try:
            yield
        finally:
            self._put(name, original)
            self._offloaded |= offloaded

    def _put(self, name: str, network: nn.Module) -> None:
        self._all[name] = network
        if name in self.text_encoders:
            self.text_encoders[name].network = network

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> LatentDistribution:
        """Images (B, 3, H, W) in [-1, 1] to latents, shifted and scaled for the denoiser.

        ModelError if they are infinite or NaN.
        """
        vae = self.network("vae")
        latents = vae.encode(pixels.to(self.device), return_dict=False)[0]
        if not latents.mean.isfinite().all():
            raise ModelError(
                self.damage() or f"the VAE of {self.name} encodes images to infinite or NaN values",
                "the base model is damaged: get it again, or give another VAE with --vae",
            )
        return self._normalization.normalize(latents.mean, latents.std)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, H, W) to images (B, 3, H, W), nominally in [-1, 1]."""
        vae = self.network("vae")
        return vae.decode(self._normalization.restore(latents.float()), return_dict=False)[0]

    def condition(
        self, prompts: Sequence[str], parsing: PromptParsing = DEFAULT_PARSING
    ) -> Conditioning:
        """Encode prompts with all text encoders, combined as the denoiser expects it."""
        encoders = (*self.text_encoders.values(), *self.frozen_text_encoders.values())
        encodings = encode_prompts(encoders, prompts, self.placeholders, parsing)
        return self._combine(prompts, encodings)

    def denoise(
        self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning, **inputs: Any
    ) -> Tensor:
        """The denoiser's prediction (B, C, H, W), fp32, computed in the placement's dtype.

        `inputs` are further inputs of the family's denoiser.
        """
        network = self.network("denoiser")
        dtype = self.placement.dtype
        latents, conditioning = latents.to(dtype), conditioning.to(dtype)
        return self._predict(network, latents, timesteps, conditioning, **inputs).float()

    def enable_gradient_checkpointing(self, enabled: bool) -> None:
        """Turn gradient checkpointing of the denoiser on or off."""
        network = self._all["denoiser"]
        if enabled:
            # Nothing in a frozen network is random: no dropout is active.
            options = {"use_reentrant": False, "preserve_rng_state": False}
            network.enable_gradient_checkpointing(partial(checkpoint.checkpoint, **options))
        else:
            network.disable_gradient_checkpointing()

    @abstractmethod
    def _predict(
        self, network: Any, latents: Tensor, timesteps: Tensor, conditioning: Conditioning
    ) -> Tensor:
        """The denoiser's prediction (B, C, H, W) in its own dtype."""

    @abstractmethod
    def _combine(self, prompts: Sequence[str], encodings: Sequence[EncodedPrompt]) -> Conditioning:
        """The outputs of the text encoders as one conditioning for the denoiser."""

    def network(self, name: str) -> Any:
        """A network with its weights in memory; the names are those of `offload`."""
        if name in self._offloaded:
            reload_weights(self._all[name], self.source, self._part_names[name])
            self.source.close()
            self._offloaded.discard(name)
        return self._all[name]


class _LoadedOnAccess(UserDict[str, nn.Module]):
    """Networks, each of which is loaded when it is accessed."""

    def __init__(self, items: Mapping[str, nn.Module], load: Callable[[str], nn.Module]) -> None:
        super().__init__(items)
        self._load = load

    def __getitem__(self, name: str) -> nn.Module:
        if name not in self.data:
            raise KeyError(name)
        return self._load(name)
