"""A loaded base model, and how one is opened: a family's class behind one set of verbs."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Literal, Self

import torch
from torch import Tensor, nn

from pinxit import registry
from pinxit.errors import ModelError, did_you_mean
from pinxit.models import hub
from pinxit.models.checkpoint_source import SingleFile
from pinxit.models.noise_schedule import Schedule
from pinxit.models.prompt import Meaning
from pinxit.models.source import PARTS, Folder, Source, WithVae
from pinxit.models.text_encoder import LITERALLY, Reading, TextTower

Precision = Literal["fp32", "fp16", "bf16", "int8"]
DEVICES = ("cpu", "cuda", "mps")

# Denoisers with fewer weights are little: on a CPU they compute in fp32, which costs them nothing.
LITTLE = 100_000_000

# Where layers are in 8 bits, all else is in full.
_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Placement:
    """Where a model runs, and in which numbers its networks are kept and compute."""

    device: torch.device
    precision: Precision

    @property
    def dtype(self) -> torch.dtype:
        """The numbers of all that is not in 8 bits."""
        return _DTYPES.get(self.precision, torch.float32)


@dataclass(frozen=True)
class Encoded:
    """The autoencoder's view of pictures: mean and spread of their latents, (B, C, H, W) each."""

    mean: Tensor
    spread: Tensor


@dataclass(frozen=True)
class Conditioning:
    """What the denoiser is told: a state for each token (B, L, D), and of the whole (B, P)."""

    states: Tensor
    pooled: Tensor | None = None

    @classmethod
    def stack(cls, parts: Sequence["Conditioning"]) -> "Conditioning":
        """Several of one length, one below the other."""
        pooled = [part.pooled for part in parts if part.pooled is not None]
        return cls(
            torch.cat([part.states for part in parts]), torch.cat(pooled) if pooled else None
        )

    def to(self, dtype: torch.dtype) -> "Conditioning":
        """In other numbers."""
        return Conditioning(
            self.states.to(dtype), None if self.pooled is None else self.pooled.to(dtype)
        )

    def __getitem__(self, at: slice | Tensor) -> "Conditioning":
        return Conditioning(self.states[at], None if self.pooled is None else self.pooled[at])


class Model(ABC):
    """A base model: pictures to latents and back, prompts to conditioning, and the denoiser.

    `words` are the user's words in force and `networks` the parts whose weights may be changed;
    only adapters touch either. Nothing here is trained as it stands: all weights are frozen.
    Networks may rest: their weights are out of memory until they are needed, and read again then.
    """

    source: Source
    placement: Placement
    schedule: Schedule
    towers: Mapping[str, TextTower]
    networks: Mapping[str, nn.Module]
    solver_config: Mapping[str, object]
    picture_size: int
    factor: int
    latent_channels: int
    words: dict[str, Meaning]

    @classmethod
    @abstractmethod
    def suits(cls, source: Source) -> bool:
        """Whether the source holds a base of this family."""

    @classmethod
    @abstractmethod
    def open(cls, source: Source, placement: Placement) -> Self:
        """The base from its source, its weights frozen; ModelError if something is missing."""

    @abstractmethod
    def encode(self, pixels: Tensor) -> Encoded:
        """Pictures (B, 3, H, W) in [-1, 1] to latents, scaled as the denoiser takes them."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Latents to pictures (B, 3, H, W), nominally in [-1, 1]."""

    @abstractmethod
    def condition(self, prompts: Sequence[str], reading: Reading = LITERALLY) -> Conditioning:
        """What the prompts say, user's words understood: one length for all, the rest is cut."""

    @abstractmethod
    def denoise(self, latents: Tensor, times: Tensor, conditioning: Conditioning) -> Tensor:
        """The network's answer (B, C, H, W) at times (B,) or (); fp32."""

    @abstractmethod
    def rest(self, *names: str) -> None:
        """Let weights of these networks, or of all, leave memory; "autoencoder" is one too."""

    @abstractmethod
    def vacated(self, name: str) -> nn.Module:
        """A network whose own weights left memory, to be given others until `rest` is called."""

    @abstractmethod
    def economise(self, wanted: bool) -> None:
        """Whether the backward pass computes again what it would else keep in memory."""

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.placement.device

    @property
    def grain(self) -> int:
        """What a picture's sides must be multiples of, in pixels."""
        return self.factor

    @property
    def name(self) -> str:
        """How messages and recipes call the base."""
        return self.source.name

    @property
    def hash(self) -> str:
        """The fingerprint of the base: SHA-256 over the files of its parts."""
        return self.source.hash

    @cached_property
    def size(self) -> int:
        """How many weights the denoiser has: what recipes' defaults go by."""
        return sum(weight.numel() for weight in self.networks["denoiser"].parameters())

    def cut(self, prompt: str, reading: Reading = LITERALLY) -> str:
        """The end of a prompt that no tower has room for, "" if it fits."""
        cuts = [tower.cut(prompt, self.words, reading) for tower in self.towers.values()]
        return min(cuts, key=len)


def open_base(
    base: str | Path = "pocket",
    device: str = "cpu",
    precision: Precision | Literal["auto"] = "auto",
    vae: str | Path | None = None,
) -> Model:
    """A base by name, hub id, folder in diffusers' layout or single file; ModelError if none.

    `vae` is another autoencoder for it, given likewise.
    """
    place = _device(device)
    source = find_base(str(base))
    if vae is not None:
        source = WithVae(source, _vae(find_base(str(vae))))
    _must_paint(source)
    for family in _families():
        if family.suits(source):
            suited = _suited(place, source) if precision == "auto" else precision
            if suited == "int8":
                _must_take_int8(place)
            opened = family.open(source, Placement(place, suited))
            source.close()
            return opened
    raise ModelError(
        f"{source.name} is no base of a family that pinxit knows: it has "
        f"{', '.join(filter(source.has, PARTS)) or 'no part of one'}",
        f"families: {', '.join(registry.names('families'))}; a base is a folder in diffusers' "
        "layout, a whole checkpoint in one file, or a hub id",
    )


def _families() -> Iterator[type[Model]]:
    for name in registry.names("families"):
        yield registry.load("families", name)


def find_base(base: str) -> Source:
    """Where a base is: it ships with pinxit, or it is the user's own, or on the hub.

    ModelError if it is nowhere.
    """
    if base == "pocket":
        return Folder(Path(str(files("pinxit"))) / "pocket" / "weights", base)
    path, name = Path(base).expanduser(), ""
    if not path.exists() and hub.looks_like_id(base):
        path, name = hub.fetch(base), base
    name = name or str(path.resolve())
    if path.is_file():
        return SingleFile(path, name)
    if path.is_dir():
        alone = (path / "config.json").is_file() and not (path / "vae").is_dir()
        return Folder(path, name, "vae" if alone else None)
    raise ModelError(
        f"there is no base `{base}`: it is neither a name, a folder nor a file",
        f"{did_you_mean(base, ['pocket'])}; or give a folder, a file or a hub id (owner/name)",
    )


def _vae(source: Source) -> Source:
    if not source.has("vae") or "latent_channels" not in source.config("vae"):
        raise ModelError(
            f"{source.name} has no autoencoder",
            "give a folder with config.json and its weights, a file with a VAE, or another base",
        )
    return source


def _must_paint(source: Source) -> None:
    """ModelError if the denoiser takes more than latents, as inpainting models do."""
    denoiser = source.config("transformer" if source.has("transformer") else "unet")
    taken, latents = denoiser.get("in_channels"), source.config("vae").get("latent_channels")
    if isinstance(taken, int) and isinstance(latents, int) and taken != latents:
        raise ModelError(
            f"{source.name} takes {taken} channels, and pictures here have {latents}: it is made "
            "for inpainting or another task",
            "take a base that paints from text; an autoencoder must be of the base's family",
        )


def _device(device: str) -> torch.device:
    kind = device.partition(":")[0]
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.mps.is_available()}
    if kind not in present:
        raise ModelError(f"there is no device `{device}`", did_you_mean(device, DEVICES))
    if not present[kind]:
        raise ModelError(
            f"device `{device}` was asked for, and torch finds none here",
            "use --device cpu, or install a torch build for this device",
        )
    return torch.device(device)


def _must_take_int8(device: torch.device) -> None:
    if device.type != "cpu" or not _units().intersection(("avx512_vnni", "avx_vnni", "amx_int8")):
        raise ModelError(
            f"int8 is for processors that multiply integers of 8 bits, and `{device}` is none "
            "that pinxit knows to",
            "leave --precision out",
        )


def _units() -> set[str]:
    """What the processor has for products of matrices, as far as torch tells."""
    told: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict[str, object])()
    return {unit for unit, there in told.items() if there is True}


def _suited(device: torch.device, source: Source) -> Precision:
    """The numbers in which a device computes a base fast: halves where it multiplies halves."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    denoiser = source.weights("transformer" if source.has("transformer") else "unet")
    if device.type == "mps" or sum(weight.numel() for weight in denoiser.values()) < LITTLE:
        return "fp32"
    # Intel's processors without matrix units multiply bf16 at half the speed of fp16 and fp32.
    order: tuple[tuple[str, Precision], ...] = (
        ("amx_bf16", "bf16"),
        ("avx512_fp16", "fp16"),
        ("avx512_bf16", "bf16"),
    )
    fast: list[Precision] = [precision for unit, precision in order if unit in _units()]
    return fast[0] if fast else "fp32"
