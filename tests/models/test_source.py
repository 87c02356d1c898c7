"""Folders of bases: what opens however it was saved, and what is said of those that do not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pinxit.errors import ModelError, PinxitError
from pinxit.models.model import Model, open_base

UNET = Path("unet/diffusion_pytorch_model.safetensors")
VAE = Path("vae/diffusion_pytorch_model.safetensors")


def weights(model: Model) -> dict[str, torch.Tensor]:
    return model.networks["denoiser"].state_dict()


def variant(base: Path) -> None:
    for file in base.rglob("*.safetensors"):
        halves = {name: tensor.half() for name, tensor in load_file(file).items()}
        file.unlink()
        save_file(halves, file.with_suffix(".fp16.safetensors"))


def shards(base: Path) -> None:
    whole = load_file(base / UNET)
    (base / UNET).unlink()
    parts = [dict(list(whole.items())[half::2]) for half in (0, 1)]
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


def former_names(base: Path) -> None:
    """As diffusers named an autoencoder's attention before 0.14."""
    whole = load_file(base / VAE)
    for old, new in (
        ("to_q", "query"),
        ("to_k", "key"),
        ("to_v", "value"),
        ("to_out.0", "proj_attn"),
    ):
        whole = {name.replace(old, new): tensor for name, tensor in whole.items()}
    save_file(whole, base / VAE)


@pytest.mark.parametrize("save", [variant, shards, pickles, former_names])
def test_however_it_is_saved(
    save: Callable[[Path], None], nano: Path, model: Model, copied: Callable[[Path], Path]
) -> None:
    base = copied(nano)
    save(base)
    found = open_base(base)
    assert found.hash != model.hash
    for name, tensor in weights(model).items():
        wanted = tensor.half().float() if save is variant else tensor
        assert torch.equal(weights(found)[name], wanted)


def edited(part: str, **changed: object) -> Callable[[Path], None]:
    def edit(base: Path) -> None:
        file = base / part / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changed))

    return edit


def filled(name: str, text: str) -> Callable[[Path], object]:
    return lambda base: (base / name).write_text(text)


def stray(base: Path) -> None:
    save_file({**load_file(base / UNET), "left.over": torch.zeros(1)}, base / UNET)


def nothing_in_it(base: Path) -> None:
    (base / UNET).write_bytes(b"no weights")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (edited("unet", cross_attention_dim=40), "have another shape for"),
        (edited("unet", layers_per_block=2), "its weights lack"),
        (edited("unet", layers_per_block=10**9), "layers_per_block is 1,000,000,000"),
        (edited("text_encoder", vocab_size=10**12), "vocab_size is 1,000,000,000,000"),
        (edited("text_encoder", num_attention_heads=0), "its settings make none"),
        (stray, "its weights also have left.over"),
        (nothing_in_it, "cannot be read as safetensors"),
        (filled("unet/config.json", "[" * 100_000), "cannot be read"),
        (filled("unet/config.json", "[]"), "holds no table of settings"),
        (filled("unet/config.json", " " * 40_000_000), "too many for settings"),
        (filled("tokenizer/tokenizer.json", '{"model": {"vocab": ["a"]}}'), "no CLIP vocabulary"),
        (filled("scheduler/scheduler_config.json", "{"), "cannot be read"),
    ],
)
def test_spoilt_bases(
    spoil: Callable[[Path], object], message: str, nano: Path, copied: Callable[[Path], Path]
) -> None:
    base = copied(nano)
    spoil(base)
    with pytest.raises(PinxitError) as caught:
        open_base(base)
    assert message in caught.value.message


def test_settings_choose_no_code(
    nano: Path, model: Model, copied: Callable[[Path], Path], tmp_path: Path
) -> None:
    """Classes, code and kernels that settings name are passed over."""
    base = copied(nano)
    trap = tmp_path / "trap.py"
    trap.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Net: pass\n")
    named: dict[str, Any] = {
        "_class_name": "Net",
        "architectures": ["Net"],
        "auto_map": {"AutoModel": "trap.Net"},
        "_attn_implementation": "kernels-community/none",
        "attn_implementation": "kernels-community/none",
        "quantization_config": {"quant_method": "bitsandbytes"},
    }
    for part in ("unet", "vae", "text_encoder"):
        edited(part, **named)(base)
    (base / "model_index.json").write_text('{"_class_name": "Net", "unet": ["trap", "Net"]}')
    found = open_base(base)
    assert torch.equal(found.condition(["a dog"]).states, model.condition(["a dog"]).states)
    assert not (tmp_path / "ran").exists()


def test_no_such_base() -> None:
    with pytest.raises(ModelError, match="there is no base `nowhere/near/here`"):
        open_base("nowhere/near/here")
