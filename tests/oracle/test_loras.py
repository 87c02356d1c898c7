"""LoRAs and their kin: ours in diffusers and LyCORIS, theirs here, and where converters err."""

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
from pinxit.adapters.adapter import Part, injected
from pinxit.adapters.lora import Form, LowRank
from pinxit.concepts.concept import Concept, Provenance
from pinxit.concepts.format import Target
from pinxit.files.safetensors_file import read_safetensors
from pinxit.models.model import Model, open_base

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


def apart(a: Sayings, b: Sayings) -> tuple[float, ...]:
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


@LONG
@pytest.mark.parametrize("target", ["denoiser", "text"])
def test_every_layer_counts_as_it_should(
    target: str, base: Callable[[str], Path], tmp_path: Path
) -> None:
    model = open_base(base("1"))
    concept = learned(model, "lora", targets=target)
    (part,) = concept.parts
    own = {n: torch.tensor(3.0) for n in part.tensors if n.endswith(("to_k.alpha", "k_proj.alpha"))}
    parts = (Part(part.kind, part.settings, {**part.tensors, **own}),)
    mixed = Concept(parts, concept.provenance)
    file = write("diffusers-lora", mixed, tmp_path / "toy.safetensors")
    assert own
    assert same(ours(model, mixed), theirs(pipeline(base("1"), file)))
    # The control, and what the guide says: of kohya's files diffusers reads one alpha a network.
    file = write("kohya", mixed, tmp_path / "kohyas.safetensors")
    assert same(ours(model, Concept.load(file)), ours(model, mixed))
    assert max(apart(ours(model, mixed), theirs(pipeline(base("1"), file)))) > FAR


# Where converters go wrong, and ours not: alpha, the text tower of Stable Diffusion 1, DoRA.


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
    concept = learned(model, "lora")
    mine, _ = read_safetensors(write("kohya", concept, tmp_path / "mine.safetensors"))
    alphas = {float(tensor) for name, tensor in mine.items() if name.endswith(".alpha")}
    assert alphas == {ALPHA}
    made = by_their_converter(concept, tmp_path / "made.safetensors")
    assert {float(tensor) for name, tensor in made.items() if name.endswith(".alpha")} == {RANK}
    # Theirs opens here and is what it says: twice as strong as what was learned.
    found = Concept.load(tmp_path / "made.safetensors")
    assert other(ours(model, found), ours(model, concept))
    assert same(ours(model, found.at(ALPHA / RANK)), ours(model, concept))


def test_the_first_familys_text_tower_has_no_number(
    base: Callable[[str], Path], tmp_path: Path
) -> None:
    model = open_base(base("1"))
    concept = learned(model, "lora", targets="text")
    mine, _ = read_safetensors(write("kohya", concept, tmp_path / "mine.safetensors"))
    assert {name.split("_text_model_")[0] for name in mine} == {"lora_te"}
    made = by_their_converter(concept, tmp_path / "made.safetensors")
    assert {name.split("_text_model_")[0] for name in made} == {"lora_te1"}
    # The two towers of XL have numbers, and a file that numbers the only one is understood.
    both = learned(open_base(base("xl")), "lora", targets="text text_2")
    numbered, _ = read_safetensors(write("kohya", both, tmp_path / "both.safetensors"))
    assert {name.split("_text_model_")[0] for name in numbered} == {"lora_te1", "lora_te2"}
    found = Concept.load(tmp_path / "made.safetensors")
    assert same(ours(model, found.at(ALPHA / RANK)), ours(model, concept))


def test_doras_norms_have_their_name(base: Callable[[str], Path], tmp_path: Path) -> None:
    model = open_base(base("1"))
    concept = learned(model, "dora", targets="denoiser")
    mine, _ = read_safetensors(write("kohya", concept, tmp_path / "mine.safetensors"))
    norms = {name: tensor for name, tensor in mine.items() if name.endswith(".dora_scale")}
    assert len(norms) == len([name for name in mine if name.endswith(".alpha")])
    assert all(t.shape == (len(t), *[1] * (t.ndim - 1)) and t.ndim > 1 for t in norms.values())
    assert not [name for name in mine if "magnitude" in name]
    made = by_their_converter(concept, tmp_path / "made.safetensors")
    assert not [name for name in made if "dora_scale" in name]
    found = Concept.load(tmp_path / "made.safetensors")
    assert {part.settings["kind"] for part in found.parts} == {"dora"}
    assert same(ours(model, rescaled(found)), ours(model, concept))


def rescaled(concept: Concept) -> Concept:
    """With alpha as it was learned: by halves no DoRA can be weaker in all."""
    parts = [
        Part(part.kind, part.settings, {n: scaled(n, t) for n, t in part.tensors.items()})
        for part in concept.parts
    ]
    return Concept(tuple(parts), concept.provenance)


def scaled(name: str, tensor: Tensor) -> Tensor:
    return torch.tensor(ALPHA) if name.endswith(".alpha") else tensor


# Files of others.


@pytest.mark.parametrize("told", [True, pytest.param(False, marks=LONG)])
@pytest.mark.parametrize("family", ["1", pytest.param("xl", marks=LONG)])
def test_what_diffusers_saves(
    told: bool, family: str, base: Callable[[str], Path], tmp_path: Path
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
        if told:
            layers[f"{name}_lora_adapter_metadata"] = config.to_dict()
    pipe.save_lora_weights(tmp_path / "toy", **layers)
    found = Concept.load(tmp_path / "toy")
    model = open_base(base(family))
    again = theirs(pipeline(base(family), tmp_path / "toy" / "pytorch_lora_weights.safetensors"))
    assert same(ours(model, found), again)
    assert same(again, theirs(pipe)) is told  # without their settings alpha is lost, there as here


class Named(nn.Module):
    """A text tower whose layers' names begin as in the releases that LyCORIS was made for."""

    def __init__(self, text_model: nn.Module) -> None:
        super().__init__()
        self.text_model = text_model


# Which layers theirs are laid beside; by itself it would count some of a U-Net's twice.
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
    found = theirs(pipe)
    network.save_weights(str(file), None, {})
    model = open_base(base("1"))
    concept = Concept.load(file)
    kinds = {part.settings["kind"] for part in concept.parts}
    assert kinds == {name.split("-")[0]}
    assert same(ours(model, concept), found)
    assert other(ours(model), found)
    assert other(ours(model, concept.at(0.9)), found)  # the control: a tenth less of it


@pytest.mark.parametrize("kind", ["loha", "lokr", "dora"])
def test_ours_in_lycoris(
    kind: Any, base: Callable[[str], Path], network_of: Any, tmp_path: Path
) -> None:
    model, pipe = open_base(base("1")), pipeline(base("1"))
    changes = [
        LowRank.of(model, target, Form(kind, 2, 1.0, "all"), 5) for target in ("denoiser", "text")
    ]
    torch.manual_seed(3)
    for key, weight in [pair for change in changes for pair in change.weights().items()]:
        if "magnitude" not in key:
            nn.init.normal_(weight, std=0.3)
    concept = Concept(tuple(change.part() for change in changes), Provenance.foreign("toy", {}))
    file = write("kohya", concept, tmp_path / "toy.safetensors")
    assert network_of
    network, _ = lycoris.kohya.create_network_from_weights(
        1.0, str(file), None, Named(pipe.text_encoder), pipe.unet
    )
    network.apply_to(Named(pipe.text_encoder), pipe.unet, True, True)
    found = theirs(pipe)
    layers = [n for part in concept.parts for n in part.tensors if n.endswith(".alpha")]
    assert len(network.loras) == len(layers) > 50
    assert same(ours(model, concept), found)
    assert other(ours(model), found)
    assert other(ours(model, concept.at(0.9)), found)
    _, said = read_safetensors(file)
    hashed = lycoris.kohya.precalculate_safetensors_hashes(read_safetensors(file)[0])
    assert said["sshs_model_hash"] == hashed.removeprefix("0x")
