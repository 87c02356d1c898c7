"""A tuned base as one checkpoint file with CompVis's or Stability's names (SD 1, 2 and XL)."""

from torch import Tensor

from pinxit.concepts.concept import Concept
from pinxit.concepts.format import CARRIED, Format, Target
from pinxit.concepts.full_model_file import completed, metadata, source_of, tuned
from pinxit.errors import ConceptError
from pinxit.files.atomic_write import replace_tensors
from pinxit.files.open_any import Opened
from pinxit.models import original_names
from pinxit.models.source import Source

_DENOISER = "model.diffusion_model."


class SingleFile(Format):
    """Denoiser, autoencoder and text encoders side by side."""

    holds = ("networks",)
    endings = (".safetensors",)
    used_by = "AUTOMATIC1111, Forge, ComfyUI, InvokeAI, diffusers' `from_single_file`"

    def recognises(self, found: Opened) -> bool:
        """By the denoiser's names."""
        return any(name.startswith(_DENOISER) for name in found.content)

    def read(self, found: Opened) -> Concept:
        """The networks that were tuned, by the file's own word, or all that could be."""
        return tuned(found, found.text(CARRIED))

    def write(self, concept: Concept, target: Target) -> None:
        """The base with the tuned networks in place of its own."""
        source = source_of(concept, target)
        flat: dict[str, Tensor] = {}
        for part, weights in completed(concept, source, target.numbers):
            prefix, named = _placed(part, weights, source)
            flat |= {prefix + name: tensor for name, tensor in named.items()}
        replace_tensors(target.out, flat, metadata(concept, source, flat, target.out.stem))


def _placed(part: str, weights: dict[str, Tensor], source: Source) -> tuple[str, dict[str, Tensor]]:
    """Where a network's weights begin in the file, and their names from there on."""
    if part == "unet":
        return _DENOISER, original_names.denoiser(weights)
    if part == "vae":
        return "first_stage_model.", original_names.autoencoder(weights)
    if part not in ("text_encoder", "text_encoder_2") or source.has("transformer"):
        raise ConceptError(
            f"{source.name} has a `{part}`, and single files of SD 1, 2 and XL have none",
            "write a folder with --format diffusers",
        )
    # OpenCLIP's encoders have plain GELU, OpenAI's a quicker one.
    openai = source.config(part).get("hidden_act", "quick_gelu") == "quick_gelu"
    alone = not source.has("text_encoder_2")
    prefix = "cond_stage_model." if alone else f"conditioner.embedders.{'_2' in part:d}."
    return prefix, original_names.clip(weights) if openai else original_names.open_clip(weights)
