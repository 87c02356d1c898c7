"""The interface of a base model, and how one is opened."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from pinxit import registry
from pinxit.errors import ModelError, did_you_mean
from pinxit.models import hub
from pinxit.models.checkpoint_source import CheckpointSource
from pinxit.models.noise_schedule import Schedule
from pinxit.models.prompt import TokenEmbedding
from pinxit.models.source import PARTS, FolderSource, Source, SourceWithVae
from pinxit.models.text_encoder import DEFAULT_PARSING, PromptParsing, TextEncoder

Precision = Literal["fp32", "fp16", "bf16", "int8"]
DEVICES = ("cpu", "cuda", "mps")

# Denoisers with fewer parameters are small: on a CPU they run in fp32, which is fast enough.
SMALL = 100_000_000

# With int8 only the denoiser's layers are quantized; everything else stays in fp32.
_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Placement:
    """The device of a model and the precision of its weights and computations."""

    device: torch.device
    precision: Precision

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of everything that is not quantized."""
        return _DTYPES.get(self.precision, torch.float32)


@dataclass(frozen=True)
class LatentDistribution:
    """The autoencoder's output for images: mean and standard deviation, (B, C, H, W) each."""

    mean: Tensor
    std: Tensor


@dataclass(frozen=True)
class Conditioning:
    """Encoded prompts for the denoiser: states (B, L, D) and pooled states (B, P)."""

    states: Tensor
    pooled: Tensor | None = None

    @classmethod
    def stack(cls, batches: Sequence["Conditioning"]) -> "Conditioning":
        """Several batches of equal length as one batch."""
        pooled = [batch.pooled for batch in batches if batch.pooled is not None]
        return cls(
            torch.cat([batch.states for batch in batches]), torch.cat(pooled) if pooled else None
        )

    def to(self, dtype: torch.dtype) -> "Conditioning":
        """The same conditioning in another dtype."""
        return Conditioning(
            self.states.to(dtype), None if self.pooled is None else self.pooled.to(dtype)
        )

    def __getitem__(self, index: slice | Tensor) -> "Conditioning":
        return Conditioning(self.states[index], None if self.pooled is None else self.pooled[index])


class Model(ABC):
    """A base model: encodes images and prompts, denoises latents, and decodes latents to images.

    `placeholders` are the active placeholder tokens and `networks` the parts that can be trained
    ("denoiser" and the text encoders); only adapters change either. All weights are frozen.
    Weights can be offloaded; they are read again from the source when they are needed.

    `layer_groups` and `text_layer_groups` are regular expressions that find the layers of a group
    in the denoiser and in a text encoder by their names. The groups are those of LoRA
    ("cross-attention", "attention", "transformer", "all"), the layers that become 8-bit ("int8"),
    and the layers whose outputs controls share ("queries-keys", "keys-values",
    "decoder-features").
    """

    layer_groups: ClassVar[Mapping[str, str]]
    text_layer_groups: ClassVar[Mapping[str, str]]
    source: Source
    placement: Placement
    schedule: Schedule
    text_encoders: Mapping[str, TextEncoder]
    networks: Mapping[str, nn.Module]
    scheduler_config: Mapping[str, object]
    default_size: int
    vae_scale_factor: int
    latent_channels: int
    placeholders: dict[str, TokenEmbedding]

    @classmethod
    @abstractmethod
    def matches(cls, source: Source) -> bool:
        """Whether the source is a base model of this family."""

    @classmethod
    @abstractmethod
    def open(cls, source: Source, placement: Placement) -> Self:
        """Load the base model with frozen weights; ModelError if a part is missing or wrong."""

    @abstractmethod
    def encode(self, pixels: Tensor) -> LatentDistribution:
        """Images (B, 3, H, W) in [-1, 1] to latents, scaled as the denoiser expects them."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, H, W) to images (B, 3, H, W), nominally in [-1, 1]."""

    @abstractmethod
    def condition(
        self, prompts: Sequence[str], parsing: PromptParsing = DEFAULT_PARSING
    ) -> Conditioning:
        """Encode prompts with the active placeholder tokens, padded or truncated to one length."""

    @abstractmethod
    def denoise(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The denoiser's prediction (B, C, H, W), fp32, at timesteps (B,) or ()."""

    @abstractmethod
    def offload(self, *names: str) -> None:
        """Remove the weights of these networks, or of all, from memory until they are needed.

        The names are those of `networks`, and "vae".
        """

    @abstractmethod
    def emptied(self, name: str) -> nn.Module:
        """A network without weights, to be given other ones; `offload` brings back its own."""

    @abstractmethod
    def enable_gradient_checkpointing(self, enabled: bool) -> None:
        """Turn gradient checkpointing of the denoiser on or off."""

    @property
    def device(self) -> torch.device:
        """The model's device."""
        return self.placement.device

    @property
    def size_multiple(self) -> int:
        """Width and height of images must be multiples of this, in pixels."""
        return self.vae_scale_factor

    @property
    def name(self) -> str:
        """The base model's name in messages and recipes."""
        return self.source.name

    @property
    def hash(self) -> str:
        """Fingerprint of the base model: SHA-256 over the files of its parts."""
        return self.source.hash

    @cached_property
    def num_parameters(self) -> int:
        """Number of parameters of the denoiser; defaults of recipes depend on it."""
        return sum(weight.numel() for weight in self.networks["denoiser"].parameters())

    def layer_pattern(self, network: str, group: str) -> re.Pattern[str]:
        """The names of the layers of a group, to be searched; nothing for an unknown group."""
        is_text = network in self.text_encoders
        groups = self.text_layer_groups if is_text else self.layer_groups
        return re.compile(groups.get(group, "(?!)"))

    def truncated_text(self, prompt: str, parsing: PromptParsing = DEFAULT_PARSING) -> str:
        """The end of a prompt that all text encoders truncate, "" if the prompt fits."""
        endings = [
            text_encoder.truncated_text(prompt, self.placeholders, parsing)
            for text_encoder in self.text_encoders.values()
        ]
        return min(endings, key=len)


def open_base(
    base: str | Path = "pocket",
    device: str = "cpu",
    precision: Precision | Literal["auto"] = "auto",
    vae: str | Path | None = None,
) -> Model:
    """Open a base model: "pocket", a hub id, a folder in diffusers' layout or a checkpoint file.

    `vae` is another autoencoder for it, in the same notation. Raises ModelError if the base model
    does not exist, is not supported, or does not work with the device or precision.
    """
    torch_device = _device(device)
    source = find_base(str(base))
    if vae is not None:
        source = SourceWithVae(source, _check_vae(find_base(str(vae))))
    _check_channels(source)
    for family in _families():
        if family.matches(source):
            precision = (
                _fastest_precision(torch_device, source) if precision == "auto" else precision
            )
            if precision == "int8":
                _check_int8(torch_device)
            model = family.open(source, Placement(torch_device, precision))
            source.close()
            return model
    raise ModelError(
        f"{source.name} is not a supported base model: it has "
        f"{', '.join(filter(source.has, PARTS)) or 'no known part'}",
        f"supported families: {', '.join(registry.names('families'))}; a base model is a folder "
        "in diffusers' layout, a complete checkpoint file, or a hub id",
    )


def _families() -> Iterator[type[Model]]:
    for name in registry.names("families"):
        yield registry.load("families", name)


def find_base(base: str) -> Source:
    """The source of a base model: included in pinxit, a local folder or file, or on the hub.

    Raises ModelError if it does not exist.
    """
    if base == "pocket":
        return FolderSource(Path(str(files("pinxit"))) / "pocket" / "weights", base)
    path, name = Path(base).expanduser(), ""
    if not path.exists() and hub.looks_like_id(base):
        path, name = hub.fetch(base), base
    name = name or str(path.resolve())
    if path.is_file():
        return CheckpointSource(path, name)
    if path.is_dir():
        only_vae = (path / "config.json").is_file() and not (path / "vae").is_dir()
        return FolderSource(path, name, "vae" if only_vae else None)
    raise ModelError(
        f"there is no base model `{base}`: it is not a known name, a folder or a file",
        f"{did_you_mean(base, ['pocket'])}; or give a folder, a file or a hub id (owner/name)",
    )


def _check_vae(source: Source) -> Source:
    if not source.has("vae") or "latent_channels" not in source.config("vae"):
        raise ModelError(
            f"{source.name} has no autoencoder",
            "give a VAE folder with config.json and weights, a VAE file, or another base model",
        )
    return source


def _check_channels(source: Source) -> None:
    """Raise ModelError if the denoiser needs more input than latents, as for inpainting."""
    denoiser = source.config("transformer" if source.has("transformer") else "unet")
    in_channels = denoiser.get("in_channels")
    latent_channels = source.config("vae").get("latent_channels")
    if (
        isinstance(in_channels, int)
        and isinstance(latent_channels, int)
        and in_channels != latent_channels
    ):
        raise ModelError(
            f"{source.name} expects {in_channels} input channels, but its VAE has "
            f"{latent_channels}: it may be an inpainting model, which is not supported",
            "use a text-to-image model; a separate VAE must be of the same model family",
        )


def _device(device: str) -> torch.device:
    kind = device.partition(":")[0]
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.mps.is_available()}
    if kind not in available:
        raise ModelError(f"there is no device `{device}`", did_you_mean(device, DEVICES))
    if not available[kind]:
        raise ModelError(
            f"device `{device}` is not available: torch finds none on this machine",
            "use --device cpu, or install a torch build for this device",
        )
    return torch.device(device)


def _check_int8(device: torch.device) -> None:
    int8_features = ("avx512_vnni", "avx_vnni", "amx_int8")
    if device.type != "cpu" or not _cpu_features().intersection(int8_features):
        raise ModelError(
            f"precision int8 needs a CPU with 8-bit integer instructions; `{device}` has none",
            "leave --precision out",
        )


def _cpu_features() -> set[str]:
    """The CPU's features for matrix multiplication, as far as torch reports them."""
    capabilities: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict[str, object])()
    return {feature for feature, available in capabilities.items() if available is True}


def _fastest_precision(device: torch.device, source: Source) -> Precision:
    """The precision in which the device runs the base model fastest."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    denoiser = source.weights("transformer" if source.has("transformer") else "unet")
    if device.type == "mps" or sum(weight.numel() for weight in denoiser.values()) < SMALL:
        return "fp32"
    # Intel CPUs without AMX multiply bf16 at half the speed of fp16 and fp32.
    candidates: tuple[tuple[str, Precision], ...] = (
        ("amx_bf16", "bf16"),
        ("avx512_fp16", "fp16"),
        ("avx512_bf16", "bf16"),
    )
    features = _cpu_features()
    fast: list[Precision] = [precision for feature, precision in candidates if feature in features]
    return fast[0] if fast else "fp32"
