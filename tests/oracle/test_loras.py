"""LoRAs and variants: exchange with diffusers and LyCORIS in both directions."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import lycoris.kohya
import peft
import pytest
import torch
from diffusers.utils import convert_state_dict_to_kohya
from safetensors.torch import save_file
from torch import Tensor, nn

from pinxit import registry
from pinxit.adapters.adapter import applied
from pinxit.adapters.kinds.lora import LoraAdapter
from pinxit.adapters.lora_part import LoraConfig, LoraPart
from pinxit.concepts.concept import Concept
from pinxit.concepts.format import Target
from pinxit.concepts.metadata import Provenance
from pinxit.concepts.read import read_concept
from pinxit.files.safetensors_file import read_safetensors
from pinxit.models.model import Model
from pinxit.models.open_base import open_base

PROMPT = "a photo of a red dog on the beach"
CLOSE, FAR = 1e-5, 1e-3
RANK, ALPHA = 4, 2.0
LONG = pytest.mark.long
Sayings = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def base(bases: Callable[[str], Path], tmp_path_factory: Any) -> Callable[[str], Path]:
    """Small base models; XL with two residual layers per block, which LoRA names depend on."""
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
def diffusers_output(pipe: Any) -> Sayings:
    """A pipeline's prompt embedding and U-Net output."""
    given = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
    expected = pipe.encode_prompt(prompt=PROMPT, **given)
    tensors_by_name: dict[str, Any] = {}
    if hasattr(pipe, "text_encoder_2"):
        sizes = torch.tensor([[32.0, 32.0, 0, 0, 32.0, 32.0]])
        added = {"text_embeds": expected[2].expand(2, -1), "time_ids": sizes.expand(2, -1)}
        tensors_by_name = {"added_cond_kwargs": added}
    states = expected[0].expand(2, -1, -1)
    return expected[0], pipe.unet(NOISE, TIMES, states, return_dict=False, **tensors_by_name)[0]


@torch.no_grad()
def pinxit_output(model: Model, *concepts: Concept) -> Sayings:
    adapters = [adapter for concept in concepts for adapter in concept.adapters(model)]
    with applied(model, adapters):
        tensors_by_name = model.condition([PROMPT])
        both = model.condition([PROMPT, PROMPT])
        return tensors_by_name.states, model.denoise(NOISE, TIMES, both)


def relative_distances(a: Sayings, b: Sayings) -> tuple[float, ...]:
    """The relative distances of the embeddings and of the outputs."""
    return tuple(float(((x - y).norm() / y.norm()).detach()) for x, y in zip(a, b, strict=True))


def same(a: Sayings, b: Sayings) -> bool:
    return max(relative_distances(a, b)) <= CLOSE


def other(a: Sayings, b: Sayings) -> bool:
    """Whether both the embeddings and the outputs differ."""
    return min(relative_distances(a, b)) > FAR


def random_adapter(
    model: Model, kind: str, chosen: str = "attn|fc|conv1", targets: str = "denoiser text text_2"
) -> Concept:
    """A random LoRA, about as strong as a trained one; alpha is half the rank."""
    draw = torch.Generator().manual_seed(7)
    parts: list[LoraPart] = []
    for target in filter(model.networks.__contains__, targets.split()):
        tensors: dict[str, Tensor] = {}
        for path, layer in model.networks[target].named_modules():
            if not isinstance(layer, nn.Linear | nn.Conv2d) or not re.search(chosen, path):
                continue
            name, weight = path.removeprefix("text_model."), layer.weight.detach()
            out, sides = len(weight), [1] * (weight.ndim - 2)
            down = torch.randn(RANK, *weight.shape[1:], generator=draw) / 4
            layers = {
                "lora_A.weight": down,
                "lora_B.weight": torch.randn(out, RANK, *sides, generator=draw) / 4,
                "alpha": torch.tensor(ALPHA),
            }
            if kind == "dora":
                spread = 0.5 + torch.rand(out, generator=draw)
                layers["lora_magnitude_vector"] = weight.flatten(1).norm(dim=1) * spread
            tensors |= {f"{name}.{key}": tensor for key, tensor in layers.items()}
        parts.append(LoraPart.from_stored({"target": target, "kind": kind}, tensors))
    return Concept(tuple(parts), Provenance.from_metadata("toy", {}))


def write(name: str, concept: Concept, out: Path) -> Path:
    registry.load("formats", name)().write(concept, Target(out))
    return out


def rewritten(file: Path, out: Path, change: Callable[[str, Tensor], Tensor | None]) -> Path:
    """A copy of a file without metadata, with some tensors changed or removed."""
    tensors_by_name = {
        name: change(name, tensor) for name, tensor in read_safetensors(file)[0].items()
    }
    save_file({name: t.clone() for name, t in tensors_by_name.items() if t is not None}, out)
    return out


CASES = [
    ("kohya", "1", "lora"),
    ("diffusers-lora", "1", "dora"),
    ("kohya", "xl", "lora"),
    pytest.param("diffusers-lora", "1", "lora", marks=LONG),
    pytest.param("diffusers-lora", "xl", "lora", marks=LONG),
    pytest.param("diffusers-lora", "xl", "dora", marks=LONG),
]


@pytest.mark.long
@pytest.mark.parametrize(("name", "family", "kind"), CASES)
def test_it_is_the_same_in_diffusers(
    name: str, family: str, kind: str, base: Callable[[str], Path], tmp_path: Path
) -> None:
    model = open_base(base(family))
    concept = random_adapter(model, kind)
    file = write(name, concept, tmp_path / "toy.safetensors")
    expected = diffusers_output(pipeline(base(family), file))
    assert same(pinxit_output(model, concept), expected)
    assert same(pinxit_output(model, read_concept(file)), expected)
    assert other(pinxit_output(model), expected)  # the control: the base alone
    # The control: without alpha it is taken for the rank, here as there.
    bare = rewritten(file, tmp_path / "bare.safetensors", without_alpha)
    assert other(pinxit_output(model, read_concept(bare)), expected)
    assert same(
        pinxit_output(model, read_concept(bare)), diffusers_output(pipeline(base(family), bare))
    )


def without_alpha(name: str, tensor: Tensor) -> Tensor | None:
    return None if name.endswith(".alpha") else tensor


@LONG
@pytest.mark.parametrize("target", ["denoiser", "text"])
def test_every_layer_counts_as_it_should(
    target: str, base: Callable[[str], Path], tmp_path: Path
) -> None:
    model = open_base(base("1"))
    concept = random_adapter(model, "lora", targets=target)
    (part,) = concept.parts
    own = {n: torch.tensor(3.0) for n in part.tensors if n.endswith(("to_k.alpha", "k_proj.alpha"))}
    parts = (part.from_stored(part.settings, {**part.tensors, **own}),)
    mixed = Concept(parts, concept.provenance)
    file = write("diffusers-lora", mixed, tmp_path / "toy.safetensors")
    assert own
    assert same(pinxit_output(model, mixed), diffusers_output(pipeline(base("1"), file)))
    # The control, and what the guide says: of kohya's files diffusers reads one alpha a network.
    file = write("kohya", mixed, tmp_path / "kohyas.safetensors")
    assert same(pinxit_output(model, read_concept(file)), pinxit_output(model, mixed))
    assert (
        max(
            relative_distances(
                pinxit_output(model, mixed), diffusers_output(pipeline(base("1"), file))
            )
        )
        > FAR
    )


# Errors of other converters: alpha, the text encoder of Stable Diffusion 1, DoRA.


def by_their_converter(concept: Concept, out: Path) -> dict[str, Tensor]:
    """A file for kohya from peft's tensors as diffusers' own converter makes it."""
    prefixes = {"denoiser": "unet", "text": "text_encoder.text_model"}
    state = {
        f"{prefixes[part.settings['target']]}.{name}": tensor
        for part in concept.parts
        for name, tensor in part.tensors.items()
        if not name.endswith(".alpha")
    }
    made = convert_state_dict_to_kohya(state)
    save_file({name: tensor.clone() for name, tensor in made.items()}, out)
    return made


def test_alpha_is_not_the_rank(base: Callable[[str], Path], tmp_path: Path) -> None:
    model = open_base(base("1"))
    concept = random_adapter(model, "lora")
    mine, _ = read_safetensors(write("kohya", concept, tmp_path / "mine.safetensors"))
    alphas = {float(tensor) for name, tensor in mine.items() if name.endswith(".alpha")}
    assert alphas == {ALPHA}
    made = by_their_converter(concept, tmp_path / "made.safetensors")
    assert {float(tensor) for name, tensor in made.items() if name.endswith(".alpha")} == {RANK}
    # The converted file can be read, and is twice as strong as the trained LoRA.
    expected = read_concept(tmp_path / "made.safetensors")
    assert other(pinxit_output(model, expected), pinxit_output(model, concept))
    assert same(
        pinxit_output(model, expected.with_strength(ALPHA / RANK)), pinxit_output(model, concept)
    )


def test_the_text_encoder_of_sd1_has_no_number(base: Callable[[str], Path], tmp_path: Path) -> None:
    model = open_base(base("1"))
    concept = random_adapter(model, "lora", targets="text")
    mine, _ = read_safetensors(write("kohya", concept, tmp_path / "mine.safetensors"))
    assert {name.split("_text_model_")[0] for name in mine} == {"lora_te"}
    made = by_their_converter(concept, tmp_path / "made.safetensors")
    assert {name.split("_text_model_")[0] for name in made} == {"lora_te1"}
    # The two towers of XL have numbers, and a file that numbers the only one is understood.
    both = random_adapter(open_base(base("xl")), "lora", targets="text text_2")
    numbered, _ = read_safetensors(write("kohya", both, tmp_path / "both.safetensors"))
    assert {name.split("_text_model_")[0] for name in numbered} == {"lora_te1", "lora_te2"}
    expected = read_concept(tmp_path / "made.safetensors")
    assert same(
        pinxit_output(model, expected.with_strength(ALPHA / RANK)), pinxit_output(model, concept)
    )


def test_doras_norms_have_their_name(base: Callable[[str], Path], tmp_path: Path) -> None:
    model = open_base(base("1"))
    concept = random_adapter(model, "dora", targets="denoiser")
    mine, _ = read_safetensors(write("kohya", concept, tmp_path / "mine.safetensors"))
    norms = {name: tensor for name, tensor in mine.items() if name.endswith(".dora_scale")}
    assert len(norms) == len([name for name in mine if name.endswith(".alpha")])
    assert all(t.shape == (len(t), *[1] * (t.ndim - 1)) and t.ndim > 1 for t in norms.values())
    assert not [name for name in mine if "magnitude" in name]
    made = by_their_converter(concept, tmp_path / "made.safetensors")
    assert not [name for name in made if "dora_scale" in name]
    expected = read_concept(tmp_path / "made.safetensors")
    assert {part.settings["kind"] for part in expected.parts} == {"dora"}
    assert same(pinxit_output(model, rescaled(expected)), pinxit_output(model, concept))


def rescaled(concept: Concept) -> Concept:
    """The concept with the trained alpha; a strength cannot undo a wrong alpha of DoRA."""
    parts = [
        part.from_stored(part.settings, {n: scaled(n, t) for n, t in part.tensors.items()})
        for part in concept.parts
    ]
    return Concept(tuple(parts), concept.provenance)


def scaled(name: str, tensor: Tensor) -> Tensor:
    return torch.tensor(ALPHA) if name.endswith(".alpha") else tensor


# Files of other programs.


@pytest.mark.parametrize("with_settings", [True, pytest.param(False, marks=LONG)])
@pytest.mark.parametrize("family", ["1", pytest.param("xl", marks=LONG)])
def test_what_diffusers_saves(
    with_settings: bool, family: str, base: Callable[[str], Path], tmp_path: Path
) -> None:
    pipe, layers = pipeline(base(family)), {}
    for name in ("unet", "text_encoder", "text_encoder_2"):
        network = getattr(pipe, name, None)
        if network is None:
            continue
        config = peft.LoraConfig(
            r=RANK,
            lora_alpha=int(ALPHA),
            target_modules=["to_q", "to_out.0", "conv1", "q_proj", "fc1"],
            rank_pattern={"to_q": 2, "q_proj": 2},
            alpha_pattern={"conv1": 3.0, "fc1": 3.0},
        )
        network.add_adapter(config)
        torch.manual_seed(3)
        for key, weight in network.named_parameters():
            if "lora_B" in key:
                nn.init.normal_(weight, std=0.2)
        layers[f"{name}_lora_layers"] = peft.get_peft_model_state_dict(network)
        if with_settings:
            layers[f"{name}_lora_adapter_metadata"] = config.to_dict()
    pipe.save_lora_weights(tmp_path / "toy", **layers)
    expected = read_concept(tmp_path / "toy")
    model = open_base(base(family))
    again = diffusers_output(
        pipeline(base(family), tmp_path / "toy" / "pytorch_lora_weights.safetensors")
    )
    assert same(pinxit_output(model, expected), again)
    assert (
        same(again, diffusers_output(pipe)) is with_settings
    )  # without their settings alpha is lost, there as here


class Named(nn.Module):
    """A text encoder with the layer name prefix that LyCORIS expects."""

    def __init__(self, text_model: nn.Module) -> None:
        super().__init__()
        self.text_model = text_model


# The layers that LyCORIS adapts; by default it would adapt some of a U-Net twice.
LAYERS = {
    "unet_target_module": ["Transformer2DModel", "ResnetBlock2D", "Downsample2D", "Upsample2D"],
    "unet_target_name": [],
    "text_encoder_target_module": ["CLIPAttention", "CLIPMLP"],
    "text_encoder_target_name": [],
}
KINDS: dict[str, dict[str, Any]] = {
    "loha": {},
    "loha-tucker": {"use_tucker": True},
    "lokr": {"factor": 4},
    "lokr-both": {"factor": 8, "decompose_both": True},
    "lokr-tucker": {"factor": 2, "use_tucker": True},
    "lokr-full": {"full_matrix": True},
    "dora": {"weight_decompose": True},
    "lora-tucker": {"use_tucker": True},
}


@pytest.fixture(scope="module")
def network_of() -> Any:
    """LyCORIS's class for kohya's names."""
    return lycoris.kohya.LycorisNetworkKohya.apply_preset(LAYERS)


QUICK = ("loha", "lokr", "dora")


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=LONG) for n in KINDS])
def test_what_lycoris_saves(
    name: str, base: Callable[[str], Path], network_of: Any, tmp_path: Path
) -> None:
    pipe, file = pipeline(base("1")), tmp_path / "toy.safetensors"
    rank = 1 if "both" in name or "tucker" in name else RANK
    torch.manual_seed(3)
    algorithm = name.split("-")[0].replace("dora", "lora")
    sizes = {"lora_dim": rank, "conv_lora_dim": rank, "alpha": rank / 2, "conv_alpha": rank / 2}
    network = network_of(
        Named(pipe.text_encoder), pipe.unet, network_module=algorithm, **sizes, **KINDS[name]
    )
    network.apply_to(Named(pipe.text_encoder), pipe.unet, True, True)
    for key, weight in network.named_parameters():
        if "dora_scale" not in key:
            nn.init.normal_(weight, std=0.4 if weight.ndim < 4 else 0.2)
    expected = diffusers_output(pipe)
    network.save_weights(str(file), None, {})
    model = open_base(base("1"))
    concept = read_concept(file)
    kinds = {part.settings["kind"] for part in concept.parts}
    assert kinds == {name.split("-")[0]}
    assert same(pinxit_output(model, concept), expected)
    assert other(pinxit_output(model), expected)
    assert other(
        pinxit_output(model, concept.with_strength(0.9)), expected
    )  # the control: a tenth less of it


@pytest.mark.parametrize("kind", ["loha", "lokr", "dora"])
def test_pinxit_files_in_lycoris(
    kind: Any, base: Callable[[str], Path], network_of: Any, tmp_path: Path
) -> None:
    model, pipe = open_base(base("1")), pipeline(base("1"))
    changes = [
        LoraAdapter.of(model, target, LoraConfig(kind, 2, 1.0, "all"), 5)
        for target in ("denoiser", "text")
    ]
    torch.manual_seed(3)
    for key, weight in [pair for change in changes for pair in change.weights().items()]:
        if "magnitude" not in key:
            nn.init.normal_(weight, std=0.3)
    concept = Concept(
        tuple(change.part() for change in changes), Provenance.from_metadata("toy", {})
    )
    file = write("kohya", concept, tmp_path / "toy.safetensors")
    assert network_of
    network, _ = lycoris.kohya.create_network_from_weights(
        1.0, str(file), None, Named(pipe.text_encoder), pipe.unet
    )
    network.apply_to(Named(pipe.text_encoder), pipe.unet, True, True)
    expected = diffusers_output(pipe)
    layers = [n for part in concept.parts for n in part.tensors if n.endswith(".alpha")]
    assert len(network.loras) == len(layers) > 50
    assert same(pinxit_output(model, concept), expected)
    assert other(pinxit_output(model), expected)
    assert other(pinxit_output(model, concept.with_strength(0.9)), expected)
    _, metadata = read_safetensors(file)
    hashed = lycoris.kohya.precalculate_safetensors_hashes(read_safetensors(file)[0])
    assert metadata["sshs_model_hash"] == hashed.removeprefix("0x")
