# pyright: standard, reportPrivateImportUsage=false
"""Z-Image: a language model, and a rectified-flow transformer; no textual inversion."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from pinxit.models.conditioning import Conditioning
from pinxit.models.family import FamilyFacts
from pinxit.models.latent_model import LatentModel
from pinxit.models.llm_encoder import LlmEncoder
from pinxit.models.model import Placement
from pinxit.models.noise_schedule import Flow
from pinxit.models.source import Source
from pinxit.models.text_encoder import EncodedPrompt

# The chat template of Qwen3 with thinking, for one message.
_TEMPLATE = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
_TEXT_LENGTH = 512
# The shift of Turbo's schedule; that of the base model is 6.
_TURBO_SHIFT = 3.0


# The layers of the blocks in the authors' code, which ComfyUI and kohya use.
_ORIGINAL_LAYERS = {
    f"{blocks}.{{}}.attention.{name}": tuple(f"{blocks}.{{}}.attention.{to}" for to in layers)
    for blocks in ("layers", "noise_refiner", "context_refiner")
    for name, layers in {"qkv": ("to_q", "to_k", "to_v"), "out": ("to_out.0",)}.items()
} | {
    name: (name,)
    for blocks in ("layers", "noise_refiner", "context_refiner")
    for name in (f"{blocks}.{{}}.feed_forward.w{{}}", f"{blocks}.{{}}.adaLN_modulation.0")
}


class ZImage(LatentModel):
    """Z-Image and Z-Image-Turbo. Prompts are read by a language model of 4B parameters.

    An embedding for such a large vocabulary is not known to be able to learn a subject, so there
    are no placeholder tokens with embeddings: a token is an alias of a rare word.
    """

    facts: ClassVar[FamilyFacts] = FamilyFacts(
        title="Z-Image",
        released="2025-11",
        architecture="z-image",
        native_size=1024,
        pipeline="ZImagePipeline",
        config_key="n_refiner_layers",
        networks={"transformer": "denoiser"},
        frozen_networks={"text_encoder": "text", "vae": "vae"},
        text_widths=(),
        context_width=3840,
        context_layer="noise_refiner.0.attention.to_q",
        denoiser_layers=r"(?:layers|noise_refiner|context_refiner)\.\d+\.(?:attention\."
        r"(?:to_q|to_k|to_v|to_out\.0|norm_q|norm_k)|feed_forward\.w[123]|adaLN_modulation\.0"
        r"|attention_norm1|attention_norm2|ffn_norm1|ffn_norm2)|all_x_embedder\.2-1"
        r"|all_final_layer\.2-1\.(?:linear|adaLN_modulation\.1)|t_embedder\.mlp\.[02]"
        r"|cap_embedder\.[01]",
        original_layers=_ORIGINAL_LAYERS,
    )

    # In `layers`, image and text are one sequence.
    layer_groups: ClassVar[Mapping[str, str]] = {
        "cross-attention": r"\.attention\.",
        "attention": r"\.attention\.",
        "transformer": r"^(layers|\w+_refiner)\.\d+\.(attention|feed_forward)\.",
        "all": r"^(layers|\w+_refiner)\.\d+\.",
        "int8": r"^(layers|\w+_refiner)\.\d+\.(attention\.to|feed_forward)",
    }

    def __init__(self, source: Source, placement: Placement) -> None:
        from diffusers.models.transformers.transformer_z_image import ZImageTransformer2DModel
        from transformers import Qwen3Model

        transformer = self.load_denoiser(ZImageTransformer2DModel, source, placement)
        text = LlmEncoder(Qwen3Model, source, placement, _TEMPLATE, layer=2, length=_TEXT_LENGTH)
        self._shift: float = source.config("scheduler").get("shift", 1.0)
        schedule = Flow(self._shift, even_steps=True)
        super().__init__(source, placement, transformer, [], schedule, [text])
        config: Any = transformer.config
        self.patch_size = config.all_patch_size[0]

    @property
    def trainable_partner(self) -> str | None:
        """The base model for Turbo, which has eight steps and no guidance."""
        return "Tongyi-MAI/Z-Image" if self._shift == _TURBO_SHIFT else None

    @property
    def generation_defaults(self) -> Mapping[str, float]:
        """The defaults of the authors; the guidance scale of their code is smaller by 1."""
        # README of github.com/Tongyi-MAI/Z-Image: 50 steps, scale 4; Turbo: 8 steps, scale 0.
        if self.trainable_partner:
            return {"steps": 8, "guidance_scale": 1.0}
        return {"steps": 50, "guidance_scale": 5.0}

    @classmethod
    def open(cls, source: Source, placement: Placement) -> Self:
        """Load the base model with frozen weights; ModelError if a part is missing or wrong."""
        return cls(source, placement)

    def guided(
        self, latents: Tensor, timestep: Tensor, conditioning: Conditioning, scale: float
    ) -> Tensor:
        """Classifier-free guidance; Turbo has none, and negative prompts have no effect on it."""
        if self.trainable_partner:
            return self.denoise(latents, timestep, conditioning[-len(latents) :])
        return super().guided(latents, timestep, conditioning, scale)

    def _predict(
        self, network: Any, latents: Tensor, timesteps: Tensor, conditioning: Conditioning
    ) -> Tensor:
        """The transformer's prediction: its time 1 has no noise, its velocity points to images."""
        states, mask = conditioning.states, conditioning.mask
        prompts = states if mask is None else [s[m > 0] for s, m in zip(states, mask, strict=True)]
        # Not in the latents' dtype: half precision rounds the timesteps.
        fractions = timesteps.to(latents.device).float().expand(len(latents)) / Flow.steps
        images = list(latents.unsqueeze(2))  # with one frame
        outputs = network(images, 1 - fractions, list(prompts), return_dict=False)[0]
        return -torch.stack(outputs).squeeze(2)

    def _combine(self, prompts: Sequence[str], encodings: Sequence[EncodedPrompt]) -> Conditioning:  # noqa: ARG002
        """The language model's states, with a mask for their lengths."""
        return Conditioning(encodings[0].states, mask=encodings[0].mask)
