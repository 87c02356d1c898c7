# pyright: standard, reportPrivateImportUsage=false, reportAttributeAccessIssue=false
"""Building networks and tokenizers of known classes from a source's configs and weights."""

import re
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from pinxit.errors import ModelError, PinxitError, first_line, listed
from pinxit.files.mapped import forget_pages
from pinxit.models.config_limits import check_network_config
from pinxit.models.device import multiplies_int8
from pinxit.models.kernels.int8 import convert_to_int8
from pinxit.models.kernels.quantize import INT8, NF4, quantize
from pinxit.models.kernels.weight_only import quantize_denoiser
from pinxit.models.model import Placement
from pinxit.models.source import Source

# Functions that compute buffers which no file has from those without values, by name.
Buffers = Mapping[str, Callable[[Tensor], Tensor]]

_N = TypeVar("_N", bound=nn.Module)

# Tensors that networks do not need: their values are known, or they are for generating text.
_NOT_NEEDED = ("position_ids", "lm_head.weight")

# The autoencoder's attention layers: their names in diffusers before 0.14, and since.
_OLD_ATTENTION_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def load_network(
    kind: type[_N],
    source: Source,
    part: str,
    placement: Placement,
    quantized_layers: str = "",
    buffers: Buffers | None = None,
    *,
    lazy: bool = False,
) -> _N:
    """A part of a base model as a network of class `kind`, frozen, on the placement's device.

    The weights have the placement's dtype; with a quantized precision, the layers whose names match
    `quantized_layers` have 8 or 4 bits. The caller chooses the class, whatever class the config
    names: a file must not choose code. If `lazy`, its weights are released: `reload_weights` reads
    them. Raises ModelError if config and weights do not match.
    """
    silence_libraries()
    context = f"cannot load {source.name}/{part} as {kind.__name__}"
    config = source.config(part)
    check_network_config(config, context)
    stored = source.weights(part)
    try:
        with torch.device("meta"):
            network = _network_without_weights(kind, config)
            if placement.is_quantized and quantized_layers:
                _quantize_layers(network, quantized_layers, placement)
    except (TypeError, ValueError, RuntimeError, KeyError, ArithmeticError) as error:
        raise ModelError(
            f"{context}: its config is invalid: {first_line(error)}",
            "copy or download the base model again",
        ) from error
    weights = _matching_weights(
        network, stored, context, placement.device, placement.dtype, lazy=lazy
    )
    network.requires_grad_(False).load_state_dict(weights, assign=True)
    if getattr(network, "all_tied_weights_keys", {}):
        cast("Any", network).tie_weights()
    _restore_buffers(network, buffers or {})
    if lazy:
        release_weights(network)
    return network.eval().to(placement.device)


def _quantize_layers(network: nn.Module, layers: str, placement: Placement) -> None:
    """Convert layers to the placement's precision: integer products where a CPU has them."""
    if multiplies_int8(placement):
        convert_to_int8(network, layers)
    else:
        quantize_denoiser(network, layers, NF4 if placement.precision == "nf4" else INT8)


def release_weights(network: nn.Module) -> None:
    """Remove a network's weights from memory; `reload_weights` reads them again."""
    for weight in network.parameters():
        weight.data = torch.empty(0, dtype=weight.dtype, device=weight.device)


def reload_weights(network: nn.Module, source: Source, part: str) -> None:
    """Read a network's released weights again; ModelError if the files are gone or changed."""
    context = f"cannot read the weights of {source.name}/{part} again"
    parameters = dict(network.named_parameters())
    reference = next(weight for weight in parameters.values() if weight.is_floating_point())
    try:
        weights = _matching_weights(
            network, source.weights(part), context, reference.device, reference.dtype
        )
    except (OSError, PinxitError) as error:
        raise ModelError(f"{context}: {error}", "restore the base model's files") from error
    for name, parameter in parameters.items():
        parameter.data = weights[name]


@cache
def silence_libraries() -> None:
    """Turn off progress bars of the libraries, and warnings of what is done here on purpose."""
    import diffusers
    import transformers

    # Classes of diffusers warn of names that other files of diffusers use.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"diffusers\.")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()


def _network_without_weights(kind: Any, config: dict[str, Any]) -> Any:
    """A network of class `kind` with this config, without memory for its weights."""
    config_class = getattr(kind, "config_class", None)
    if config_class is None:
        return kind.from_config(
            {key: value for key, value in config.items() if not key.startswith("_")}
        )
    # Only keys that describe the architecture: others could name code to download.
    allowed = {*vars(config_class)["__annotations__"], "tie_word_embeddings", "rope_theta"}
    return kind(config_class(**{key: config[key] for key in allowed if key in config}))


def _matching_weights(
    network: nn.Module,
    stored: dict[str, Tensor],
    context: str,
    device: torch.device,
    dtype: torch.dtype,
    *,
    lazy: bool = False,
) -> dict[str, Tensor]:
    """The stored tensors under the network's names, with its dtype and memory layout.

    If `lazy`, those of parameters have a shape, but no content and memory.
    """
    expected = network.state_dict()
    stored_names = {_network_name(name, expected): name for name in stored}
    tied: Mapping[str, str] = getattr(network, "all_tied_weights_keys", {})
    for tied_name, name in tied.items():
        stored_names.setdefault(name, stored_names.get(tied_name, tied_name))
        stored_names.setdefault(tied_name, stored_names[name])
    renamed = {new: stored[old] for new, old in stored_names.items() if old in stored}
    _check_names_and_shapes(renamed, expected, context)
    weights: dict[str, Tensor] = {}
    unread = {n for n, _ in network.named_parameters(remove_duplicate=False)} if lazy else ()
    for name in expected:
        if name in unread:
            weights[name] = torch.empty((), dtype=dtype).expand(expected[name].shape)
            continue
        tensor = stored[stored_names[name]]
        layout = torch.channels_last if tensor.ndim == 4 else torch.preserve_format
        if expected[name].dtype in (INT8, NF4):
            layer = network.get_submodule(name.rpartition(".")[0])
            values, scale = quantize(tensor, expected[name].dtype)
            weights[name], layer.scale = (values.to(device, memory_format=layout), scale.to(device))
            if expected[name].is_meta:  # it had the shape of the weight in the file
                layer.weight = nn.Parameter(values.to("meta"), requires_grad=False)
        else:
            weights[name] = tensor.to(device, dtype, copy=True, memory_format=layout)
        forget_pages(tensor.nbytes)
    return weights


def _check_names_and_shapes(
    stored: Mapping[str, Tensor], expected: Mapping[str, Tensor], context: str
) -> None:
    """Raise ModelError if the stored tensors differ from the network's in name or shape.

    Released weights have no shape any more; it was checked when the network was loaded.
    """
    unexpected = stored.keys() - expected.keys()
    differences = {
        "lack": [name for name in expected if name not in stored],
        "also have": sorted(name for name in unexpected if not name.endswith(_NOT_NEEDED)),
        "have another shape for": [
            name
            for name, weight in expected.items()
            if name in stored and weight.numel() and stored[name].shape != weight.shape
        ],
    }
    for difference, names in differences.items():
        if names:
            raise ModelError(
                f"{context}: its weights {difference} {listed(names, 1)}",
                "config and weights must be of the same network",
            )


def _restore_buffers(network: nn.Module, functions: Buffers) -> None:
    """Compute the buffers that files do not contain, also position ids and rotary frequencies."""
    for path, module in network.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if not buffer.is_meta:
                continue
            if f"{path}.{name}" in functions:
                values = functions[f"{path}.{name}"](buffer)
            elif name == "position_ids":
                values = torch.arange(buffer.shape[-1]).expand(buffer.shape)
            else:
                values = getattr(type(module)(cast("Any", module).config), name)
            module.register_buffer(name, values, persistent=False)


def _network_name(name: str, expected: Mapping[str, Tensor]) -> str:
    """The name in the network of a stored tensor."""
    if name in expected:
        return name
    bare = name.removeprefix("text_model.").removeprefix("model.")
    for candidate in (bare, f"text_model.{name}"):
        if candidate in expected:
            return candidate
    match = re.fullmatch(r"(.*attentions\.\d+\.)(query|key|value|proj_attn)(\.\w+)", name)
    return f"{match[1]}{_OLD_ATTENTION_NAMES[match[2]]}{match[3]}" if match else name
