"""Single files opened by pinxit and by diffusers: the networks are bit-identical."""

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import diffusers
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from pinxit import registry
from pinxit.errors import ModelError
from pinxit.models.checkpoint_source import CheckpointSource
from pinxit.models.loading import load_network
from pinxit.models.model import Placement
from pinxit.models.open_base import open_base
from pinxit.models.tokenizers import clip_tokenizer

_HERE = Path(__file__).parent
_spec = importlib.util.spec_from_file_location("ldm_names", _HERE / "ldm_names.py")
assert _spec and _spec.loader
ldm = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(ldm)

LAYOUTS = ("sd1", "sd2", "xl", "sd3")
CPU = Placement(torch.device("cpu"), "fp32")
KINDS: dict[str, Any] = {
    "unet": diffusers.UNet2DConditionModel,
    "transformer": diffusers.SD3Transformer2DModel,
    "vae": diffusers.AutoencoderKL,
}


def clip(width: int, projected: int = 0, act: str = "quick_gelu") -> Any:
    settings = transformers.CLIPTextConfig(
        vocab_size=200,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=width // 64,
        hidden_act=act,
        projection_dim=projected or width,
    )
    kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    return kind(settings)


def vae(latents: int, **changes: Any) -> Any:
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(32, 64),
        latent_channels=latents,
        **changes,
    )


def unet(width: int, heads: Any, attends: tuple[bool, ...] = (True, False), **changes: Any) -> Any:
    prefixes = ["CrossAttn" if attention else "" for attention in attends]
    return diffusers.UNet2DConditionModel(
        block_out_channels=(64, 128),
        layers_per_block=2,
        down_block_types=[f"{prefix}DownBlock2D" for prefix in prefixes],
        up_block_types=[f"{prefix}UpBlock2D" for prefix in reversed(prefixes)],
        cross_attention_dim=width,
        attention_head_dim=heads,
        **changes,
    )


def sd1() -> dict[str, Any]:
    return {
        "unet": unet(64, 8, sample_size=64),
        "vae": vae(4, scaling_factor=0.18215),
        "text_encoder": clip(64),
    }


def sd2() -> dict[str, Any]:
    parts = sd1() | {"text_encoder": clip(64, act="gelu")}
    return parts | {"unet": unet(64, [1, 2], sample_size=64, use_linear_projection=True)}


def xl() -> dict[str, Any]:
    config = {"addition_embed_type": "text_time", "addition_time_embed_dim": 256}
    config |= {"projection_class_embeddings_input_dim": 128 + 6 * 256, "sample_size": 128}
    depths = {"transformer_layers_per_block": [1, 3], "use_linear_projection": True}
    return {
        "unet": unet(64 + 128, [1, 2], (False, True), **config, **depths),
        "vae": vae(4, scaling_factor=0.13025),
        "text_encoder": clip(64),
        "text_encoder_2": clip(128, 128, "gelu"),
    }


def sd3() -> dict[str, Any]:
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=128,
        num_layers=3,
        num_attention_heads=2,
        joint_attention_dim=192,
        caption_projection_dim=128,
        pooled_projection_dim=64 + 128,
        pos_embed_max_size=8,
        dual_attention_layers=(0, 1),
        qk_norm="rms_norm",
    )
    bare = {"use_quant_conv": False, "use_post_quant_conv": False}
    parts = {
        "transformer": transformer,
        "vae": vae(16, scaling_factor=1.5305, shift_factor=0.0609, **bare),
        "text_encoder": clip(64, 64),
        "text_encoder_2": clip(128, 128, "gelu"),
    }
    with torch.no_grad():  # such files have no projection of the first text encoder
        parts["text_encoder"].text_projection.weight.copy_(torch.eye(64))
    return parts


def single_file_tensors(layout: str, parts: Mapping[str, nn.Module]) -> dict[str, torch.Tensor]:
    """The tensors of a single file."""
    states = {name: part.state_dict() for name, part in parts.items()}
    tensors = ldm.autoencoder(states["vae"], 2)
    if layout == "sd3":
        tensors |= ldm.mmdit(states["transformer"], 3)
        first = {n: t for n, t in states["text_encoder"].items() if "projection" not in n}
        tensors |= ldm.clip(first, "text_encoders.clip_l.transformer.")
        second = ldm.clip(states["text_encoder_2"], "text_encoders.clip_g.transformer.")
        tensors |= {
            name.replace("text_model.text_pro", "text_pro"): second[name] for name in second
        }
    else:
        tensors |= ldm.unet(states["unet"], 2)
    if layout == "sd1":
        tensors |= ldm.clip(states["text_encoder"], "cond_stage_model.transformer.")
    if layout == "sd2":
        tensors |= ldm.open_clip(states["text_encoder"], "cond_stage_model.model.")
    if layout == "xl":
        tensors |= ldm.clip(states["text_encoder"], "conditioner.embedders.0.transformer.")
        tensors |= ldm.open_clip(states["text_encoder_2"], "conditioner.embedders.1.model.")
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """Saves a small base model of a layout once: a single file, and a folder for each network."""
    paths: dict[str, tuple[Path, Path]] = {}

    def make(layout: str) -> tuple[Path, Path]:
        if layout not in paths:
            folder = tmp_path_factory.mktemp(layout)
            torch.manual_seed(3)
            parts = {"sd1": sd1, "sd2": sd2, "xl": xl, "sd3": sd3}[layout]()
            for name, part in parts.items():
                part.save_pretrained(folder / "parts" / name)
            save_file(single_file_tensors(layout, parts), folder / "base.safetensors")
            paths[layout] = folder / "base.safetensors", folder / "parts"
        return paths[layout]

    return make


def load_with_diffusers(kind: Any, part: str, file: Path, folder: Path) -> Any:
    if part in KINDS:
        return kind.from_single_file(str(file), config=str(folder), subfolder=part)
    from diffusers.loaders import single_file_utils

    checkpoint = single_file_utils.load_single_file_checkpoint(str(file))
    make = single_file_utils.create_diffusers_clip_model_from_ldm
    return make(kind, checkpoint, part, str(folder), torch.float32, True)


def class_of(source: CheckpointSource, part: str) -> Any:
    projects = part == "text_encoder_2" or source.has("transformer")
    text = transformers.CLIPTextModelWithProjection if projects else transformers.CLIPTextModel
    return KINDS.get(part, text)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_networks_equal_those_of_diffusers(layout: str, saved: Any) -> None:
    file, folder = saved(layout)
    source = CheckpointSource(file, str(file))
    for part in sorted(path.name for path in folder.iterdir()):
        kind = class_of(source, part)
        actual = load_network(kind, source, part, CPU).state_dict()
        expected = load_with_diffusers(kind, part, file, folder).state_dict()
        assert actual.keys() == expected.keys()
        assert all(torch.equal(actual[name], expected[name]) for name in expected)


FAMILIES = {layout: f"stable-diffusion-{layout.removeprefix('sd')}" for layout in LAYOUTS}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_family_is_detected(layout: str, saved: Any) -> None:
    model = open_base(saved(layout)[0])
    assert registry.name_of(type(model)) == FAMILIES[layout]
    assert model.default_size == {"sd1": 64, "sd2": 64, "xl": 128, "sd3": 128}[layout] * 2


def test_the_file_name_does_not_matter(saved: Any, tmp_path: Path) -> None:
    """A torch pickle with another extension, in half precision, with a trainer's additions."""
    tensors = load_file(saved("sd1")[0])
    half_precision = {name: tensor.half() for name, tensor in tensors.items()}
    torch.save({"state_dict": half_precision, "global_step": 7}, tmp_path / "base.safetensors")
    model = open_base(tmp_path / "base.safetensors")
    original = tensors["model.diffusion_model.out.2.weight"]
    weight = model.networks["denoiser"].state_dict()["conv_out.weight"]
    assert weight.dtype == torch.float32
    assert torch.equal(weight, original.half().float())
    assert not torch.equal(weight, original)


def changed_file(saved: Any, tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    tensors = load_file(saved("sd2")[0])
    change(tensors)
    save_file(tensors, tmp_path / "base.safetensors")
    return tmp_path / "base.safetensors"


VELOCITY_TENSOR = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"


@pytest.mark.parametrize(
    ("change", "yaml", "velocity", "size"),
    [
        (lambda w: w, "", False, 64),
        (lambda w: w, 'parameterization: "v"', True, 96),
        (lambda w: w.update({"v_pred": torch.ones(1)}), "", True, 96),
        (lambda w: w.update({"v_pred": torch.ones(1)}), "parameterization: eps", False, 64),
        (lambda w: w.update({VELOCITY_TENSOR: torch.tensor([-0.2, 0.2])}), "", True, 96),
        (lambda w: w.update({VELOCITY_TENSOR: torch.tensor([-0.02, 0.02])}), "", False, 64),
    ],
)
def test_v_prediction_is_detected(
    saved: Any, tmp_path: Path, change: Any, yaml: str, velocity: bool, size: int
) -> None:
    file = changed_file(saved, tmp_path, change)
    if yaml:
        file.with_suffix(".yaml").write_text(f"model:\n  params:\n    {yaml}\n")
    source = CheckpointSource(file, "it")
    kind = "v_prediction" if velocity else "epsilon"
    assert source.config("scheduler")["prediction_type"] == kind
    assert source.config("unet")["sample_size"] == size


def without(*starts: str) -> Callable[[dict[str, Any]], object]:
    return lambda w: [w.pop(name) for name in list(w) if name.startswith(starts)]


def radiance(prefix: str) -> Callable[[dict[str, Any]], object]:
    """A transformer alone, of which two names tell the family."""

    def change(weights: dict[str, Any]) -> None:
        weights.clear()
        for name in ("distilled_guidance_layer.in_proj.weight", "nerf_blocks.0.norm.scale"):
            weights[prefix + name] = torch.zeros(2, 2)

    return change


def inpainting(weights: dict[str, Any]) -> None:
    weights["model.diffusion_model.input_blocks.0.0.weight"] = torch.zeros(64, 9, 3, 3)


@pytest.mark.parametrize(
    ("change", "message", "hint"),
    [
        (
            without("cond_stage"),
            "is not a complete base model: it lacks text_encoder",
            "text encoders",
        ),
        (without("model."), "is not a complete base model: it lacks unet", "checkpoint"),
        (without("first_stage"), "has no autoencoder (VAE)", "--vae"),
        (without("model", "cond", "first"), "is not a supported base model: it has 0", "inspect"),
        (without("model.diffusion_model.out.2.bias"), "its weights lack conv_out.bias", "same"),
        (inpainting, "expects 9 input channels, but its VAE has 4", "text-to-image"),
        (without("model.diffusion_model.input_blocks.1"), "the unet of ", "again"),
        (lambda w: w.update({"first_stage_model.encoder.down.999999999.x": torch.ones(1)}), "", ""),
        (lambda w: w.update(edm_mean=torch.zeros(4)), "EDM noise schedule", "another"),
        (radiance(""), "is Chroma-Radiance", "Chroma1-HD"),
        (radiance("model.diffusion_model."), "is Chroma-Radiance", "Chroma1-HD"),
    ],
)
def test_unsupported_files_raise_errors(
    saved: Any, tmp_path: Path, change: Any, message: str, hint: str
) -> None:
    with pytest.raises(ModelError) as caught:
        open_base(changed_file(saved, tmp_path, change))
    assert message in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.long
def test_another_vae(saved: Any, tmp_path: Path) -> None:
    """A folder, or a file with either names; the scaling factor is its own or the base model's."""
    file, parts = saved("sd1")
    torch.manual_seed(9)
    other = vae(4, scaling_factor=0.5)
    other.save_pretrained(tmp_path / "folder")
    state = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    save_file(state, tmp_path / "named.safetensors")
    save_file(
        {name: tensor.contiguous() for name, tensor in ldm.autoencoder(state, 2, "").items()},
        tmp_path / "ldm.safetensors",
    )
    source = CheckpointSource(file, "it")
    paths = tmp_path / "folder", tmp_path / "named.safetensors", tmp_path / "ldm.safetensors"
    for path, scale in zip(paths, (0.5, 0.18215, 0.18215), strict=True):
        model = open_base(file, vae=path)
        assert model.source.vae == str(path)
        assert model.hash != source.hash
        opened = cast("Any", model).network("vae")
        assert all(torch.equal(opened.state_dict()[name], state[name]) for name in state)
        assert opened.config["scaling_factor"] == scale
    with pytest.raises(ModelError, match="has no autoencoder"):
        open_base(file, vae=parts / "text_encoder")


def test_the_tokenizer_is_clips() -> None:
    """The ids that CLIP's original tokenizer gives; the vocabulary is part of pinxit."""
    source = CheckpointSource.__new__(CheckpointSource)
    source._parts = source._layout = {}
    tokenizer = clip_tokenizer(source, "tokenizer")
    assert tokenizer.encode("a photo of a cat", add_special_tokens=False) == [
        320,
        1125,
        539,
        320,
        2368,
    ]
    ids = tokenizer.encode("Stable Diffusion, 1.5!", add_special_tokens=False)
    assert ids == [10492, 18656, 9364, 267, 272, 269, 276, 256]
    assert tokenizer.encode("sks dog", add_special_tokens=False) == [48136, 1929]
    assert len(tokenizer.get_vocab()) == 49408
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (49406, 49407)
