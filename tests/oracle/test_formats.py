"""diffusers reads files written by pinxit: the same tensors and the same images."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from pinxit import registry
from pinxit.adapters.adapter import applied
from pinxit.adapters.kinds.alias import AliasAdapter
from pinxit.adapters.parts import EmbeddingPart, FullWeightsPart, Part
from pinxit.concepts.concept import Concept
from pinxit.concepts.format import Target
from pinxit.concepts.metadata import Provenance
from pinxit.concepts.read import read_concept
from pinxit.files.safetensors_file import read_safetensors
from pinxit.generation.request import GenerationRequest
from pinxit.generation.sample import generate_images
from pinxit.models.checkpoint_source import CheckpointSource
from pinxit.models.family import trainable_networks
from pinxit.models.model import Model
from pinxit.models.open_base import find_base, open_base
from pinxit.models.source import FolderSource

WIDTH = 768
PROMPT = "a photo of shifu riding on the beach"
LONG = pytest.mark.long
SINGLE = (
    "stable-diffusion-1",
    pytest.param("stable-diffusion-2", marks=LONG),
    pytest.param("stable-diffusion-xl", marks=LONG),
)


def write(name: str, concept: Concept, out: Path, **target: Any) -> Path:
    registry.load("formats", name)().write(concept, Target(out, **target))
    return out


@pytest.fixture(scope="module")
def wide(bases: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model with a text encoder as wide as that of Stable Diffusion 1.5."""
    folder = tmp_path_factory.mktemp("wide")
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(bases("stable-diffusion-1"))
    settings = {**pipe.text_encoder.config.to_dict(), "hidden_size": WIDTH}
    pipe.text_encoder = CLIPTextModel(CLIPTextConfig(**settings))
    pipe.save_pretrained(folder)
    return folder


def shifu(seed: int = 0) -> Concept:
    """An embedding of five vectors with realistic norms."""
    table = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(seed)) / 2
    part = EmbeddingPart("shifu", "a", {"text": table})
    return Concept((part,), Provenance.from_metadata("shifu", {"name": "shifu"}))


@pytest.mark.parametrize(
    ("name", "ending", "token"),
    [
        ("a1111", ".pt", None),
        ("emb-params", ".safetensors", "shifu"),
        pytest.param("a1111", ".safetensors", "shifu", marks=LONG),
        pytest.param("onetrainer", ".safetensors", "shifu", marks=LONG),
        pytest.param("diffusers", ".safetensors", None, marks=LONG),
        pytest.param("diffusers", "", None, marks=LONG),
    ],
)
def test_an_embedding_conditions_as_in_diffusers(
    name: str, ending: str, token: str | None, wide: Path, tmp_path: Path
) -> None:
    out = write(name, shifu(), tmp_path / f"shifu{ending}")
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(wide, safety_checker=None)
    pipe.load_textual_inversion(str(out), token=token)
    diffusers_result = pipe.encode_prompt(PROMPT, "cpu", 1, False)[0]
    model = open_base(wide)

    def pinxit_result(concept: Concept) -> Tensor:
        with applied(model, concept.adapters(model)):
            return model.condition([PROMPT]).states

    assert relative_distance(pinxit_result(read_concept(out)), diffusers_result) <= 1e-6
    assert (
        relative_distance(pinxit_result(shifu(seed=1)), diffusers_result) > 1e-3
    )  # the control: other vectors


@pytest.mark.parametrize("family", SINGLE)
def test_a_single_file_is_what_diffusers_reads(
    family: str, bases: Callable[[str], Path], tmp_path: Path
) -> None:
    """Every weight of every network is equal to the bit after the converter of diffusers.

    Apart from two layers of the VAE, which have its scaling factor.
    """
    base = bases(family)
    concept = changed(base)
    kind = getattr(diffusers, FolderSource(base, "").config("")["_class_name"])
    out = write("single-file", concept, tmp_path / "tuned.safetensors", base=str(base))
    pipe = kind.from_single_file(out, config=str(base), local_files_only=True)
    tensors = {part.settings["network"]: part.tensors for part in concept.parts[1:]}
    compared = 0
    for part in filter(FolderSource(base, "").has, (*trainable_networks(), "vae")):
        diffusers_result = bare(getattr(pipe, part).state_dict())
        pinxit_result = bare(
            tensors.get(trainable_networks().get(part, "")) or FolderSource(base, "").weights(part)
        )
        assert pinxit_result.keys() == diffusers_result.keys() - {"embeddings.position_ids"}
        assert all(
            torch.equal(pinxit_result[name], diffusers_result[name])
            for name in pinxit_result
            if "quant_conv." not in name
        )
        compared += len(pinxit_result)
    assert compared > 200


@torch.no_grad()
def test_another_scaling_factor_is_in_the_weights_of_the_vae(
    bases: Callable[[str], Path], tmp_path: Path
) -> None:
    """A single file cannot state it: with the usual one, latents and images are the same."""
    base, usual = bases("stable-diffusion-1"), 0.18215
    out = write("single-file", changed(base), tmp_path / "tuned.safetensors", base=str(base))
    own = diffusers.AutoencoderKL.from_pretrained(base / "vae")
    read = diffusers.AutoencoderKL.from_config(own.config)
    read.load_state_dict(CheckpointSource(out, "").weights("vae"))
    assert own.config.scaling_factor != usual
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def results(vae: Any, factor: float) -> list[Tensor]:
        latents = vae.encode(pixels).latent_dist
        return [latents.mean * factor, latents.std * factor, vae.decode(ones / factor).sample]

    ones = torch.ones(1, 4, 8, 8)
    expected = results(own, own.config.scaling_factor)
    for vae, same in ((read, True), (own, False)):
        distances = map(relative_distance, results(vae, usual), expected)
        assert all(distance <= 1e-5 if same else distance > 1e-3 for distance in distances)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_rounded_single_file(
    precision: str, bases: Callable[[str], Path], tmp_path: Path
) -> None:
    base = bases("stable-diffusion-1")
    files = [
        write(
            "single-file", changed(base), tmp_path / f"{n}.safetensors", base=str(base), precision=n
        )
        for n in (None, precision)
    ]
    (exact, _), (rounded, metadata) = map(read_safetensors, files)
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    assert all(
        torch.equal(rounded[name], exact[name].to(dtype))
        for name in exact
        if "quant_conv." not in name  # rounded before the scaling factor is in it
    )
    assert metadata["modelspec.trigger_phrase"] == "sks dog"
    assert files[1].stat().st_size < 0.6 * files[0].stat().st_size


@pytest.mark.long
@pytest.mark.parametrize("precision", [None, "fp16"])
def test_a_folder_generates_the_same_in_diffusers(
    precision: Any, bases: Callable[[str], Path], tmp_path: Path
) -> None:
    base = bases("stable-diffusion-1")
    out = write("diffusers", changed(base), tmp_path / "tuned", base=str(base), precision=precision)
    again = read_concept(out)
    assert again.tokens == ["<mytoy>"]
    request = GenerationRequest(prompt="a photo of <mytoy>", steps=4, guidance=3.0, base=str(base))
    pinxit_result = latents(open_base(base), request, again)
    plain = request.model_copy(update={"prompt": "a photo of sks dog"})
    assert relative_distance(latents(open_base(out), plain), pinxit_result) <= (
        1e-4 if precision is None else 1e-2
    )
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(out)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    diffusers_result = pipe(
        "a photo of sks dog",
        num_inference_steps=4,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    ).images
    assert relative_distance(pinxit_result, diffusers_result) <= (
        1e-4 if precision is None else 1e-2
    )
    assert (
        relative_distance(latents(open_base(base), plain), diffusers_result) > 1e-2
    )  # the control: the base untuned


@pytest.mark.parametrize("family", SINGLE)
@pytest.mark.parametrize("name", ["single-file", pytest.param("diffusers", marks=LONG)])
def test_full_weights_are_read_to_the_bit(
    name: str, family: str, bases: Callable[[str], Path], tmp_path: Path
) -> None:
    base, ending = bases(family), {"single-file": ".safetensors", "diffusers": ""}
    concept = changed(base)
    out = write(name, concept, tmp_path / f"tuned{ending[name]}", base=str(base))
    again = read_concept(out)
    assert again.provenance == concept.provenance
    assert [(p.kind, p.settings) for p in again.parts] == [
        (p.kind, p.settings) for p in concept.parts
    ]
    assert all(same(*pair) for pair in zip(again.parts, concept.parts, strict=True))
    noise = [find_base(str(base_path)).config("scheduler") for base_path in (base, out)]
    assert len({tensors.get("prediction_type", "epsilon") for tensors in noise}) == 1
    # Without our description, as another program writes it, every network counts as tuned; and
    # from there to the other layout and back nothing is lost either.
    forget(out)
    foreign = read_concept(out)
    assert {p.settings["network"] for p in foreign.parts} >= {"denoiser", "text"}
    other = next(layout for layout in ending if layout != name)
    there = write(other, foreign, tmp_path / f"there{ending[other]}")
    # A shared file has no path of its base model, so it is given.
    back = write(name, read_concept(there), tmp_path / f"back{ending[name]}", base=str(out))
    forget(back)
    returned = read_concept(back)
    assert all(same(*pair) for pair in zip(returned.parts, foreign.parts, strict=True))
    assert not same(
        returned.parts[0], FullWeightsPart("denoiser", changed_weights(base, "unet", seed=4))
    )  # the control


def forget(out: Path) -> None:
    """Remove pinxit's description from the files."""
    for file in [out] if out.is_file() else out.rglob("*.safetensors"):
        tensors, _ = read_safetensors(file)
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, file)


def same(one: Part, other: Part) -> bool:
    a, b = bare(one.tensors), bare(other.tensors)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def changed_weights(base: Path, part: str, seed: int = 3) -> dict[str, Tensor]:
    """A network's weights with noise added to each."""
    draw = torch.Generator().manual_seed(seed)
    own = bare(FolderSource(base, "").weights(part))
    return {n: t + 0.05 * torch.randn(t.shape, generator=draw) for n, t in own.items()}


def changed(base: Path) -> Concept:
    """A denoiser and a text encoder with noise added, and an alias from `<mytoy>` to "sks dog"."""
    tuned = [
        FullWeightsPart(trainable_networks()[part], changed_weights(base, part))
        for part in ("unet", "text_encoder")
    ]
    alias = AliasAdapter("<mytoy>", "sks dog").part()
    return Concept((alias, *tuned), Provenance.from_metadata("<mytoy>", {}))


def latents(model: Model, request: GenerationRequest, *concepts: Concept) -> Tensor:
    return torch.stack([image.latents for image in generate_images(model, request, concepts)])


def bare(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("text_model."): tensor for name, tensor in weights.items()}


def relative_distance(a: Tensor, b: Tensor) -> float:
    return float(((a - b).norm() / b.norm()).detach())
