"""Names of tensors in adapter files: the network, the layer, and which of its tensors it is.

Programs write the same layer under many names: with `.` or `_`, with prefixes for the network, the
trainer, torch.compile or peft, with the names of diffusers or of Stability's code. One grammar
reads all of them. A name that it does not have is no layer of a base model that pinxit opens.
"""

import re
from dataclasses import dataclass
from functools import cache

from pinxit.adapters.lora_part import MAGNITUDE
from pinxit.models.family import all_facts
from pinxit.models.joined_layers import LayerTable
from pinxit.models.original_names import renamed, unet_name_map, without_prefix

_MAX_NAME_LENGTH = 300  # no tensor has a longer name

# Parts of names that wrappers add: torch.compile, peft, data parallel training, attention of
# diffusers.
_WRAPPERS = {"_orig_mod", "default", "module", "processor", "base_layer", "lora_layer"}
_PEFT_NAMES = {
    "lora_A": "lora_A.weight",
    "lora_B": "lora_B.weight",
    "lora_down": "lora_A.weight",
    "lora_up": "lora_B.weight",
    "lora_mid": "lora_mid.weight",
    "down": "lora_A.weight",
    "up": "lora_B.weight",
    "lora_magnitude_vector": MAGNITUDE,
}
_OLD_END = re.compile(r"[._]lora(_linear_layer)?$")
# Tensor names of adapters that are one word.
_ADAPTER_TENSOR = re.compile(
    r"alpha|dora_scale|diff|diff_b|[wb]_norm|scalar|(hada|lokr|oft|boft|lora|vera|randlora)_\w+"
    r"(\.\w+)?|(?:reshape|set)_weight|ia3_l|on_input"
)
_TRAINER_PREFIX = re.compile(r"base_model\.model\.|lora_(unet|te\d?|transformer)[._]|lycoris_")
_PREFIX = re.compile(
    r"(?:base_model|model|lora|lycoris|text_encoders|text_model"
    r"|(?P<text_2>te2|text_encoder_2|clip_g)|(?P<text_3>te3|text_encoder_3|t5xxl)"
    r"|(?P<text>te1?|text_encoder(?:_1)?|clip_[lh]|cond_stage_model|conditioner[._]embedders[._]0)"
    r"|(?P<denoiser>diffusion_model|unet|transformer(?!_blocks)))[._]"
)
# In underscored names every `.` has become `_`; these parts of names contain `_` themselves.
_NAME_PART = re.compile(
    r"single_transformer_blocks|transformer_blocks|timestep_embedder|norm1_context|guidance_embedder|x_embedder|relative_attention_bias|norm_added_[qk]|skip_connection|"
    r"text_projection|time_text_embed|time_embedding|context_embedder|position_embedding|token_embedding|add_embedding|"
    r"conv_shortcut|time_emb_proj|output_blocks|text_embedder|conv_norm_out|input_blocks|"
    r"middle_block|final_layer_norm|down_blocks|add_[qkv]_proj|to_add_out|layer_norm[12]|ff_context|"
    r"time_embed|emb_layers|out_layers|mid_block|up_blocks|label_emb|in_layers|self_attn|linear_[12]|"
    r"pos_embed|proj_mlp|norm_[qk]|layer_norm(?!\d)|wi_[01]|conv_out|proj_out|norm_out|out_proj|conv_in|proj_in|to_out|[qkv]_proj|to_[qkv]|[^_]+"
)
# Kinds of layers by their names in diffusers; the first that matches.
LAYER_KINDS = {
    "cross-attention": re.compile(r"\battn2\b"),
    "feed-forward": re.compile(r"\b(ff|mlp|feed_forward|DenseReluDense)|proj_mlp"),
    "attention": re.compile(r"attn|SelfAttention|\battention\b"),
    "convolutions": re.compile(r"resnets|samplers|conv_(in|out)"),
}
# SDXL layers have the names of Stability's code; all its blocks have two residual layers.
SGM_NAMES = unet_name_map([2] * 4, [3] * 4, [True] * 4)
# In blocks without attention the upsampler has a smaller index.
_UPSAMPLERS = {
    f"output_blocks.{3 * block + 2}.1.conv": f"up_blocks.{block}.upsamplers.0.conv"
    for block in range(4)
}
_DIFFUSERS = {original: name for name, original in SGM_NAMES.items()} | _UPSAMPLERS
_UNET = re.compile(
    r"(?:(?:down|up)_blocks\.\d+|mid_block)\.(?:"
    r"resnets\.\d+\.(?:conv[12]|norm[12]|time_emb_proj|conv_shortcut)|(?:down|up)samplers\.0\.conv"
    r"|attentions\.\d+\.(?:norm|proj_in|proj_out|transformer_blocks\.\d+\."
    r"(?:norm[123]|attn[12]\.(?:to_[qkv]|to_out\.0)|ff\.net\.(?:0\.proj|2))))"
    r"|conv_in|conv_out|conv_norm_out|time_embedding\.linear_[12]|add_embedding\.[\w.]+"
)
# Transformers of Stable Diffusion 3, and the first blocks of FLUX.1.
_MMDIT = re.compile(
    r"transformer_blocks\.\d+\.(?:attn2?\.(?:to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out"
    r"|norm_(?:added_)?[qk])|ff(?:_context)?\.net\.(?:0\.proj|2)|norm1(?:_context)?\.linear)"
    r"|context_embedder|x_embedder|pos_embed\.proj|proj_out|norm_out\.linear"
    r"|time_text_embed\.(?:timestep|text|guidance)_embedder\.linear_[12]"
)
_T5 = re.compile(
    r"encoder\.block\.\d+\.layer\.[01]\.(?:SelfAttention\.(?:[qkvo]|relative_attention_bias)"
    r"|DenseReluDense\.(?:wi|wi_[01]|wo)|layer_norm)|encoder\.final_layer_norm|shared"
)
_CLIP = re.compile(
    r"encoder\.layers\.\d+\.(?:self_attn\.(?:[qkv]|out)_proj|mlp\.fc[12]|layer_norm[12])"
    r"|text_projection|final_layer_norm|embeddings\.(?:token|position)_embedding"
)
# What the names of other layers are from.
_OTHER_MODELS = {
    "Stable Diffusion 3 with other layers": re.compile(r"joint_blocks"),
    "FLUX.1 with other layers, or a similar transformer": re.compile(r"(single|double)_blocks"),
    "AnimateDiff": re.compile(r"motion_modules|temporal_transformer"),
    "PixArt, LTX or a similar transformer": re.compile(r"transformer_blocks[._]\d+[._]attn1"),
    "Wan, Hunyuan, Lumina or a similar transformer": re.compile(
        r"(?:^|unet[._]|model[._])(?:blocks|layers)[._]\d"
    ),
}


@cache
def _family_layers() -> str:
    """A regular expression for the layers that families state."""
    return "|".join(facts.denoiser_layers for facts in all_facts())


@cache
def _name_parts() -> re.Pattern[str]:
    """The parts of underscored names, first those that families state, the longest first."""
    words = set(re.findall(r"[a-zA-Z]+(?:_[a-zA-Z0-9]+)+", _family_layers()))
    longest_first = sorted(words, key=lambda word: (-len(word), word))
    return re.compile("|".join([*longest_first, _NAME_PART.pattern]))


@dataclass(frozen=True)
class TensorName:
    """A tensor's name in an adapter file: the path of a layer, and the name with peft's words.

    `is_peft` is True for the names that peft and diffusers write, False for those of kohya.
    """

    path: str
    tensor: str
    is_peft: bool

    @property
    def is_adapter(self) -> bool:
        """Whether only adapters have such names."""
        known = self.tensor in _PEFT_NAMES.values() or bool(_ADAPTER_TENSOR.fullmatch(self.tensor))
        return bool(self.path) and (known or bool(_TRAINER_PREFIX.match(self.path)))


def parse_tensor_name(key: str) -> TensorName:
    """Split a key into the path of a layer and the name of a tensor."""
    if len(key) > _MAX_NAME_LENGTH:
        key = key[:100] + key[-100:]
    *path, last = [part for part in key.split(".") if part not in _WRAPPERS] or [""]
    leaf = ""
    if last in ("weight", "bias") and path:
        leaf, last = last, path.pop()
        if last not in _PEFT_NAMES and path and path[-1] in _PEFT_NAMES:
            last = path.pop()  # the word before was the name of the adapter in peft
    layer = ".".join(path)
    is_old = last in ("down", "up")
    is_peft = last in ("lora_A", "lora_B") or is_old or key.startswith("base_model.model.")
    if is_old:
        name = _PEFT_NAMES[last] if leaf == "weight" else last
        return TensorName(_OLD_END.sub("", layer), name, is_peft)
    if last in _PEFT_NAMES or re.fullmatch(r"[abm][12m]", last):
        name = _PEFT_NAMES.get(last, f"{last}.{leaf}")
        return TensorName(layer, name.replace(".weight", f".{leaf or 'weight'}"), is_peft)
    if leaf:
        return TensorName(".".join((*path, last)), leaf, is_peft)
    return TensorName(layer, last, is_peft)


def joined_layers(path: str) -> tuple[tuple[str, int], ...]:
    """The diffusers names of a denoiser layer that has the name of its authors' code.

    Each has its number of outputs per input. Several if the layer joins them; empty if no family
    has such a layer.
    """
    name = path.replace("_orig_mod_", "").lstrip("_.")
    while match := _PREFIX.match(name):
        name = name[match.end() :]
    return tuple(_original_layers().parts(name, "[._]"))


@cache
def _original_layers() -> LayerTable:
    """The layers of all families under the names of their authors' code."""
    return LayerTable({k: v for facts in all_facts() for k, v in facts.original_layers.items()})


def parse_layer(path: str) -> tuple[str, str] | None:
    """The network and the diffusers name of a layer; None if no base model has such a layer."""
    network, name = None, path.replace("_orig_mod_", "").lstrip("_.")
    while match := _PREFIX.match(name):
        network, name = network or match.lastgroup, name[match.end() :]
    # diffusers writes names of kohya in which some parts still have a `.`.
    spellings = [name, ".".join(_name_parts().findall(name.replace(".", "_")))]
    return next(filter(None, (_known_layer(network, spelling) for spelling in spellings)), None)


def _known_layer(network: str | None, name: str) -> tuple[str, str] | None:
    """The network and the diffusers name of a layer whose name has a `.` between its parts."""
    layer = without_prefix(renamed(name, _DIFFUSERS) or name)
    if layer.endswith(".to_out") and network in (None, "denoiser"):
        layer = f"{layer}.0"
    if _T5.fullmatch(layer) and network != "denoiser":
        # The only text encoder of Chroma, the second of FLUX.1, the third of Stable Diffusion 3.
        return ("text" if network == "text" else "text_2", layer)
    if _CLIP.fullmatch(clip := re.sub(r"\bto_(q|k|v|out)$", r"\1_proj", layer)):
        return (network or "text", clip) if network in (None, "text", "text_2") else None
    is_known = _UNET.fullmatch(layer) or is_mmdit_layer(layer)
    return ("denoiser", layer) if is_known and network in (None, "denoiser") else None


def is_mmdit_layer(layer: str) -> bool:
    """Whether it is a layer of a transformer (Stable Diffusion 3, FLUX.1), and not of a U-Net."""
    is_known = _MMDIT.fullmatch(layer) or re.fullmatch(_family_layers(), layer)
    return not _UNET.fullmatch(layer) and is_known is not None


def other_model(path: str) -> str:
    """What a layer that `parse_layer` does not know is from, in words."""
    titles = (title for title, pattern in _OTHER_MODELS.items() if pattern.search(path))
    return next(titles, "another kind of base model")
