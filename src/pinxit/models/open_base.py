"""Opening base models: find the source, choose the family and the precision, keep some open."""

import os
import shutil
from collections import OrderedDict
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import torch

from pinxit import registry
from pinxit.arguments import checked
from pinxit.errors import ModelError, PinxitError, did_you_mean
from pinxit.files.untrusted import exists, expanded
from pinxit.models import hub
from pinxit.models.checkpoint_source import CheckpointSource
from pinxit.models.device import AUTO, fast_precision, find_device, memory_errors
from pinxit.models.family import network_folders, part_folders
from pinxit.models.model import SMALL, Model, Placement, Precision
from pinxit.models.source import CombinedSource, FolderSource, Source, read_json

# Of the code of one class of blocks, which a U-Net has in several widths; more are not compiled.
_MAX_VARIANTS = 64

_Key = tuple[str, str, str, str, tuple[str, ...]]


class Bases:
    """The base models used last, of which at most `max_loaded` have their weights in memory.

    When another one is opened, the one unused for longest is offloaded. It can still be used: its
    weights are then read again.
    """

    def __init__(self, max_loaded: int = 1) -> None:
        self._max_loaded = max_loaded
        self._models = OrderedDict[_Key, Model]()

    def open(
        self,
        base: str | Path = "pocket",
        device: str = AUTO,
        precision: Precision | Literal["auto"] = "auto",
        vae: str | Path | None = None,
        text_encoders: Sequence[str | Path] = (),
    ) -> Model:
        """A base model as `open_base` opens it, or the one that is open already.

        Raises ModelError as `open_base` does.
        """
        key = (str(base), device, precision, str(vae or ""), tuple(map(str, text_encoders)))
        if key not in self._models:
            while len(self._models) >= self._max_loaded:
                _, longest_unused = self._models.popitem(last=False)
                longest_unused.offload()
            self._models[key] = open_base(base, device, precision, vae, text_encoders)
        self._models.move_to_end(key)
        return self._models[key]


@checked
def open_base(
    base: str | Path = "pocket",
    device: str = AUTO,
    precision: Precision | Literal["auto"] = "auto",
    vae: str | Path | None = None,
    text_encoders: Sequence[str | Path] = (),
) -> Model:
    """Open a base model: "pocket", a hub id, a folder in diffusers' layout or a checkpoint file.

    `device` is a name that torch knows, or "auto" for an accelerator if there is one. `vae` is
    another autoencoder and `text_encoders` are other text encoders and tokenizers, in the notation
    of `base`. Raises ModelError if the base model does not
    exist, is not supported, or does not work with the device or precision.
    """
    return open_source(find_source(base, vae, text_encoders), device, precision)


def open_source(
    source: Source, device: str = AUTO, precision: Precision | Literal["auto"] = "auto"
) -> Model:
    """Open the base model of a source; arguments and errors as for `open_base`."""
    torch_device = find_device(device)
    family = family_of(source)
    family.check_usable(source)
    if precision == "auto":
        weights = source.weights(family.facts.denoiser).values()
        small = sum(weight.numel() for weight in weights) < SMALL
        precision = fast_precision(torch_device, small=small)
    hint = "choose a smaller base model, another --precision, or --device cpu"
    purpose = f"on {torch_device} for {source.name} in {precision}"
    with memory_errors(ModelError, purpose, hint), _invalid_configs_as_errors(source):
        model = family.open(source, Placement(torch_device, precision))
    source.close()
    return model


def compile_denoiser(model: Model, *, graphs: bool = False) -> None:
    """Compile the repeated blocks of the denoiser by torch.compile, when they are first called.

    With `graphs` the whole denoiser, to be replayed as CUDA graphs: for generation only, since an
    output is overwritten by the next one. Results are the same up to rounding. ModelError if the
    denoiser names no such blocks, or if there is no compiler for the CPU.
    """
    denoiser: Any = model.networks["denoiser"]
    if not graphs and not getattr(denoiser, "_repeated_blocks", None):
        raise ModelError(f"{model.name} has no blocks to compile", "leave out --compile")
    compilers = (os.environ.get("CXX", "g++"), "clang++", "cl")
    if model.device.type == "cpu" and not any(map(shutil.which, compilers)):
        raise ModelError("there is no C++ compiler", "install g++, or leave out --compile")
    torch.compiler.config.recompile_limit = _MAX_VARIANTS
    if graphs:  # not by blocks: an output that is used after the next block would be overwritten
        denoiser.compile(mode="reduce-overhead")
    else:
        denoiser.compile_repeated_blocks()


def find_source(
    base: str | Path, vae: str | Path | None = None, text_encoders: Sequence[str | Path] = ()
) -> Source:
    """The source of a base model with another autoencoder or other text encoders.

    Raises ModelError if a part does not exist.
    """
    source = find_base(str(base))
    if vae is None and not text_encoders:
        return source
    other_vae = None if vae is None else _check_vae(find_base(str(vae)))
    return CombinedSource(source, other_vae, [find_base(str(one)) for one in text_encoders])


def local_resolution(base: str) -> int | None:
    """The resolution that a base model was trained at, from its configs, without its weights.

    None if the base model is not on this machine or its configs do not say it.
    """
    if base != "pocket" and not exists(expanded(base)):
        return None
    source = find_base(base)
    # The other parts of a transformer alone are not known here.
    resolution = None if source.missing else family_of(source).resolution(source)
    source.close()
    return resolution


def family_of(source: Source) -> type[Model]:
    """The family of a base model; ModelError if it belongs to none, or lacks a part."""
    if source.missing:
        examples = [
            f"{'--vae' if part == 'vae' else '--text-encoder'} {example}"
            for part, example in source.missing.items()
        ]
        raise ModelError(
            f"{source.name} is a transformer without {', '.join(source.missing)}",
            f"give also {' '.join(examples)}; or for both a base model of the same family in "
            "diffusers' layout",
        )
    for name in registry.names("families"):
        family: type[Model] = registry.load("families", name)
        if family.matches(source):
            return family
    if not source.has("vae") and any(map(source.has, network_folders())):
        raise ModelError(
            f"{source.name} has no autoencoder (VAE)",
            "give one with --vae: a VAE file, or another base model of the same family",
        )
    raise ModelError(
        f"{source.name} is not a supported base model: it has "
        f"{', '.join(filter(source.has, part_folders())) or 'no known part'}",
        f"supported families: {', '.join(registry.names('families'))}; a base model is a folder "
        "in diffusers' layout, a complete checkpoint file, or a hub id",
    )


def find_base(base: str) -> Source:
    """The source of a base model: included in pinxit, a local folder or file, or on the hub.

    Raises ModelError if it does not exist.
    """
    if base == "pocket":
        return FolderSource(Path(str(files("pinxit"))) / "pocket" / "weights", base)
    path, name = expanded(base), ""
    is_local = exists(path)
    if not is_local and hub.looks_like_id(base):
        path, name = hub.fetch(base), base
    elif not is_local:
        raise ModelError(
            f"there is no model `{base[:200]}`: it is not a known name, a folder or a file",
            f"{did_you_mean(base[:200], ['pocket'])}; or give a folder, a file or a hub id "
            "(owner/name)",
        )
    name = name or str(path.resolve())
    if path.is_file():
        return CheckpointSource(path, name)
    if path.is_dir():
        return FolderSource(path, name, _parts_in_folder(path))
    raise ModelError(f"{path} is not a file or a folder", "give a folder or a file")


@contextmanager
def _invalid_configs_as_errors(source: Source) -> Generator[None]:
    """Raise any error of a library inside the block as a ModelError.

    The libraries that build networks and schedulers raise many kinds of errors on invalid configs.
    """
    try:
        yield
    except (PinxitError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ModelError(
            f"{source.name} cannot be opened: {type(error).__name__}: {reason[:200]}",
            "its configs are invalid: copy or download the base model again",
        ) from error


def _parts_in_folder(folder: Path) -> tuple[str, ...]:
    """The parts whose files are in a folder itself: of a network alone, or of a tokenizer."""
    tokenizer = ("tokenizer",) if (folder / "tokenizer.json").is_file() else ()
    config = folder / "config.json"
    if not config.is_file() or (folder / "vae").is_dir():
        return tokenizer
    content = read_json(config, folder)
    is_text_encoder = isinstance(content, dict) and "model_type" in content
    return ("text_encoder", *tokenizer) if is_text_encoder else ("vae",)


def _check_vae(source: Source) -> Source:
    if not source.has("vae") or "latent_channels" not in source.config("vae"):
        raise ModelError(
            f"{source.name} has no autoencoder",
            "give a VAE folder with config.json and weights, a VAE file, or another base model",
        )
    return source
