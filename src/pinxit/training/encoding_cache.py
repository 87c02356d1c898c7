"""Encoded images and prompts on disk: what one run has encoded, later runs read."""

import hashlib
import json
import platform
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cached_property
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor

from pinxit.adapters.batched_lora import BatchedLora
from pinxit.adapters.kinds.alias import AliasAdapter
from pinxit.errors import FileError, PinxitError
from pinxit.files.atomic_write import make_folder, remove
from pinxit.files.cache import cache_folder
from pinxit.files.safetensors_file import read_safetensors, write_tensors
from pinxit.models.conditioning import Conditioning
from pinxit.models.device import device_name
from pinxit.models.model import SMALL, LatentDistribution, Model
from pinxit.models.text_encoder import PromptParsing

# The files that were not used for the longest time are deleted above this size, in bytes.
MAX_BYTES = 10 * 10**9
# Before the numbers of further layers of a text encoder.
_MORE = "more."
_LIBRARIES = ("pinxit", "torch", "diffusers", "transformers")


def encodings_folder() -> Path:
    """The folder of the cache. Its files can be deleted at any time."""
    return cache_folder() / "encodings"


class EncodingCache:
    """Latents of images and conditioning of prompts of one base model.

    A file is named after a hash of everything that decides its content: the input, the base model,
    the device, the precision and the versions of the libraries. So what is read has the bits that
    encoding would give. Files have a checksum; damaged ones are written again. If not `enabled`,
    everything is encoded.
    """

    def __init__(self, model: Model, *, enabled: bool) -> None:
        self._model = model
        self._enabled = enabled
        self._pruned = False
        self._num_read = self._num_used = 0

    def encode(self, pixels: Tensor) -> LatentDistribution:
        """Mean and standard deviation of the latents of images (B, 3, H, W)."""
        if not self._enabled:
            return self._encoder().encode(pixels)

        def latents() -> dict[str, Tensor]:
            encoded = self._encoder().encode(pixels)
            return {"mean": encoded.mean.cpu(), "std": encoded.std.cpu()}

        digest = hashlib.sha256(pixels.contiguous().numpy().data).hexdigest()
        return LatentDistribution(
            **self._tensors(f"images {tuple(pixels.shape)} {digest}", latents)
        )

    @torch.no_grad()
    def condition(self, prompt: str, parsing: PromptParsing) -> Conditioning:
        """The conditioning of one prompt, without gradients.

        It is encoded anew if an adapter that changes text encoders or embeddings is applied.
        """
        model = self._model
        changed = any(getattr(change, "changes_conditioning", False) for change in model.changes)
        if changed or not self._enabled:
            return self._encoder().condition([prompt], parsing)
        aliases = sorted((token, one.text) for token, one in model.placeholders.items())
        tensors = self._tensors(
            f"prompt {prompt!r} {parsing} {aliases}",
            lambda: _tensors_of(self._encoder().condition([prompt], parsing)),
        )
        on_device = {name: tensor.to(model.device) for name, tensor in tensors.items()}
        more = sorted(name for name in on_device if name.startswith(_MORE))
        return Conditioning(
            on_device["states"],
            on_device.get("pooled"),
            on_device.get("mask"),
            tuple(on_device[name] for name in more),
        )

    def notices(self) -> Iterator[str]:
        """What was read instead of encoded so far, if anything."""
        if self._num_read:
            yield f"{self._num_read} of {self._num_used} encodings were read from the cache"

    def _encoder(self) -> Model:
        """The model, to encode with: a large denoiser leaves memory, and is read again later.

        It stays while an adapter has its weights.
        """
        model = self._model
        unchanged = all(isinstance(one, AliasAdapter | BatchedLora) for one in model.changes)
        if unchanged and model.num_parameters >= SMALL:
            model.offload("denoiser")
        return model

    def _tensors(self, key: str, encode: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors under a key, from the file if there is an intact one."""
        self._num_used += 1
        name = hashlib.sha256(f"{self._environment}\n{key}".encode()).hexdigest()
        file = encodings_folder() / name[:2] / f"{name}.safetensors"
        if file.is_file():
            # A file that is damaged, or is not one of these, is written again.
            with suppress(FileError, OSError, KeyError, ValueError):
                stored, strides = read_safetensors(file)
                tensors = {
                    name: _copy(one, json.loads(strides[name])) for name, one in stored.items()
                }
                file.touch()
                self._num_read += 1
                return tensors
        tensors = encode()
        with suppress(PinxitError, OSError):  # such as a full disk: training does not need the file
            make_folder(file.parent)
            strides = {name: json.dumps(tensor.stride()) for name, tensor in tensors.items()}
            write_tensors(file, tensors, strides, checksum=True)
            self._prune()
        return tensors

    @cached_property
    def _environment(self) -> str:
        """Everything apart from the input that decides the bits of an encoding."""
        model = self._model
        versions = [f"{name} {metadata.version(name)}" for name in _LIBRARIES]
        threads = f"{torch.get_num_threads()} threads" if model.device.type == "cpu" else ""
        machine = [platform.machine(), torch.backends.cpu.get_cpu_capability(), threads]
        place = [device_name(model.device), model.placement.precision, *machine]
        return "\n".join([model.hash, *place, *versions])

    def _prune(self) -> None:
        """Delete old files above the size limit, once in a process."""
        if self._pruned:
            return
        self._pruned = True
        files = [(file, file.stat()) for file in encodings_folder().glob("*/*.safetensors")]
        total = 0
        for file, status in sorted(files, key=lambda one: one[1].st_mtime, reverse=True):
            total += status.st_size
            if total > MAX_BYTES:
                remove(file)


def _copy(tensor: Tensor, strides: list[int]) -> Tensor:
    """A copy with the memory layout of the encoding: it decides how later sums are rounded."""
    return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype).copy_(tensor)


def _tensors_of(conditioning: Conditioning) -> dict[str, Tensor]:
    """The tensors of a conditioning by name, on the CPU."""
    more = {f"{_MORE}{number:03}": one for number, one in enumerate(conditioning.more_states)}
    named = {"pooled": conditioning.pooled, "mask": conditioning.mask}
    present = {name: tensor for name, tensor in named.items() if tensor is not None}
    tensors = {"states": conditioning.states, **present, **more}
    return {name: tensor.cpu() for name, tensor in tensors.items()}
