"""FLUX.1, Chroma and Z-Image from files as their authors and ComfyUI ship them."""

import importlib.util
import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, cast

import diffusers
import numpy as np
import pytest
import torch
import transformers
from diffusers.loaders import single_file_utils as converters
from safetensors.torch import load_file, save_file
from torch import Tensor

from pinxit import registry
from pinxit.concepts.read import read_concept
from pinxit.errors import ConceptError, FileError, ModelError
from pinxit.generation.request import GenerationRequest
from pinxit.generation.sample import generate_images
from pinxit.models import checkpoint_source
from pinxit.models.checkpoint_source import CheckpointSource, _Part
from pinxit.models.joined_layers import LayerTable
from pinxit.models.open_base import open_base
from tests.oracle.original_layers import to_original

_spec = importlib.util.spec_from_file_location("ldm", Path(__file__).parent / "ldm_names.py")
assert _spec and _spec.loader
ldm = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(ldm)

PROMPT = "a photo of a red dog"
LAYOUTS = {"chroma": "chroma", "flux-1": "flux_1", "z-image": "z_image"}
HEAD = 128  # the only width of a head that files have
every_family = pytest.mark.parametrize("family", LAYOUTS)
Made = Callable[[str], dict[str, Path]]


def table_of(family: str) -> LayerTable:
    """The names of a family's layers in checkpoints."""
    path = checkpoint_source._LAYOUTS / f"{LAYOUTS[family]}.json"
    part = _Part(**json.loads(path.read_text())["transformer"])
    return LayerTable({**registry.load("families", family).facts.original_layers, **part.names})


def transformer(family: str) -> Any:
    if family == "flux-1":
        return diffusers.FluxTransformer2DModel(
            num_layers=2,
            num_single_layers=1,
            num_attention_heads=1,
            joint_attention_dim=48,
            pooled_projection_dim=64,
            guidance_embeds=True,
        )
    if family == "chroma":
        return diffusers.ChromaTransformer2DModel(
            num_layers=2,
            num_single_layers=1,
            num_attention_heads=1,
            joint_attention_dim=48,
            approximator_hidden_dim=32,
            approximator_layers=2,
        )
    network: Any = diffusers.ZImageTransformer2DModel(
        dim=HEAD, n_layers=2, n_refiner_layers=1, n_heads=1, n_kv_heads=1, cap_feat_dim=24
    )
    for token in (network.x_pad_token, network.cap_pad_token):
        torch.nn.init.normal_(token)
    return network


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


@pytest.fixture(scope="module")
def made(bases: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A folder in diffusers' layout, and files with the same networks, by name."""

    @cache
    def make(family: str) -> dict[str, Path]:
        root = tmp_path_factory.mktemp(family)
        return files_of(family, root, save_folder(family, bases(family), root / "folder"))

    return make


def save_folder(family: str, base: Path, folder: Path) -> Path:
    """A base model with the widths of heads and the vocabulary that files have."""
    torch.manual_seed(5)
    shutil.copytree(base, folder)
    encoders = {}
    t5 = {"d_model": 48, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    t5 |= {"vocab_size": 64, "feed_forward_proj": "gated-gelu"}
    if family == "chroma":
        encoders = {"text_encoder": transformers.T5EncoderModel(transformers.T5Config(**t5))}
    if family == "flux-1":
        config = transformers.CLIPTextConfig(
            hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=1
        )
        encoders = {
            "text_encoder": transformers.CLIPTextModel(config),
            "text_encoder_2": transformers.T5EncoderModel(transformers.T5Config(**t5)),
        }
        shutil.copytree(checkpoint_source._VOCABULARY, folder / "tokenizer", dirs_exist_ok=True)
        (folder / "tokenizer" / "tokenizer.json").unlink(missing_ok=True)
    own: Any = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32,) * 4,
        latent_channels=16,
        sample_size=32,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    shutil.rmtree(folder / "vae")
    for name, network in {"transformer": transformer(family), "vae": own, **encoders}.items():
        network.save_pretrained(folder / name)
    return folder


def files_of(family: str, root: Path, folder: Path) -> dict[str, Path]:
    paths = {"folder": folder, "tokenizer": folder / "tokenizer"}
    if family == "flux-1":
        paths["tokenizer"] = folder / "tokenizer_2"
    own = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    vae = ldm.autoencoder(own, 4, "")
    denoiser = to_original(table_of(family), transformer_weights(folder))
    everything = prefixed("model.diffusion_model.", denoiser) | prefixed("vae.", vae)
    files = {"transformer": denoiser, "vae": vae}
    names = {
        "chroma": {"text_encoder": "t5xxl"},
        "flux-1": {"text_encoder": "clip_l", "text_encoder_2": "t5xxl"},
        "z-image": {"text_encoder": "qwen3_4b"},
    }[family]
    for part, name in names.items():
        weights = load_file(folder / part / "model.safetensors")
        if family == "z-image":
            weights = prefixed("model.", weights)
        if name == "clip_l":
            weights = ldm.clip(weights, "")
        files[name] = weights
        everything |= prefixed(f"text_encoders.{name}.transformer.", weights)
    for name, tensors in (files | {"all": everything}).items():
        paths[name] = root / f"{name}.safetensors"
        save_file({n: t.contiguous() for n, t in tensors.items()}, paths[name])
    return paths


def transformer_weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")


def companions(paths: dict[str, Path]) -> dict[str, Any]:
    encoders = [paths[name] for name in ("clip_l", "t5xxl", "qwen3_4b") if name in paths]
    return {"vae": paths["vae"], "text_encoders": [*encoders, paths["tokenizer"]]}


def image(path: Path, **others: Any) -> Tensor:
    request = GenerationRequest(prompt=PROMPT, steps=2, width=32)
    (generated,) = generate_images(open_base(path, **others), request)
    return generated.latents


@pytest.mark.long
@every_family
def test_a_transformer_with_companions_is_as_the_folder(family: str, made: Made) -> None:
    paths = made(family)
    model = open_base(paths["transformer"], **companions(paths))
    assert registry.name_of(type(model)) == family
    expected = image(paths["folder"])
    assert torch.equal(image(paths["transformer"], **companions(paths)), expected)
    # A folder gives the text encoders as well as files do, and a whole file has them.
    others = {"vae": paths["folder"], "text_encoders": [paths["folder"]]}
    assert torch.equal(image(paths["transformer"], **others), expected)
    assert torch.equal(image(paths["all"], text_encoders=[paths["tokenizer"]]), expected)


@every_family
def test_the_error_for_a_lone_transformer_names_missing_parts(family: str, made: Made) -> None:
    paths = made(family)
    with pytest.raises(ModelError) as caught:
        open_base(paths["transformer"])
    assert "is a transformer without vae, text_encoder" in caught.value.message
    encoder = {"chroma": "t5xxl_fp16", "flux-1": "clip_l", "z-image": "qwen_3_4b"}[family]
    assert f"--vae ae.safetensors --text-encoder {encoder}.safetensors" in caught.value.hint
    with pytest.raises(ConceptError, match="is a base model or a part of one, not a concept"):
        read_concept(paths["transformer"])
    with pytest.raises(ModelError, match="without tokenizer"):
        open_base(paths["all"])
    with pytest.raises(ModelError, match="has no text encoder or tokenizer that"):
        open_base(paths["transformer"], text_encoders=[paths["vae"]])


def test_schnell_and_turbo_are_known_by_what_tells_them(made: Made, tmp_path: Path) -> None:
    """schnell has no guidance as input; Turbo has the same tensors, so the file's name counts."""
    flux, z_image = made("flux-1"), made("z-image")
    tensors = load_file(flux["transformer"])
    assert CheckpointSource(flux["transformer"], "").config("scheduler")["use_dynamic_shifting"]
    save_file({n: t for n, t in tensors.items() if "guidance" not in n}, tmp_path / "schnell")
    source = CheckpointSource(tmp_path / "schnell", "")
    assert not source.config("transformer")["guidance_embeds"]
    assert source.config("scheduler")["shift"] == 1
    turbo = tmp_path / "z_image_Turbo_bf16.safetensors"
    shutil.copy(z_image["transformer"], turbo)
    assert open_base(turbo, **companions(z_image)).trainable_partner == "Tongyi-MAI/Z-Image"
    assert open_base(z_image["transformer"], **companions(z_image)).trainable_partner is None


def test_steps_and_guidance_are_those_of_the_checkpoint(made: Made, tmp_path: Path) -> None:
    """Unless they are given; the image's request has what was used."""
    paths = made("z-image")
    turbo = tmp_path / "turbo.safetensors"
    shutil.copy(paths["transformer"], turbo)
    model = open_base(turbo, **companions(paths))
    request = GenerationRequest(prompt=PROMPT, width=32)
    (generated,) = generate_images(model, request)
    assert (generated.request.steps, generated.request.guidance_scale) == (8, 1)
    (generated,) = generate_images(model, request.model_copy(update={"steps": 2}))
    assert (generated.request.steps, generated.request.guidance_scale) == (2, 1)
    dev = open_base(made("flux-1")["folder"])
    assert request.with_defaults(dev).guidance_scale == 3.5
    assert GenerationRequest.model_validate(dict(generated.request)).with_defaults(dev).steps == 2


@pytest.mark.parametrize(
    ("weight", "scales"), [("weight", "scale_weight"), ("weight._data", "weight._scale")]
)
@every_family
def test_fp8_with_scales_and_diffusers_names(
    family: str, weight: str, scales: str, made: Made, tmp_path: Path
) -> None:
    """As ComfyUI and quanto store them."""
    paths = made(family)
    stored: dict[str, Tensor] = {}
    expected: dict[str, Tensor] = {}
    for name, tensor in load_file(paths["transformer"]).items():
        if tensor.ndim == 2 and "blocks" in name:
            scale = tensor.abs().max() / 448
            eighth = (tensor / scale).to(torch.float8_e4m3fn)
            stem = name.removesuffix("weight")
            stored |= {stem + weight: eighth, stem + scales: scale}
            expected[name] = (eighth.float() * scale).bfloat16()
        else:
            stored[name] = expected[name] = tensor
    save_file(stored, tmp_path / "fp8.safetensors")
    model = open_base(tmp_path / "fp8.safetensors", **companions(paths))
    weights = model.networks["denoiser"].state_dict()
    table = table_of(family)
    assert all(torch.equal(weights[n], t.float()) for n, t in table.to_diffusers(expected).items())
    # diffusers saves a transformer under its own names.
    own = paths["folder"] / "transformer" / "diffusion_pytorch_model.safetensors"
    model = open_base(own, **companions(paths))
    weights = model.networks["denoiser"].state_dict()
    assert all(torch.equal(weights[n], t) for n, t in load_file(own).items())


def test_gguf_is_dequantized(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gguf = pytest.importorskip("gguf")
    paths = made("flux-1")
    file, eight = tmp_path / "q8.gguf", gguf.GGMLQuantizationType.Q8_0
    writer = gguf.GGUFWriter(file, "flux")
    expected: dict[str, Tensor] = {}
    for name, tensor in load_file(paths["transformer"]).items():
        values, expected[name] = tensor.numpy(), tensor
        if tensor.ndim == 2 and tensor.shape[1] % 32 == 0:
            values = gguf.quantize(values, eight)
            expected[name] = torch.from_numpy(gguf.dequantize(values, eight)).bfloat16().float()
            writer.add_tensor(name, values, raw_dtype=eight)
        else:
            writer.add_tensor(name, values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    weights = open_base(file, **companions(paths)).networks["denoiser"].state_dict()
    table = table_of("flux-1")
    assert all(torch.equal(weights[n], t) for n, t in table.to_diffusers(expected).items())
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(FileError, match="cannot be read"):
        open_base(file)
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(FileError, match="is not installed") as caught:
        open_base(file)
    assert "pinxit[gguf]" in caught.value.hint


FULL = {
    "chroma": (diffusers.ChromaTransformer2DModel, {}),
    "flux-1": (diffusers.FluxTransformer2DModel, {"guidance_embeds": True}),
    "z-image": (diffusers.ZImageTransformer2DModel, {}),
}
# Names, shapes and numbers of tensors as published.
PUBLISHED = {
    "chroma": (
        643,
        {
            "distilled_guidance_layer.in_proj.weight": (5120, 64),
            "distilled_guidance_layer.layers.4.out_layer.bias": (5120,),
            "distilled_guidance_layer.norms.0.scale": (5120,),
            "double_blocks.18.txt_attn.qkv.weight": (9216, 3072),
            "single_blocks.37.linear2.weight": (3072, 15360),
            "final_layer.linear.weight": (64, 3072),
        },
    ),
    "flux-1": (
        780,
        {
            "double_blocks.18.img_attn.qkv.weight": (9216, 3072),
            "double_blocks.0.txt_mod.lin.bias": (18432,),
            "single_blocks.37.linear1.weight": (21504, 3072),
            "single_blocks.0.norm.key_norm.scale": (128,),
            "guidance_in.out_layer.weight": (3072, 3072),
            "final_layer.adaLN_modulation.1.weight": (6144, 3072),
            "txt_in.weight": (3072, 4096),
        },
    ),
    "z-image": (
        453,
        {
            "layers.29.attention.qkv.weight": (11520, 3840),
            "context_refiner.1.attention.q_norm.weight": (128,),
            "noise_refiner.0.attention.out.weight": (3840, 3840),
            "x_embedder.weight": (3840, 64),
            "cap_embedder.1.weight": (3840, 2560),
            "final_layer.adaLN_modulation.1.weight": (3840, 256),
        },
    ),
}


@every_family
def test_all_names_and_shapes_of_the_full_size_map_both_ways(family: str) -> None:
    kind, config = FULL[family]
    with torch.device("meta"):
        network: Any = kind(**config)
    ours: dict[str, Tensor] = network.state_dict()
    table = table_of(family)
    original = to_original(table, ours)
    count, published = PUBLISHED[family]
    assert len(original) == count
    assert {name: tuple(original[name].shape) for name in published} == published
    shapes = {name: tensor.shape for name, tensor in ours.items()}
    assert {n: t.shape for n, t in table.to_diffusers(original).items()} == shapes
    convert = {
        "chroma": converters.convert_chroma_transformer_checkpoint_to_diffusers,
        "flux-1": converters.convert_flux_transformer_checkpoint_to_diffusers,
        "z-image": converters.convert_z_image_transformer_checkpoint_to_diffusers,
    }[family]
    theirs = cast("dict[str, Tensor]", convert(dict(original)))
    assert {name: tensor.shape for name, tensor in theirs.items()} == shapes


def test_joined_rows_are_in_the_order_of_diffusers() -> None:
    """Each row has its own number; the widths are those that diffusers' converter knows."""
    kind, config = FULL["flux-1"]
    with torch.device("meta"):
        network: Any = kind(**config, num_layers=1, num_single_layers=1)
    ours: dict[str, Tensor] = {}
    for index, (name, tensor) in enumerate(network.state_dict().items()):
        rows = (torch.arange(len(tensor)) + 7 * index).remainder(251).to(torch.uint8)
        ours[name] = rows[:, *[None] * (tensor.ndim - 1)].expand(tensor.shape)
    original = to_original(table_of("flux-1"), ours)
    theirs = converters.convert_flux_transformer_checkpoint_to_diffusers(dict(original))
    back = table_of("flux-1").to_diffusers(original)
    for name, tensor in ours.items():
        assert torch.equal(theirs[name], tensor), name
        assert torch.equal(back[name], tensor), name
