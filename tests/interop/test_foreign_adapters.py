"""The same adapter in other names, shapes and dtypes changes the weights in the same way."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from pinxit import registry
from pinxit.adapters.adapter import applied
from pinxit.adapters.peft_layers import module_paths
from pinxit.cli import main
from pinxit.concepts.layer_names import parse_layer, parse_tensor_name
from pinxit.concepts.read import read_concept
from pinxit.errors import ConceptError
from pinxit.models.model import Model

DRAW = torch.Generator().manual_seed(5)
LINEAR = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
KERNEL, POINT = "down_blocks.0.resnets.0.conv1", "down_blocks.0.attentions.0.proj_in"
TEXT_LAYER = "encoder.layers.0"
TEXT = f"{TEXT_LAYER}.self_attn.q_proj"
RESNET_NORM = "down_blocks.0.resnets.0.norm1"
DENOISER_LAYERS = (LINEAR, KERNEL, POINT, "conv_in", "time_embedding.linear_1")
# Names of a layer of the denoiser; `{flat}` is its name with `_` for `.`.
DENOISER_NAMES = (
    "lora_unet_{flat}",
    "lora_unet__orig_mod_{flat}",
    "lycoris_{flat}",
    "lycoris_unet_{flat}",
    "unet.{name}",
    "unet._orig_mod.{name}",
    "unet.base_model.model.{name}",
    "base_model.model.{name}",
    "base_model.model.unet.{name}",
    "_orig_mod.{name}",
    "default.{name}",
    "module.{name}",
    "transformer.{name}",
    "diffusion_model.{name}",
    "model.diffusion_model.{name}",
    "lora_unet.{flat}",
    "lora_unet.{name}",
    "{name}",
)
FIRST_NAMES = ("lora_te_{flat}", "lora_te1_{flat}", "lycoris_{flat}", "text_encoder.{name}")
FIRST_NAMES += ("text_encoder.text_model.{name}", "lora_te_text_model_{flat}", "te1.{name}")
FIRST_NAMES += ("base_model.model.text_model.{name}", "text_encoders.clip_l.transformer.{name}")
FIRST_NAMES += ("cond_stage_model.transformer.text_model.{name}",)
FIRST_NAMES += ("conditioner.embedders.0.transformer.text_model.{name}",)
FIRST_NAMES += ("clip_l.transformer.text_model.{name}", "text_encoder._orig_mod.{name}", "{name}")
SECOND_NAMES = ("lora_te2_{flat}", "text_encoder_2.text_model.{name}", "te2.{name}")
SECOND_NAMES += ("text_encoders.clip_g.transformer.text_model.{name}", "lora_te2_text_model_{flat}")
SECOND_NAMES += ("text_encoder_2.base_model.model.{name}", "clip_g.transformer.{name}")
ENDS = (
    (".lora_A.weight", ".lora_B.weight"),
    (".lora_A.default.weight", ".lora_B.default.weight"),
    (".lora_A.subject.weight", ".lora_B.subject.weight"),
    (".lora_down.weight", ".lora_up.weight"),
    (".lora.down.weight", ".lora.up.weight"),
    ("_lora.down.weight", "_lora.up.weight"),
    (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
)
# Stability's names of layers.
SGM = {
    LINEAR: "input_blocks.1.1.transformer_blocks.0.attn2.to_k",
    KERNEL: "input_blocks.1.0.in_layers.2",
    POINT: "input_blocks.1.1.proj_in",
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
}


def save(path: Path, tensors: dict[str, Tensor]) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def change(
    model: Model, file: Path, network: str, layer: str, leaf: str = "weight", strength: float = 1
) -> Tensor:
    """What a file changes in a layer, in fp32."""
    modules = model.networks[network]
    path = module_paths(modules)[layer]
    before = modules.get_submodule(path).get_parameter(leaf).detach().clone()
    with applied(model, read_concept(file).with_strength(strength).adapters(model)):
        after = modules.get_submodule(path).get_parameter(leaf).detach()
        return after.float() - before.float()


def shape(model: Model, network: str, layer: str) -> torch.Size:
    modules = model.networks[network]
    return modules.get_submodule(module_paths(modules)[layer]).get_parameter("weight").shape


def factors(size: torch.Size, rank: int = 2) -> tuple[Tensor, Tensor]:
    down = torch.randn(rank, *size[1:], generator=DRAW) * 0.1
    return down, torch.randn(size[0], rank, *[1] * (len(size) - 2), generator=DRAW)


def product(down: Tensor, up: Tensor) -> Tensor:
    return (up.flatten(1).float() @ down.flatten(1).float()).reshape(len(up), *down.shape[1:])


def close(one: Tensor, other: Tensor, tolerance: float = 1e-5) -> bool:
    return bool((one - other.reshape(one.shape)).norm() <= tolerance * other.norm())


def with_names(pattern: str, layer: str) -> str:
    return pattern.format(name=layer, flat=layer.replace(".", "_"))


def test_names_of_layers_that_other_layers_wrap() -> None:
    for name in ("base_model.model.{}.base_layer.lora_A", "unet.{}.lora_layer.down"):
        parsed = parse_tensor_name(name.format(LINEAR) + ".weight")
        assert parse_layer(parsed.path) == ("denoiser", LINEAR)
        assert parsed.tensor == "lora_A.weight"


def test_names_with_both_separators() -> None:
    for name in (
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2.to_k",
        "lora_unet.down_blocks_0_attentions_0.transformer_blocks_0_attn2.to_k",
        "lycoris_down_blocks.0.attentions_0_transformer_blocks.0_attn2_to_k",
    ):
        assert parse_layer(name) == ("denoiser", LINEAR)


@pytest.mark.parametrize("ends", ENDS, ids=lambda ends: ends[0])
def test_all_names_of_layers_are_the_same_change(
    ends: tuple[str, str], opened: Callable[[str], Model], tmp_path: Path
) -> None:
    one, xl = opened("stable-diffusion-1"), opened("stable-diffusion-xl")
    cases = [(one, "denoiser", n, layer) for n in DENOISER_NAMES for layer in DENOISER_LAYERS]
    cases += [(one, "text", name, TEXT) for name in FIRST_NAMES]
    cases += [(xl, "text_2", name, layer) for name in SECOND_NAMES for layer in (TEXT,)]
    for prefix in ("lora_unet_{flat}", "diffusion_model.{name}", "unet.{name}"):
        for layer, original in SGM.items():
            cases.append((one, "denoiser", with_names(prefix, original), layer))
    for number, (model, network, pattern, layer) in enumerate(cases):
        down, up = factors(shape(model, network, layer))
        name = with_names(pattern, layer)
        file = save(tmp_path / f"{number}.safetensors", {name + ends[0]: down, name + ends[1]: up})
        assert close(change(model, file, network, layer), product(down, up)), name


def flat_kernel(tensor: Tensor) -> Tensor:
    return tensor.flatten(1)


def as_kernel(tensor: Tensor) -> Tensor:
    return tensor[:, :, None, None] if tensor.ndim == 2 else tensor


@pytest.mark.parametrize("shaped", [flat_kernel, as_kernel, lambda tensor: tensor])
@pytest.mark.parametrize("layer", DENOISER_LAYERS)
def test_kernels_flat_or_not(
    layer: str, shaped: Any, opened: Callable[[str], Model], tmp_path: Path
) -> None:
    model, name = opened("stable-diffusion-1"), f"lora_unet_{layer.replace('.', '_')}"
    down, up = factors(shape(model, "denoiser", layer))
    for number, parts in enumerate(
        [(shaped(down), up), (down, shaped(up)), (shaped(down), shaped(up))]
    ):
        tensors = dict(
            zip((f"{name}.lora_down.weight", f"{name}.lora_up.weight"), parts, strict=True)
        )
        file = save(tmp_path / f"{number}.safetensors", tensors)
        assert close(change(model, file, "denoiser", layer), product(down, up))
        whole = {f"{name}.diff": shaped(product(down, up))}
        file = save(tmp_path / f"{number}d.safetensors", whole)
        assert close(change(model, file, "denoiser", layer), product(down, up))


FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn]
FLOATS += [torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz]


def written(path: Path, tensors: dict[str, Tensor]) -> Path:
    """A safetensors file, or a torch file for number formats that safetensors does not have."""
    try:
        return save(path.with_suffix(".safetensors"), tensors)
    except KeyError:
        torch.save(tensors, path.with_suffix(".pt"))
        return path.with_suffix(".pt")


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_mixed_number_formats(
    dtype: torch.dtype,
    opened: Callable[[str], Model],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = opened("stable-diffusion-1")
    for network, layer, prefix in (
        ("denoiser", LINEAR, "lora_unet_"),
        ("denoiser", KERNEL, "lora_unet_"),
        ("text", TEXT, "lora_te_text_model_"),
    ):
        for up_dtype in FLOATS:
            down, up = factors(shape(model, network, layer))
            down, up = down.to(dtype), up.to(up_dtype)
            name = prefix + layer.replace(".", "_")
            tensors = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
            tensors[f"{name}.alpha"] = torch.tensor(2.0).to(up_dtype)
            file = written(tmp_path / f"{layer} {up_dtype}", tensors)
            assert close(change(model, file, network, layer), product(down, up))
            if up_dtype in (dtype, torch.bfloat16):
                again = tmp_path / f"{layer} {up_dtype} again.safetensors"
                assert main(["inspect", str(file)]) == 0
                assert main(["convert", str(file), str(again)]) == 0
                assert close(change(model, again, network, layer), product(down, up))
    capsys.readouterr()


def lycoris_cases(size: torch.Size) -> dict[str, tuple[dict[str, Tensor], Tensor]]:
    """Tensors of a layer by kind, and the change that they mean."""
    out, wide, *sides = size
    down, up = factors(size)
    one, other = factors(torch.Size((out, wide * sides[0] ** 2 if sides else wide)))
    left, right = factors(torch.Size((out, len(one[0]))))
    w1 = torch.randn(2, 2, generator=DRAW)
    w2 = torch.randn(out // 2, wide // 2, *sides, generator=DRAW)
    small_a = torch.randn(out // 2, 3, generator=DRAW)
    small_b = torch.randn(3, w2[0].numel(), generator=DRAW)
    kron = torch.kron(w1, w2.flatten(1)) if not sides else torch.kron(w1[:, :, None, None], w2)
    low = (small_a @ small_b).reshape(w2.shape)
    low_kron = torch.kron(w1[:, :, None, None], low) if sides else torch.kron(w1, low)
    two = {"lora_down.weight": down, "lora_up.weight": up}
    hada = {"hada_w1_a": other, "hada_w1_b": one, "hada_w2_a": right, "hada_w2_b": left}
    hada_change = ((other @ one) * (right @ left)).reshape(size)
    whole = {"lokr_w1": w1, "lokr_w2": w2}
    full = torch.randn(size, generator=DRAW)
    return {
        "alpha": (two | {"alpha": torch.tensor(1.0)}, product(down, up) / 2),
        "scalar": (two | {"scalar": torch.tensor(3.0)}, product(down, up) * 3),
        "scale": (
            two | {"scale": torch.tensor(0.5), "alpha": torch.tensor(9.0)},
            product(down, up) / 2,
        ),
        "loha": (hada | {"alpha": torch.tensor(1.0)}, hada_change / 2),
        "loha scalar": (hada | {"scalar": torch.tensor([2.0])}, hada_change * 2),
        **{
            f"whole lokr, alpha {alpha}": (whole | {"alpha": torch.tensor(alpha)}, kron)
            for alpha in (1.0, 4.0, 1e5, 9999999999.0, 0.0)
        },
        "whole lokr": (whole, kron),
        "lokr scalar": (whole | {"scalar": torch.tensor(2.0)}, kron * 2),
        "lokr": (
            {"lokr_w1": w1, "lokr_w2_a": small_a, "lokr_w2_b": small_b, "alpha": torch.tensor(1.0)},
            low_kron / 3,
        ),
        "full": ({"diff": full}, full),
        "full scalar": ({"diff": full, "scalar": torch.tensor(0.5)}, full / 2),
    }


@pytest.mark.parametrize("layer", [LINEAR, KERNEL, POINT, TEXT])
def test_kinds_of_lycoris(layer: str, opened: Callable[[str], Model], tmp_path: Path) -> None:
    model, network = opened("stable-diffusion-1"), "text" if layer == TEXT else "denoiser"
    flat = layer.replace(".", "_")
    for prefix in ("lora_te_text_model_" if layer == TEXT else "lora_unet_", "lycoris_"):
        for kind, (tensors, expected) in lycoris_cases(shape(model, network, layer)).items():
            named = {f"{prefix}{flat}.{name}": tensor for name, tensor in tensors.items()}
            file = save(tmp_path / f"{prefix}{kind}.safetensors", named)
            assert close(change(model, file, network, layer), expected), kind
            again = tmp_path / f"{prefix}{kind} again.safetensors"
            assert main(["convert", str(file), str(again)]) == 0
            assert close(change(model, again, network, layer), expected), kind


@pytest.mark.parametrize("scale", [1.0, 3])
def test_scales_that_are_numbers_in_a_pickle(
    scale: float, opened: Callable[[str], Model], tmp_path: Path
) -> None:
    model, name = opened("stable-diffusion-1"), f"lora_unet_{LINEAR.replace('.', '_')}"
    down, up = factors(shape(model, "denoiser", LINEAR))
    tensors = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
    for number, content in enumerate(
        (tensors | {f"{name}.alpha": scale}, {"state_dict": tensors | {f"{name}.alpha": scale}})
    ):
        torch.save(content, tmp_path / f"{number}.pt")
        expected = product(down, up) * scale / 2
        assert close(change(model, tmp_path / f"{number}.pt", "denoiser", LINEAR), expected)


@pytest.mark.parametrize(
    ("key", "network", "name"),
    [
        ("lora_unet_conv_norm_out.w_norm", "denoiser", "conv_norm_out.weight"),
        ("lora_unet_conv_norm_out.b_norm", "denoiser", "conv_norm_out.bias"),
        ("lycoris_down_blocks_0_resnets_0_norm1.w_norm", "denoiser", f"{RESNET_NORM}.weight"),
        ("diffusion_model.out.0.diff_b", "denoiser", "conv_norm_out.bias"),
        ("diffusion_model.out.2.diff_b", "denoiser", "conv_out.bias"),
        ("lora_te_encoder_layers_0_layer_norm1.w_norm", "text", f"{TEXT_LAYER}.layer_norm1.weight"),
        ("lora_te_text_model_final_layer_norm.b_norm", "text", "final_layer_norm.bias"),
        (f"clip_l.transformer.{TEXT_LAYER}.mlp.fc1.diff_b", "text", f"{TEXT_LAYER}.mlp.fc1.bias"),
        ("lora_unet_time_embedding_linear_1.diff_b", "denoiser", "time_embedding.linear_1.bias"),
    ],
)
def test_norms_and_biases(
    key: str,
    network: str,
    name: str,
    opened: Callable[[str], Model],
    tmp_path: Path,
) -> None:
    model, (layer, _, leaf) = opened("stable-diffusion-1"), name.rpartition(".")
    modules = model.networks[network]
    module = modules.get_submodule(module_paths(modules)[layer])
    difference = torch.randn(module.get_parameter(leaf).shape, generator=DRAW)
    # A LoRA in the same file is not disturbed.
    down, up = factors(shape(model, "denoiser", LINEAR))
    tensors = {key: difference, f"unet.{LINEAR}.lora_A.weight": down}
    file = save(tmp_path / "x.safetensors", tensors | {f"unet.{LINEAR}.lora_B.weight": up})
    for path in (file, tmp_path / "again.safetensors"):
        assert close(change(model, path, network, layer, leaf), difference)
        assert close(change(model, path, "denoiser", LINEAR), product(down, up))
        half = change(model, path, network, layer, leaf, strength=0.5)
        assert close(half, difference / 2)
        if path is file:
            assert (
                main(
                    ["convert", str(file), str(tmp_path / "again.safetensors"), "--format", "kohya"]
                )
                == 0
            )


PEFT_SETTINGS: list[tuple[dict[str, Any], float]] = [
    ({"r": 2, "lora_alpha": 1}, 0.5),
    ({"r": 2, "lora_alpha": 4, "peft_type": "LORA"}, 2.0),
    ({"r": 2, "lora_alpha": 4, "use_rslora": True}, 4 / 2**0.5),
    ({"r": 8, "lora_alpha": 8, "rank_pattern": {LINEAR: 2}, "alpha_pattern": {LINEAR: 6}}, 3.0),
    ({"lora_alpha": 8, "alpha_pattern": {"attn2.to_k": 1}}, 0.5),
    ({"lora_alpha": 8, "alpha_pattern": {r".*attn2\.to_k": 1}}, 0.5),
    ({"lora_alpha": 8, "alpha_pattern": {r"down_blocks\.\d+\..*to_k": 1, "to_k": 3}}, 0.5),
    ({"lora_alpha": 8, "alpha_pattern": {"(to_q|to_v)": 1}}, 4.0),
]


@pytest.mark.parametrize(("settings", "scale"), PEFT_SETTINGS)
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("form", ["folder", "file", "folders"])
def test_folders_of_peft(
    form: str,
    suffix: str,
    settings: dict[str, Any],
    scale: float,
    opened: Callable[[str], Model],
    tmp_path: Path,
) -> None:
    model = opened("stable-diffusion-1")
    folder = tmp_path / "unet" if form == "folders" else tmp_path
    folder.mkdir(exist_ok=True)
    down, up = factors(shape(model, "denoiser", LINEAR))
    name = f"base_model.model.{LINEAR}"
    tensors = {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    file = folder / f"adapter_model{suffix}"
    torch.save(tensors, file) if suffix == ".bin" else save(file, tensors)
    expected = product(down, up) * scale
    assert close(change(model, file if form == "file" else tmp_path, "denoiser", LINEAR), expected)
    if form == "folders":
        text_down, text_up = factors(shape(model, "text", TEXT))
        text = tmp_path / "text_encoder"
        text.mkdir()
        name = f"base_model.model.text_model.{TEXT}"
        save(
            text / "adapter_model.safetensors",
            {f"{name}.lora_A.weight": text_down, f"{name}.lora_B.weight": text_up},
        )
        (text / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 6}))
        assert close(change(model, tmp_path, "text", TEXT), product(text_down, text_up) * 3)
        assert close(change(model, tmp_path, "denoiser", LINEAR), expected)


@pytest.mark.parametrize(
    ("kind", "layer"), [(k, n) for k in ("LOHA", "LOKR", "LORA") for n in (LINEAR, KERNEL, POINT)]
)
def test_what_peft_itself_saves(
    kind: str, layer: str, opened: Callable[[str], Model], tmp_path: Path
) -> None:
    import copy

    import peft

    model = opened("stable-diffusion-1")
    settings: dict[str, Any] = {"LORA": {"lora_alpha": 3, "use_dora": True}}.get(kind, {"alpha": 3})
    config_type = {"LOHA": peft.LoHaConfig, "LOKR": peft.LoKrConfig, "LORA": peft.LoraConfig}[kind]
    for number, more in enumerate([{}, {"rank_pattern": {layer: 3}, "alpha_pattern": {layer: 5}}]):
        network = copy.deepcopy(model.networks["denoiser"])
        config = config_type(r=2, target_modules=[layer], **settings, **more)
        wrapped = peft.get_peft_model(network, config)
        before = model.networks["denoiser"].get_submodule(layer).get_parameter("weight").detach()
        for name, weight in wrapped.named_parameters():
            if weight.requires_grad and "magnitude" not in name:
                weight.data = torch.randn(weight.shape, generator=DRAW) * 0.3
        wrapped.save_pretrained(tmp_path / str(number))
        merged = wrapped.merge_and_unload().get_submodule(layer).weight.detach()
        file = tmp_path / str(number)
        assert close(change(model, file, "denoiser", layer), merged - before, 1e-4)


PAIR = {"lora_down.weight": (2, 8), "lora_up.weight": (8, 2)}
UNREADABLE = {
    "GLoRA": {"a1.weight": (2, 8), "a2.weight": (8, 2), "b1.weight": (2, 8), "b2.weight": (8, 2)},
    "OFT": {"oft_blocks": (4, 2, 2), "alpha": ()},
    "BOFT": {"boft_R": (1, 4, 2, 2), "boft_s": (8, 1)},
    "IA3": {"weight": (8,), "on_input": ()},
    "VeRA": {"vera_lambda_b": (8,), "vera_lambda_d": (2,)},
    "token embeddings": {"lora_embedding_A": (2, 8), "lora_embedding_B": (8, 2)},
    "Tucker core in its first": {"lokr_w1_a": (2, 2), "lokr_w1_b": (2, 2), "lokr_t1": (2, 2, 1, 1)},
    "sparse": {"bias_indices": (1, 2), "bias_values": (2,), "bias_size": (1,)},
    "size of the layer": PAIR | {"reshape_weight": (2,)},
    "complete weights": {"weight": (8, 8)},
    "magnitudes of a DoRA": {"diff": (8, 8), "dora_scale": (8, 1)},
    "magnitudes for its inputs": PAIR | {"dora_scale": (1, 8)},
    "LoHa and LoRA": PAIR | {"hada_w1_a": (8, 2)},
}  # fmt: skip


@pytest.mark.parametrize("title", UNREADABLE)
@pytest.mark.parametrize(
    "prefix", ["lora_unet_", "lycoris_", "base_model.model.", "lora_te_text_model_"]
)
def test_what_cannot_be_read_is_named(
    title: str, prefix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layer = TEXT if "te_" in prefix else LINEAR
    layer = layer if prefix.endswith(".") else layer.replace(".", "_")
    tensors = {
        f"{prefix}{layer}.{name}": torch.ones(size) for name, size in UNREADABLE[title].items()
    }
    file = save(tmp_path / "x.safetensors", tensors)
    with pytest.raises(ConceptError, match=title) as error:
        read_concept(file)
    assert "damaged" not in str(error.value)
    assert main(["inspect", str(file)]) == 2
    assert title in capsys.readouterr().err


OTHER_LAYERS = {
    "lora_unet_double_blocks_0_img_attn_other": "FLUX.1 with other layers",
    "diffusion_model.blocks.0.self_attn.q": "Wan",
    "unet.down_blocks.0.motion_modules.0.temporal_transformer.proj_in": "AnimateDiff",
    "transformer.transformer_blocks.0.attn1.to_q": "PixArt",
    "lora_unet_joint_blocks_0_x_block_attn_other": "Stable Diffusion 3 with other layers",
    "base_model.model.h.0.attn.c_attn": "another kind",
}


@pytest.mark.parametrize(("layer", "title"), OTHER_LAYERS.items())
def test_adapters_of_other_models_are_refused_by_inspect_too(
    layer: str, title: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for ends in ENDS[:4]:
        tensors = {layer + end: torch.ones(2, 2) for end in ends}
        file = save(tmp_path / "x.safetensors", tensors)
        with pytest.raises(ConceptError, match=title):
            read_concept(file)
        assert main(["inspect", str(file)]) == 2
        assert title in capsys.readouterr().err


@pytest.mark.parametrize("family", ["nano", *registry.names("families")])
def test_every_layer_of_every_base_has_a_name(family: str, opened: Callable[[str], Model]) -> None:
    model = opened(family.replace("_", "-"))
    for network in model.networks:
        if network == "vae":
            continue
        prefix = {"denoiser": "unet.", "text": "te1.", "text_2": "te2."}[network]
        modules = model.networks[network]
        for layer, path in module_paths(modules).items():
            if getattr(modules.get_submodule(path), "weight", None) is not None:
                name = parse_tensor_name(f"{prefix}{layer}.lora_A.weight")
                assert parse_layer(name.path) == (network, layer)
                underscored = prefix.replace(".", "_") + layer.replace(".", "_")
                assert parse_layer(f"lora_{underscored}") == (network, layer)


def test_a_layer_that_a_base_does_not_have_is_an_error(
    opened: Callable[[str], Model], tmp_path: Path
) -> None:
    model = opened("stable-diffusion-1")
    for tensors in (
        {"unet.down_blocks.7.resnets.0.conv1.lora_A.weight": torch.ones(2, 8, 3, 3)}
        | {"unet.down_blocks.7.resnets.0.conv1.lora_B.weight": torch.ones(8, 2, 1, 1)},
        {"lora_unet_down_blocks_7_resnets_0_conv1.diff": torch.ones(8, 8, 3, 3)},
        {"lora_unet_conv_in.diff": torch.ones(8, 9, 3, 3)},
        {"lora_te2_encoder_layers_0_mlp_fc1.diff_b": torch.ones(8)},
    ):
        concept = read_concept(save(tmp_path / "x.safetensors", tensors))
        with pytest.raises(ConceptError, match="model"):
            concept.adapters(model)


@pytest.mark.parametrize(
    "settings",
    [
        {"peft_type": "BOFT"},
        {"peft_type": "VERA"},
        {"peft_type": {"LORA": 1}},
        {"peft_type": ["LORA"]},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "olora"},
        {"lora_alpha": 2, "alpha_pattern": {"(a+)+b": 2}},
    ],
)
def test_settings_of_peft_that_cannot_be_used(settings: dict[str, Any], tmp_path: Path) -> None:
    name = f"base_model.model.{LINEAR}"
    tensors = {f"{name}.lora_A.weight": torch.ones(2, 8), f"{name}.lora_B.weight": torch.ones(8, 2)}
    save(tmp_path / "adapter_model.safetensors", tensors)
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    expected = str(settings.get("peft_type") or settings.get("init_lora_weights") or "pattern")
    with pytest.raises(ConceptError, match=re.escape(expected)):
        read_concept(tmp_path)
