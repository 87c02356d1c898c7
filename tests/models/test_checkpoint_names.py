"""Names of tensors in checkpoints of other programs and of older ones."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pinxit.models.checkpoint_names import usual_names
from pinxit.models.source import read_weights

_LAYERS = (
    *("time_embed.0", "time_embed.2", "out.0", "out.2", "input_blocks.0.0", "label_emb.0.2"),
    *("input_blocks.3.0.op", "output_blocks.11.2.conv", "output_blocks.8.1.conv"),
    *(
        f"{place}.{layer}"
        for place in ("input_blocks.1.0", "input_blocks.11.0", "output_blocks.10.0")
        for layer in ("in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3")
    ),
    *(
        "middle_block.0.in_layers.0",
        "middle_block.2.out_layers.3",
        "output_blocks.0.0.skip_connection",
    ),
    *(
        f"{place}.{layer}"
        for place in ("input_blocks.1.1", "middle_block.1", "output_blocks.11.1")
        for layer in (
            *("norm", "proj_in", "proj_out"),
            *(
                f"transformer_blocks.{k}.attn{n}.to_{x}"
                for k in (0, 9)
                for n in (1, 2)
                for x in "qkv"
            ),
            *(f"transformer_blocks.0.attn{n}.to_out.0" for n in (1, 2)),
            *("transformer_blocks.0.ff.net.0.proj", "transformer_blocks.0.ff.net.2"),
            *(f"transformer_blocks.1.norm{n}" for n in (1, 2, 3)),
        )
    ),
)
UNET = {
    f"model.diffusion_model.{layer}.{kind}": torch.tensor(float(number))
    for number, layer in enumerate(_LAYERS)
    for kind in ("weight", "bias")
}
OTHERS = {
    "first_stage_model.decoder.conv_in.weight": torch.ones(1),
    "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": torch.ones(1),
    "cond_stage_model.transformer.text_model.final_layer_norm.bias": torch.ones(1),
}
USUAL = UNET | OTHERS


def ema(names: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """CompVis's averaged weights: the same names without dots."""
    return {f"model_ema.{''.join(name.split('.')[1:])}": names[name] for name in names}


@pytest.mark.parametrize(
    "tensors",
    [
        USUAL,
        ema(UNET) | OTHERS,
        {name.replace("text_model.", ""): tensor for name, tensor in USUAL.items()},
        {f"module.{name}": tensor for name, tensor in USUAL.items()},
        {f"_orig_mod.{name}": tensor for name, tensor in USUAL.items()},
        {f"module._orig_mod.{name}": tensor for name, tensor in USUAL.items()},
        {name.replace("_model.", "_model._orig_mod.", 1): tensor for name, tensor in USUAL.items()},
        {f"model_ema.{name.removeprefix('model.')}": t for name, t in UNET.items()} | OTHERS,
    ],
    ids=[
        *("usual", "ema", "old clip", "parallel", "compiled", "parallel and compiled"),
        *("a part compiled", "ema with dots"),
    ],
)
def test_names_become_the_usual_ones(tensors: dict[str, Tensor]) -> None:
    named = usual_names(tensors)
    assert named.keys() == USUAL.keys()
    assert all(named[name] is USUAL[name] for name in USUAL)


@pytest.mark.parametrize(
    "where", ["conditioner.embedders.0", "text_encoders.clip_l", "text_encoders.clip_g"]
)
def test_old_names_of_clip_in_larger_models(where: str) -> None:
    old = f"{where}.transformer.encoder.layers.0.mlp.fc1.weight"
    assert [*usual_names({old: torch.ones(1)})] == [
        old.replace("encoder.l", "text_model.encoder.l")
    ]


def test_averaged_weights_are_only_used_without_others() -> None:
    named = usual_names(USUAL | {name: tensor + 1 for name, tensor in ema(UNET).items()})
    assert all(named[name] is USUAL[name] for name in USUAL)


@pytest.mark.parametrize(
    "nested",
    [
        lambda weights: {"state_dict": weights, "ema": {}},
        lambda weights: {"model_state_dict": weights, "optimizer": {"state": 1, "groups": 2}},
        lambda weights: {"params_ema": weights, "step": 7},
        lambda weights: {"checkpoint": {"state_dict": weights}},
        lambda weights: weights | {"callbacks": {"a": 1}},
    ],
    ids=["state_dict", "model_state_dict", "params_ema", "two levels", "a table beside"],
)
def test_tables_of_weights_in_checkpoints_of_training_programs(
    nested: Callable[[dict[str, Tensor]], dict[str, object]], tmp_path: Path
) -> None:
    torch.save(nested(USUAL), tmp_path / "a.ckpt")
    tensors, _ = read_weights(tmp_path / "a.ckpt")
    assert tensors.keys() == USUAL.keys()
