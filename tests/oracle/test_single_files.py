"""Single files opened by us and by diffusers' own loader: the same networks to the last bit."""

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import nn

from pinxit.families._networks import network
from pinxit.model import Placement
from pinxit.single_file import SingleFile

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


def vae(latents: int, **changed: Any) -> Any:
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(32, 64),
        latent_channels=latents,
        **changed,
    )


def unet(width: int, heads: Any, attends: tuple[bool, ...] = (True, False), **changed: Any) -> Any:
    kinds = ["CrossAttn" * level for level in attends]
    return diffusers.UNet2DConditionModel(
        block_out_channels=(64, 128),
        layers_per_block=2,
        down_block_types=[f"{kind}DownBlock2D" for kind in kinds],
        up_block_types=[f"{kind}UpBlock2D" for kind in reversed(kinds)],
        cross_attention_dim=width,
        attention_head_dim=heads,
        **changed,
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
    told = {"addition_embed_type": "text_time", "addition_time_embed_dim": 256}
    told |= {"projection_class_embeddings_input_dim": 128 + 6 * 256, "sample_size": 128}
    depths = {"transformer_layers_per_block": [1, 3], "use_linear_projection": True}
    return {
        "unet": unet(64 + 128, [1, 2], (False, True), **told, **depths),
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
    with torch.no_grad():  # such files have no projection of the first tower
        parts["text_encoder"].text_projection.weight.copy_(torch.eye(64))
    return parts


def as_one(layout: str, parts: Mapping[str, nn.Module]) -> dict[str, torch.Tensor]:
    """The tensors of a single file."""
    states = {name: part.state_dict() for name, part in parts.items()}
    found = ldm.autoencoder(states["vae"], 2)
    if layout == "sd3":
        found |= ldm.mmdit(states["transformer"], 3)
        first = {n: t for n, t in states["text_encoder"].items() if "projection" not in n}
        found |= ldm.clip(first, "text_encoders.clip_l.transformer.")
        second = ldm.clip(states["text_encoder_2"], "text_encoders.clip_g.transformer.")
        found |= {name.replace("text_model.text_pro", "text_pro"): second[name] for name in second}
    else:
        found |= ldm.unet(states["unet"], 2)
    if layout == "sd1":
        found |= ldm.clip(states["text_encoder"], "cond_stage_model.transformer.")
    if layout == "sd2":
        found |= ldm.open_clip(states["text_encoder"], "cond_stage_model.model.")
    if layout == "xl":
        found |= ldm.clip(states["text_encoder"], "conditioner.embedders.0.transformer.")
        found |= ldm.open_clip(states["text_encoder_2"], "conditioner.embedders.1.model.")
    return {name: tensor.contiguous() for name, tensor in found.items()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """Makes a small base of a layout once: the single file, and a folder for each network."""
    made: dict[str, tuple[Path, Path]] = {}

    def make(layout: str) -> tuple[Path, Path]:
        if layout not in made:
            folder = tmp_path_factory.mktemp(layout)
            torch.manual_seed(3)
            parts = {"sd1": sd1, "sd2": sd2, "xl": xl, "sd3": sd3}[layout]()
            for name, part in parts.items():
                part.save_pretrained(folder / "parts" / name)
            save_file(as_one(layout, parts), folder / "base.safetensors")
            made[layout] = folder / "base.safetensors", folder / "parts"
        return made[layout]

    return make


def theirs(kind: Any, part: str, file: Path, folder: Path) -> Any:
    if part in KINDS:
        return kind.from_single_file(str(file), config=str(folder), subfolder=part)
    from diffusers.loaders import single_file_utils

    checkpoint = single_file_utils.load_single_file_checkpoint(str(file))
    make = single_file_utils.create_diffusers_clip_model_from_ldm
    return make(kind, checkpoint, part, str(folder), torch.float32, True)


def class_of(source: SingleFile, part: str) -> Any:
    projects = part == "text_encoder_2" or source.has("transformer")
    text = transformers.CLIPTextModelWithProjection if projects else transformers.CLIPTextModel
    return KINDS.get(part, text)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_networks_are_those_of_diffusers(layout: str, saved: Any) -> None:
    file, folder = saved(layout)
    source = SingleFile(file, str(file))
    for part in sorted(path.name for path in folder.iterdir()):
        kind = class_of(source, part)
        mine = network(kind, source, part, CPU).state_dict()
        wanted = theirs(kind, part, file, folder).state_dict()
        assert mine.keys() == wanted.keys()
        assert all(torch.equal(mine[name], wanted[name]) for name in wanted)
