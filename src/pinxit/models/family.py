"""Facts about model families that do not need an open base model; each family states its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import count

from torch import Tensor

from pinxit import registry

# The prefixes of the networks in checkpoint files of CompVis's code, by folder.
COMPVIS_PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "cond_stage_model.",
}


@dataclass(frozen=True)
class KohyaNames:
    """What kohya's trainer calls a family and its layers.

    `prefixes` are the names of the networks in names of tensors. With `original_unet`, the U-Net's
    layers have the names of the authors' code. `own_layers` is a regular expression that finds
    layers (`network.layer`) which only this family has.
    """

    version: str
    prefixes: Mapping[str, str]
    original_unet: bool = False
    own_layers: str = "(?!)"


@dataclass(frozen=True)
class FamilyFacts:
    """What files and formats need to know of a family.

    `released` is year and month. `networks` are the networks that can be trained, by their folder
    in diffusers' layout, and `frozen_networks` the other ones. `text_widths` are
    the widths of the text encoders' embeddings, and `context_width` is the number of inputs of the
    denoiser's layers named `context_layer`, 0 if it does not tell the family. `architecture` is
    the name in modelspec metadata, and `velocity_architecture` that of models with v-prediction.
    `single_file_prefixes` are the prefixes of the networks in a checkpoint file by folder; empty
    if pinxit does not write such files. `pipeline` is the class of its pipelines in diffusers.
    `config_key` is a key that only configs of this family's denoisers have, "" if its parts alone
    tell it from other families.
    `denoiser_layers` is a regular expression for the names of the denoiser's layers in adapter
    files, if no older family has such layers; words that contain `_` are written in full.
    `original_layers` are names of the authors' code with their diffusers names: several for a layer
    that joins them, in which each has as many outputs as inputs, or with `*4` four times as many.
    `{}` is the number of a block. Of several names for a layer, files are written with the first.
    """

    title: str
    released: str
    architecture: str
    native_size: int
    networks: Mapping[str, str]
    text_widths: tuple[int, ...]
    frozen_networks: Mapping[str, str] = field(default_factory=lambda: {"vae": "vae"})
    context_width: int = 0
    context_layer: str = "attn2.to_k"
    text_layer: str = "self_attn.q_proj"
    velocity_architecture: tuple[str, int] | None = None
    single_file_prefixes: Mapping[str, str] = field(default_factory=dict[str, str])
    kohya: KohyaNames | None = None
    pipeline: str = ""
    config_key: str = ""
    denoiser_layers: str = "(?!)"
    original_layers: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])

    @property
    def encoder_widths(self) -> dict[str, int]:
        """The widths of the text encoders' embeddings by the names of the encoders."""
        names = (f"text_{number}" if number > 1 else "text" for number in count(1))
        return dict(zip(names, self.text_widths, strict=False))

    @property
    def denoiser(self) -> str:
        """The folder of the denoiser."""
        return next(folder for folder, name in self.networks.items() if name == "denoiser")


@cache
def all_facts() -> tuple[FamilyFacts, ...]:
    """The facts of all families, oldest first."""
    families = (registry.load("families", name) for name in registry.names("families"))
    facts: list[FamilyFacts] = [family.facts for family in families]
    return tuple(sorted(facts, key=lambda family: family.released))


@cache
def trainable_networks() -> Mapping[str, str]:
    """The networks that can be trained in any family, by folder; denoisers are first."""
    networks = {folder: name for facts in all_facts() for folder, name in facts.networks.items()}
    return dict(sorted(networks.items(), key=lambda network: network[1] != "denoiser"))


@cache
def network_folders() -> tuple[str, ...]:
    """The folders of all networks that a base model of any family can have."""
    frozen = {folder for facts in all_facts() for folder in facts.frozen_networks}
    return (*trainable_networks(), *sorted(frozen - trainable_networks().keys()))


@cache
def part_folders() -> tuple[str, ...]:
    """The folders of all parts that a base model of any family can have."""
    encoders = (folder for folder in network_folders() if folder.startswith("text_encoder"))
    tokenizers = (folder.replace("text_encoder", "tokenizer") for folder in encoders)
    return (*network_folders(), "scheduler", *tokenizers)


def family_of_denoiser(weights: Mapping[str, Tensor]) -> FamilyFacts | None:
    """The family of a denoiser's weights, by the width of its cross-attention input."""
    for facts in all_facts():
        layer = f"{facts.context_layer}.weight"
        keys = (tensor for name, tensor in weights.items() if name.endswith(layer))
        first = next(keys, None)
        if first is not None and first.shape[1] == facts.context_width:
            return facts
    return None
