# pyright: standard, reportPrivateImportUsage=false, reportAttributeAccessIssue=false
"""Networks and tokenizers of known classes, built from a source's settings and weights."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import diffusers
import torch
import transformers
from torch import Tensor, nn
from transformers import CLIPTokenizer

from pinxit.errors import ModelError, PinxitError
from pinxit.files.mapped import forget_pages
from pinxit.models.kernels.int8 import in_int8
from pinxit.models.kernels.quantize import rounded
from pinxit.models.model import Placement
from pinxit.models.source import Source, read_json
from pinxit.pocket.tokenizer import vocabulary

# They would draw progress bars of their own into ours, and warn of what we do on purpose.
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
diffusers.utils.logging.set_verbosity_error()
diffusers.utils.logging.disable_progress_bar()

_N = TypeVar("_N", bound=nn.Module)

# What a hostile file could ask for and no base has.
_LARGEST_NUMBER = 1_000_000
_MOST_LAYERS = 256
_MOST_TOKENS = 500_000

# The autoencoder's attention as diffusers called it before 0.14, and as it does since.
_FORMER = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def network(
    kind: type[_N],
    source: Source,
    part: str,
    placement: Placement,
    dtype: torch.dtype | None = None,
) -> _N:
    """A part of a base as a network of the given class: frozen, on its device.

    Its weights are in the placement's numbers unless it needs others. The class is the caller's,
    whatever the source's settings name: a file chooses no code. ModelError if settings and
    weights do not make one.
    """
    where = f"{source.name}/{part} cannot be opened as {kind.__name__}"
    config = source.config(part)
    _check_numbers(config, where)
    stored = source.weights(part)
    try:
        with torch.device("meta"):
            made = _unfilled(kind, config)
            if placement.precision == "int8" and part in ("unet", "transformer"):
                in_int8(made)
    except (TypeError, ValueError, RuntimeError, KeyError, ArithmeticError) as trouble:
        raise ModelError(
            f"{where}: its settings make none: {_first_line(trouble)}",
            "copy or download the base again",
        ) from trouble
    own = _suited(made, stored, where, placement.device, dtype or placement.dtype)
    made.requires_grad_(False).load_state_dict(own, assign=True)
    if getattr(made, "all_tied_weights_keys", {}):
        cast("Any", made).tie_weights()
    _restore_positions(made)
    return made.eval().to(placement.device)


def emptied(made: nn.Module) -> None:
    """Let a network's weights leave memory; `refill` brings them back."""
    for weight in made.parameters():
        weight.data = torch.empty(0, dtype=weight.dtype, device=weight.device)


def refill(made: nn.Module, source: Source, part: str) -> None:
    """Read an emptied network's weights again, to the bit; ModelError if they are there no more."""
    where = f"{source.name}/{part} cannot be read again"
    weights = dict(made.named_parameters())
    like = next(weight for weight in weights.values() if weight.is_floating_point())
    try:
        own = _suited(made, source.weights(part), where, like.device, like.dtype)
    except (OSError, PinxitError) as trouble:
        raise ModelError(f"{where}: {trouble}", "bring the base's files back") from trouble
    for name, weight in weights.items():
        weight.data = own[name]


def clip_tokenizer(source: Source, part: str) -> CLIPTokenizer:
    """CLIP's byte-pair tokenizer from vocab.json and merges.txt, or from tokenizer.json."""
    folder = source.tokenizer(part)
    vocabulary, merges = _vocabulary(folder)
    if len(vocabulary) > _MOST_TOKENS or len(merges) > _MOST_TOKENS:
        raise ModelError(
            f"{folder} has a vocabulary of {len(vocabulary):,} tokens",
            f"at most {_MOST_TOKENS:,} are read",
        )
    marks = {name: _mark(source.config(part), name) for name in ("pad", "bos", "eos", "unk")}
    known = {f"{name}_token": mark for name, mark in marks.items() if mark in vocabulary}
    try:
        return CLIPTokenizer(vocab=vocabulary, merges=cast("Any", merges), **known)
    except Exception as trouble:  # the tokenizers library raises nothing narrower
        raise ModelError(
            f"{folder} holds no CLIP vocabulary: {_first_line(trouble)}",
            "copy or download the base again",
        ) from trouble


def rare_words(source: Source, part: str) -> list[str]:
    """The words a base lists as meaning next to nothing, best first; most list none."""
    listed = source.tokenizer(part) / "rare_words.txt"
    return listed.read_text(encoding="utf-8").split() if listed.is_file() else []


def _unfilled(kind: Any, config: dict[str, Any]) -> Any:
    """A network of the class with these settings and no memory for its weights yet."""
    settings = getattr(kind, "config_class", None)
    if settings is None:
        own = {key: value for key, value in config.items() if not key.startswith("_")}
        return kind.from_config(own)
    # Only what describes the architecture: other keys could name code to fetch.
    described = {*vars(settings)["__annotations__"], "tie_word_embeddings"}
    return kind(settings(**{key: config[key] for key in described if key in config}))


def _suited(
    made: nn.Module,
    stored: dict[str, Tensor],
    where: str,
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """The stored tensors by a network's names, in its numbers, laid out for its device."""
    wanted = made.state_dict()
    named = {_named(key, wanted): key for key in stored}
    tied: Mapping[str, str] = getattr(made, "all_tied_weights_keys", {})
    for twin, key in tied.items():
        named.setdefault(key, named.get(twin, twin))
        named.setdefault(twin, named[key])
    _check_fit({new: stored[old] for new, old in named.items() if old in stored}, wanted, where)
    own: dict[str, Tensor] = {}
    for key in wanted:
        tensor = stored[named[key]]
        layout = torch.channels_last if tensor.ndim == 4 else torch.preserve_format
        if wanted[key].dtype == torch.int8:
            own[key], scale = rounded(tensor)
            own[key] = own[key].to(device, memory_format=layout)
            made.get_submodule(key.rpartition(".")[0]).scale = scale.to(device)
        else:
            own[key] = tensor.to(device, dtype, copy=True, memory_format=layout)
        forget_pages(tensor.nbytes)
    return own


def _check_fit(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], where: str) -> None:
    """ModelError if the stored tensors are not those of the network, by name and by shape.

    A network that was emptied has forgotten its shapes, which were checked when it was opened.
    """
    also = given.keys() - wanted.keys()
    misfits = {
        "lack": [key for key in wanted if key not in given],
        "also have": sorted(key for key in also if not key.endswith("position_ids")),
        "have another shape for": [
            key
            for key in wanted
            if key in given and wanted[key].numel() and given[key].shape != wanted[key].shape
        ],
    }
    for trouble, keys in misfits.items():
        if keys:
            others = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise ModelError(
                f"{where}: its weights {trouble} {keys[0]}{others}",
                "settings and weights must be of the same network",
            )


def _restore_positions(made: nn.Module) -> None:
    """Count positions anew: the one thing that text towers keep and files do not."""
    for module in made.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta and name == "position_ids":
                module.register_buffer(
                    name, torch.arange(buffer.shape[-1]).expand(buffer.shape), persistent=False
                )


def _named(key: str, wanted: Mapping[str, Tensor]) -> str:
    """What a stored tensor is called in the network that wants it."""
    if key in wanted:
        return key
    for other in (key.removeprefix("text_model."), f"text_model.{key}"):
        if other in wanted:
            return other
    former = re.fullmatch(r"(.*attentions\.\d+\.)(query|key|value|proj_attn)(\.\w+)", key)
    return f"{former[1]}{_FORMER[former[2]]}{former[3]}" if former else key


def _vocabulary(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Tokens with their ids, and the pairs that merge, first ones first."""
    tokens: Any = None
    pairs: Any
    if (folder / "merges.txt").is_file():
        lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
        pairs = [line.split(" ") for line in lines if line and not line.startswith("#version")]
        listed = folder / "vocab.json"
        tokens = read_json(listed) if listed.is_file() else None
    else:
        whole: Any = read_json(folder / "tokenizer.json")
        found = whole.get("model") if isinstance(whole, dict) else None
        tokens, pairs = (found or {}).get("vocab") or (), (found or {}).get("merges")
        pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in pairs or ()]
    sound = all(isinstance(pair, list) and len(pair) == 2 for pair in pairs)
    merges = [(first, second) for first, second in pairs] if sound else []
    if tokens is None:  # as CLIP's own: all else follows from what is merged
        tokens = vocabulary(merges)
    if not sound or not isinstance(tokens, dict) or not all(map(_is_id, tokens.values())):
        raise ModelError(f"{folder} holds no CLIP vocabulary", "copy or download the base again")
    return tokens, merges


def _is_id(at: object) -> bool:
    return isinstance(at, int)


def _mark(config: dict[str, Any], name: str) -> str:
    """The special token of that name as the settings write it: plain, or as a table."""
    found = config.get(f"{name}_token")
    found = found.get("content") if isinstance(found, dict) else found
    return found if isinstance(found, str) else ""


def _check_numbers(config: object, where: str, key: str = "") -> None:
    """ModelError if a number is so large that making the network would take forever."""
    if isinstance(config, Mapping):
        for name, value in config.items():
            _check_numbers(value, where, str(name))
    elif isinstance(config, list):
        for value in config:
            _check_numbers(value, where, key)
    elif isinstance(config, int) and config > (
        _MOST_LAYERS if "layers" in key else _LARGEST_NUMBER
    ):
        raise ModelError(f"{where}: {key} is {config:,}", "no network of this kind is so large")


def _first_line(trouble: BaseException) -> str:
    return (str(trouble).splitlines() or [type(trouble).__name__])[0]
