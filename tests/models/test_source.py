"""Base model folders: all variants that diffusers saves open, and damaged ones give errors."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pinxit.errors import ModelError, PinxitError
from pinxit.models.model import Model
from pinxit.models.open_base import open_base

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
        file = base / part / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return edit


def with_text(name: str, text: str) -> Callable[[Path], object]:
    return lambda base: (base / name).write_text(text)


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
        (with_text("unet/config.json", " " * 40_000_000), "too many for a JSON file"),
        (
            with_text("tokenizer/tokenizer.json", '{"model": {"vocab": ["a"]}}'),
            "no valid CLIP vocabulary",
        ),
        (with_text("scheduler/scheduler_config.json", "{"), "cannot read"),
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
    with pytest.raises(ModelError, match="there is no base model `nowhere/near/here`"):
        open_base("nowhere/near/here")
