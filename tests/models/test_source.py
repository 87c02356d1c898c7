"""Base model folders: all variants that diffusers saves open, and damaged ones give errors."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pinxit.errors import ModelError, PinxitError
from pinxit.models.model import Model
from pinxit.models.open_base import find_base, open_base

UNET = Path("unet/diffusion_pytorch_model.safetensors")
VAE = Path("vae/diffusion_pytorch_model.safetensors")


def weights(model: Model) -> dict[str, torch.Tensor]:
    return model.networks["denoiser"].state_dict()


def half_precision_variant(base: Path) -> None:
    for file in base.rglob("*.safetensors"):
        half_precision = {name: tensor.half() for name, tensor in load_file(file).items()}
        file.unlink()
        save_file(half_precision, file.with_suffix(".fp16.safetensors"))


def shards(base: Path) -> None:
    weights = load_file(base / UNET)
    (base / UNET).unlink()
    parts = [dict(list(weights.items())[start::2]) for start in (0, 1)]
    index: dict[str, str] = {}
    for number, part in enumerate(parts, 1):
        name = f"diffusion_pytorch_model-{number:05}-of-00002.safetensors"
        save_file(part, base / "unet" / name)
        index |= dict.fromkeys(part, name)
    file = base / UNET.with_suffix(".safetensors.index.json")
    file.write_text(json.dumps({"weight_map": index}))


def pickles(base: Path) -> None:
    for file in base.rglob("*.safetensors"):
        name = "pytorch_model.bin" if file.stem == "model" else f"{file.stem}.bin"
        torch.save(load_file(file), file.with_name(name))
        file.unlink()


def old_attention_names(base: Path) -> None:
    """The names of an autoencoder's attention layers in diffusers before 0.14."""
    weights = load_file(base / VAE)
    for old, new in (
        ("to_q", "query"),
        ("to_k", "key"),
        ("to_v", "value"),
        ("to_out.0", "proj_attn"),
    ):
        weights = {name.replace(old, new): tensor for name, tensor in weights.items()}
    save_file(weights, base / VAE)


@pytest.mark.parametrize("save", [half_precision_variant, shards, pickles, old_attention_names])
def test_saved_variants_open_with_the_same_weights(
    save: Callable[[Path], None], nano: Path, model: Model, copied: Callable[[Path], Path]
) -> None:
    base = copied(nano)
    save(base)
    opened = open_base(base)
    assert opened.hash != model.hash
    for name, tensor in weights(model).items():
        expected = tensor.half().float() if save is half_precision_variant else tensor
        assert torch.equal(weights(opened)[name], expected)


def with_config(part: str, **changes: object) -> Callable[[Path], None]:
    def edit(base: Path) -> None:
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        file = base / part / name
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return edit


def with_text(name: str, text: str) -> Callable[[Path], object]:
    return lambda base: (base / name).write_text(text)


def with_link(name: str) -> Callable[[Path], object]:
    """The file is moved out of the base model, and a link is at its place."""

    def change(base: Path) -> None:
        moved = (base / name).rename(base.parent / "moved")
        (base / name).symlink_to(moved)

    return change


def with_pipe(name: str) -> Callable[[Path], object]:
    def change(base: Path) -> None:
        (base / name).unlink()
        os.mkfifo(base / name)

    return change


def with_extra_weight(base: Path) -> None:
    save_file({**load_file(base / UNET), "left.over": torch.zeros(1)}, base / UNET)


def with_invalid_weights(base: Path) -> None:
    (base / UNET).write_bytes(b"no weights")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (with_config("unet", cross_attention_dim=40), "have another shape for"),
        (with_config("unet", layers_per_block=2), "its weights lack"),
        (with_config("unet", layers_per_block=10**9), "layers_per_block is 1,000,000,000"),
        (with_config("text_encoder", vocab_size=10**12), "vocab_size is 1,000,000,000,000"),
        (with_config("text_encoder", num_attention_heads=0), "its config is invalid"),
        (with_extra_weight, "its weights also have left.over"),
        (with_invalid_weights, "cannot be read as safetensors"),
        (with_text("unet/config.json", "[" * 100_000), "cannot read"),
        (with_text("unet/config.json", "[]"), "is not a JSON object"),
        (with_text("unet/config.json", " " * 40_000_000), "which is too many"),
        (
            with_text("tokenizer/tokenizer.json", '{"model": {"vocab": ["a"]}}'),
            "no valid CLIP vocabulary",
        ),
        *(
            (
                with_text("tokenizer/tokenizer.json", json.dumps({"model": model})),
                "no valid CLIP vocabulary",
            )
            for model in (
                {"vocab": {"a": 0}, "merges": ["ab b</w>"]},  # longer than the whole vocabulary
                {"vocab": {"a": 0, "b": 1}, "merges": ["a b"]},
                {"vocab": {"a": 0}, "merges": [[["a"], 1]]},
                {"vocab": {}, "merges": ["a b"]},
            )
        ),
        (with_text("scheduler/scheduler_config.json", "{"), "cannot read"),
        *(
            (with_config("scheduler", **{key: value}), f"{key} cannot be")
            for key, value in (
                ("num_train_timesteps", 300_000_000),
                ("num_train_timesteps", "x"),
                ("num_train_timesteps", True),
                ("beta_schedule", "unknown"),
                ("beta_schedule", ["linear"]),
                ("prediction_type", ["x"]),
                ("prediction_type", "flow"),
            )
        ),
        (with_config("scheduler", beta_start="x"), "cannot be opened"),
        (with_config("scheduler", trained_betas={"a": 1}), "cannot be opened"),
        (with_config("unet", sample_size=None), "sample_size cannot be `None`"),
        (with_config("unet", sample_size=100_000), "sample_size cannot be `100000`"),
        (with_config("vae", scaling_factor="x"), "scaling_factor cannot be `x`"),
        (with_config("vae", scaling_factor=0), "scaling_factor cannot be `0`"),
        (with_config("vae", shift_factor="x"), "shift_factor cannot be `x`"),
        (
            with_config("unet", layers_per_block=256, transformer_layers_per_block=[[256], 1]),
            "layers",
        ),
        (with_config("unet", down_block_types=["DownBlock2D"] * 2000), "2,000 items"),
        (with_link("unet/config.json"), "leads out of"),
        (with_link("tokenizer/tokenizer.json"), "leads out of"),
        (with_pipe("unet/diffusion_pytorch_model.safetensors"), "not a regular file"),
        (with_pipe("vae/diffusion_pytorch_model.safetensors"), "not a regular file"),
    ],
)
def test_damaged_base_models_raise_errors(
    damage: Callable[[Path], object], message: str, nano: Path, copied: Callable[[Path], Path]
) -> None:
    base = copied(nano)
    damage(base)
    with pytest.raises(PinxitError) as caught:
        open_base(base)
    assert message in caught.value.message


def test_configs_cannot_run_code(
    nano: Path, model: Model, copied: Callable[[Path], Path], tmp_path: Path
) -> None:
    """Classes, code and kernels that a config names are ignored."""
    base = copied(nano)
    module = tmp_path / "trap.py"
    module.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Net: pass\n")
    changes: dict[str, Any] = {
        "_class_name": "Net",
        "architectures": ["Net"],
        "auto_map": {"AutoModel": "trap.Net"},
        "_attn_implementation": "kernels-community/none",
        "attn_implementation": "kernels-community/none",
        "quantization_config": {"quant_method": "bitsandbytes"},
    }
    for part in ("unet", "vae", "text_encoder"):
        with_config(part, **changes)(base)
    (base / "model_index.json").write_text('{"_class_name": "Net", "unet": ["trap", "Net"]}')
    opened = open_base(base)
    assert torch.equal(opened.condition(["a dog"]).states, model.condition(["a dog"]).states)
    assert not (tmp_path / "ran").exists()


def test_unknown_base_model() -> None:
    with pytest.raises(ModelError, match="there is no model `nowhere/near/here`"):
        open_base("nowhere/near/here")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pipes and devices in folders")
def test_the_hash_covers_regular_files_of_known_names_only(
    nano: Path, model: Model, copied: Callable[[Path], Path]
) -> None:
    base = copied(nano)
    (base / "unet" / "extra.json").symlink_to("/dev/zero")
    (base / "vae" / "extra.json").mkdir()
    os.mkfifo(base / "text_encoder" / "extra.txt")
    os.mkfifo(base / "tokenizer" / "rare_words.txt")
    assert find_base(str(base)).hash == model.hash
    file = base / "tokenizer" / "tokenizer_config.json"
    file.write_text(file.read_text() + " ")
    assert find_base(str(base)).hash != model.hash


def test_links_inside_the_cache_of_the_hub_are_followed(nano: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--owner--name" / "snapshots" / "0123"
    shutil.copytree(nano, snapshot)
    blobs = tmp_path / "models--owner--name" / "blobs"
    blobs.mkdir()
    for number, name in enumerate(("unet/config.json", "tokenizer/tokenizer.json")):
        (snapshot / name).rename(blobs / str(number))
        (snapshot / name).symlink_to(blobs / str(number))
    assert open_base(snapshot).hash == find_base(str(nano)).hash
