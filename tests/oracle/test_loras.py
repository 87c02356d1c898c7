"""LoRAs and their kin: ours in diffusers and LyCORIS, theirs here, and where converters err."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pinxit import registry
from pinxit.adapter import Part, injected
from pinxit.concept import Concept, Provenance
from pinxit.format import Target
from pinxit.model import Model, open_base
from pinxit.tensors import read_safetensors

PROMPT = "a photo of a red dog on the beach"
CLOSE, FAR = 1e-5, 1e-3
RANK, ALPHA = 4, 2.0
LONG = pytest.mark.long
Sayings = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def base(bases: Callable[[str], Path], tmp_path_factory: Any) -> Callable[[str], Path]:
    """Small bases; XL with two residual layers a block, on which its LoRAs' names count."""
    made: dict[str, Path] = {"1": bases("stable-diffusion-1")}

    def find(family: str) -> Path:
        if family not in made:
            pipe = diffusers.StableDiffusionXLPipeline.from_pretrained(bases("stable-diffusion-xl"))
            settings = {**pipe.unet.config, "layers_per_block": 2}
            torch.manual_seed(5)
            pipe.unet = diffusers.UNet2DConditionModel.from_config(settings)
            made[family] = tmp_path_factory.mktemp("xl")
            pipe.save_pretrained(made[family])
        return made[family]

    return find


def pipeline(base: Path, lora: Path | None = None) -> Any:
    pipe = diffusers.DiffusionPipeline.from_pretrained(base)
    pipe.set_progress_bar_config(disable=True)
    if lora is not None:
        pipe.load_lora_weights(str(lora.parent), weight_name=lora.name)
    return pipe


NOISE = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1))
TIMES = torch.tensor([30, 700])


@torch.no_grad()
def theirs(pipe: Any) -> Sayings:
    """What the prompt means to a pipeline, and what its U-Net answers."""
    given = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
    found = pipe.encode_prompt(prompt=PROMPT, **given)
    told: dict[str, Any] = {}
    if hasattr(pipe, "text_encoder_2"):
        sizes = torch.tensor([[32.0, 32.0, 0, 0, 32.0, 32.0]])
        added = {"text_embeds": found[2].expand(2, -1), "time_ids": sizes.expand(2, -1)}
        told = {"added_cond_kwargs": added}
    states = found[0].expand(2, -1, -1)
    return found[0], pipe.unet(NOISE, TIMES, states, return_dict=False, **told)[0]


@torch.no_grad()
def ours(model: Model, *concepts: Concept) -> Sayings:
    adapters = [adapter for concept in concepts for adapter in concept.adapters(model)]
    with injected(model, adapters):
        told = model.condition([PROMPT])
        both = model.condition([PROMPT, PROMPT])
        return told.states, model.denoise(NOISE, TIMES, both)


def apart(a: Sayings, b: Sayings) -> tuple[float, float]:
    """How far the meanings are apart, and the answers."""
    return tuple(float(((x - y).norm() / y.norm()).detach()) for x, y in zip(a, b, strict=True))


def same(a: Sayings, b: Sayings) -> bool:
    return max(apart(a, b)) <= CLOSE


def other(a: Sayings, b: Sayings) -> bool:
    """Whether both differ, the meaning and the answer."""
    return min(apart(a, b)) > FAR


def learned(
    model: Model, kind: str, chosen: str = "attn|fc|conv1", targets: str = "denoiser text text_2"
) -> Concept:
    """A random change of the chosen layers, as strong as a learned one; alpha is half the rank."""
    draw = torch.Generator().manual_seed(7)
    parts: list[Part] = []
    for target in filter(model.networks.__contains__, targets.split()):
        tensors: dict[str, Tensor] = {}
        for path, layer in model.networks[target].named_modules():
            if not isinstance(layer, nn.Linear | nn.Conv2d) or not re.search(chosen, path):
                continue
            name, weight = path.removeprefix("text_model."), layer.weight.detach()
            out, sides = len(weight), [1] * (weight.ndim - 2)
            down = torch.randn(RANK, *weight.shape[1:], generator=draw) / 4
            held = {
                "lora_A.weight": down,
                "lora_B.weight": torch.randn(out, RANK, *sides, generator=draw) / 4,
                "alpha": torch.tensor(ALPHA),
            }
            if kind == "dora":
                spread = 0.5 + torch.rand(out, generator=draw)
                held["lora_magnitude_vector"] = weight.flatten(1).norm(dim=1) * spread
            tensors |= {f"{name}.{key}": tensor for key, tensor in held.items()}
        parts.append(Part("lora", {"target": target, "kind": kind}, tensors))
    return Concept(tuple(parts), Provenance.foreign("toy", {}))


def write(name: str, concept: Concept, out: Path) -> Path:
    registry.load("formats", name)().write(concept, Target(out))
    return out


def rewritten(file: Path, out: Path, change: Callable[[str, Tensor], Tensor | None]) -> Path:
    """A file without its metadata, and with some of its tensors changed or left out."""
    told = {name: change(name, tensor) for name, tensor in read_safetensors(file)[0].items()}
    save_file({name: t.clone() for name, t in told.items() if t is not None}, out)
    return out


CASES = [
    ("kohya", "1", "lora"),
    ("diffusers-lora", "1", "dora"),
    ("kohya", "xl", "lora"),
    pytest.param("diffusers-lora", "1", "lora", marks=LONG),
    pytest.param("diffusers-lora", "xl", "lora", marks=LONG),
    pytest.param("diffusers-lora", "xl", "dora", marks=LONG),
]


@pytest.mark.parametrize(("name", "family", "kind"), CASES)
def test_it_is_the_same_in_diffusers(
    name: str, family: str, kind: str, base: Callable[[str], Path], tmp_path: Path
) -> None:
    model = open_base(base(family))
    concept = learned(model, kind)
    file = write(name, concept, tmp_path / "toy.safetensors")
    found = theirs(pipeline(base(family), file))
    assert same(ours(model, concept), found)
    assert same(ours(model, Concept.load(file)), found)
    assert other(ours(model), found)  # the control: the base alone
    # The control: without alpha it is taken for the rank, here as there.
    bare = rewritten(file, tmp_path / "bare.safetensors", without_alpha)
    assert other(ours(model, Concept.load(bare)), found)
    assert same(ours(model, Concept.load(bare)), theirs(pipeline(base(family), bare)))


def without_alpha(name: str, tensor: Tensor) -> Tensor | None:
    return None if name.endswith(".alpha") else tensor
