"""LoRAs of FLUX.1 under the names of XLabs, which its program x-flux and diffusers read."""

import re
from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional as F

from pinxit.adapters.lora_part import ALPHA, LayerTensors, layer_rank
from pinxit.concepts.concept import Concept
from pinxit.concepts.format import LIKELY, Target
from pinxit.concepts.joined_lora import only_denoiser_lora, original_layers
from pinxit.concepts.lora_file import AdapterFormat, modelspec_metadata
from pinxit.errors import ConceptError
from pinxit.files.open_any import OpenedFile
from pinxit.files.safetensors_file import write_tensors
from pinxit.models.joined_layers import LayerTable
from pinxit.models.packed_model import XLABS_LAYERS

_NAME = re.compile(r"(diffusion_model\.)?(double|single)_blocks\.\d+\.processor\.")
_TABLE = LayerTable(XLABS_LAYERS)
_A, _B = "lora_A.weight", "lora_B.weight"
_WIDTH = 3072
# Inputs and outputs of each layer of a block, in widths of the transformer.
_DOUBLE = {f"{n}_lora{k}": (1, size) for k in (1, 2) for n, size in (("qkv", 3), ("proj", 1))}
_SIZES = {"double_blocks": _DOUBLE, "single_blocks": {"qkv": (1, 3), "proj": (5, 1)}}


class Xlabs(AdapterFormat):
    """Attention layers with `down` and `up`, without alphas.

    x-flux needs one rank in the whole file and all layers of a block: what lacks is 0.
    """

    suffixes = (".safetensors",)
    used_by = "x-flux, diffusers; LoRAs of FLUX.1's attention only"
    variants = frozenset({"lora"})

    def confidence(self, file: OpenedFile) -> float:
        """More than LIKELY if a tensor belongs to the processor of a block."""
        return LIKELY + 0.01 if any(map(_NAME.match, file.tensors)) else 0

    def write(self, concept: Concept, target: Target) -> None:
        """Write the LoRA of the denoiser; alpha / rank is multiplied into the up factors."""
        lora = only_denoiser_lora(concept, self.lora_parts(concept))
        target.check_no_conversion()
        if lora is None:
            raise ConceptError(
                f"{concept.token} is not one LoRA of FLUX.1's transformer",
                "write it with --format kohya, or with diffusers-lora if it changes text encoders",
            )
        layers = original_layers(lora, _TABLE)
        width = min(min(len(t[_B]), t[_A].shape[1]) for t in layers.values())
        # Stable Diffusion 3 has double blocks with the same names, but narrower ones.
        if width != _WIDTH and not any(name.startswith("single") for name in layers):
            raise ConceptError(
                f"{concept.token} has {width} inputs in its layers, but FLUX.1 has {_WIDTH}",
                "write it with --format diffusers-lora",
            )
        tensors = _padded(layers, width)
        write_tensors(target.out, tensors, modelspec_metadata(concept, target.out))


def _padded(layers: Mapping[str, LayerTensors], width: int) -> dict[str, Tensor]:
    """The tensors of all layers of the blocks of some layers, with the largest rank in each."""
    rank = max(map(layer_rank, layers.values()))
    some = next(iter(layers.values()))[_A]
    tensors: dict[str, Tensor] = {}
    for block in dict.fromkeys(layer.rpartition(".")[0] for layer in layers):
        for name, (inputs, outputs) in _SIZES[block.partition(".")[0]].items():
            down, up = some.new_zeros(rank, inputs * width), some.new_zeros(outputs * width, rank)
            if values := layers.get(f"{block}.{name}"):
                own = layer_rank(values)
                scale = float(values[ALPHA]) / own
                down = F.pad(values[_A], (0, 0, 0, rank - own))
                up = F.pad(values[_B], (0, rank - own))
                up = up if scale == 1 else up.float() * scale
            path = f"{block}.processor.{name}" + ("" if "lora" in name else "_lora")
            tensors |= {f"{path}.down.weight": down, f"{path}.up.weight": up}
    return tensors
