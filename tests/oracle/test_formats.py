"""What is written for others is opened by diffusers, with the same bits and the same pictures."""

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
from pinxit.adapters.adapter import Alias, Part, injected
from pinxit.concepts.concept import Concept, Provenance
from pinxit.concepts.format import Target
from pinxit.concepts.full_model_file import PARTS
from pinxit.files.safetensors_file import read_safetensors
from pinxit.generation.generate import Request, paint
from pinxit.models.model import Model, find_base, open_base
from pinxit.models.source import Folder

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
    """A base whose text tower is as wide as Stable Diffusion 1.5's."""
    folder = tmp_path_factory.mktemp("wide")
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(bases("stable-diffusion-1"))
    settings = {**pipe.text_encoder.config.to_dict(), "hidden_size": WIDTH}
    pipe.text_encoder = CLIPTextModel(CLIPTextConfig(**settings))
    pipe.save_pretrained(folder)
    return folder


def shifu(seed: int = 0) -> Concept:
    """A word of five vectors, as long as real ones."""
    table = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(seed)) / 2
    part = Part("new-word", {"word": "shifu", "stand_in": "a"}, {"text": table})
    return Concept((part,), Provenance.foreign("shifu", {"name": "shifu"}))


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
def test_a_word_steers_as_in_diffusers(
    name: str, ending: str, token: str | None, wide: Path, tmp_path: Path
) -> None:
    out = write(name, shifu(), tmp_path / f"shifu{ending}")
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(wide, safety_checker=None)
    pipe.load_textual_inversion(str(out), token=token)
    theirs = pipe.encode_prompt(PROMPT, "cpu", 1, False)[0]
    model = open_base(wide)

    def ours(concept: Concept) -> Tensor:
        with injected(model, concept.adapters(model)):
            return model.condition([PROMPT]).states

    assert apart(ours(Concept.load(out)), theirs) <= 1e-6
    assert apart(ours(shifu(seed=1)), theirs) > 1e-3  # the control: other vectors


@pytest.mark.parametrize("family", SINGLE)
def test_a_single_file_is_what_diffusers_reads(
    family: str, bases: Callable[[str], Path], tmp_path: Path
) -> None:
    """Our names are the inverse of its converter's: every weight of every network, to the bit."""
    base = bases(family)
    concept = changed(base)
    kind = getattr(diffusers, Folder(base, "").config("")["_class_name"])
    out = write("single-file", concept, tmp_path / "tuned.safetensors", base=str(base))
    pipe = kind.from_single_file(out, config=str(base), local_files_only=True)
    told = {part.settings["network"]: part.tensors for part in concept.parts[1:]}
    compared = 0
    for part in filter(Folder(base, "").has, (*PARTS, "vae")):
        theirs = bare(getattr(pipe, part).state_dict())
        ours = bare(told.get(PARTS.get(part, "")) or Folder(base, "").weights(part))
        assert ours.keys() == theirs.keys() - {"embeddings.position_ids"}
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        compared += len(ours)
    assert compared > 200


@pytest.mark.parametrize("numbers", ["fp16", "bf16"])
def test_a_rounded_single_file(numbers: str, bases: Callable[[str], Path], tmp_path: Path) -> None:
    base = bases("stable-diffusion-1")
    files = [
        write(
            "single-file", changed(base), tmp_path / f"{n}.safetensors", base=str(base), numbers=n
        )
        for n in (None, numbers)
    ]
    (exact, _), (rounded, said) = map(read_safetensors, files)
    dtype = torch.float16 if numbers == "fp16" else torch.bfloat16
    assert all(torch.equal(rounded[name], exact[name].to(dtype)) for name in exact)
    assert said["modelspec.trigger_phrase"] == "sks dog"
    assert files[1].stat().st_size < 0.6 * files[0].stat().st_size


@pytest.mark.long
@pytest.mark.parametrize("numbers", [None, "fp16"])
def test_a_folder_paints_the_same_in_diffusers(
    numbers: Any, bases: Callable[[str], Path], tmp_path: Path
) -> None:
    base = bases("stable-diffusion-1")
    out = write("diffusers", changed(base), tmp_path / "tuned", base=str(base), numbers=numbers)
    again = Concept.load(out)
    assert again.words == ["<mytoy>"]
    asked = Request(prompt="a photo of <mytoy>", steps=4, guidance=3.0, base=str(base))
    ours = latents(open_base(base), asked, again)
    plain = asked.model_copy(update={"prompt": "a photo of sks dog"})
    assert apart(latents(open_base(out), plain), ours) <= (1e-4 if numbers is None else 1e-2)
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(out)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        "a photo of sks dog",
        num_inference_steps=4,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    ).images
    assert apart(ours, theirs) <= (1e-4 if numbers is None else 1e-2)
    assert apart(latents(open_base(base), plain), theirs) > 1e-2  # the control: the base untuned


@pytest.mark.parametrize("family", SINGLE)
@pytest.mark.parametrize("name", ["single-file", pytest.param("diffusers", marks=LONG)])
def test_a_tuned_base_comes_back_to_the_bit(
    name: str, family: str, bases: Callable[[str], Path], tmp_path: Path
) -> None:
    base, ending = bases(family), {"single-file": ".safetensors", "diffusers": ""}
    concept = changed(base)
    out = write(name, concept, tmp_path / f"tuned{ending[name]}", base=str(base))
    again = Concept.load(out)
    assert again.provenance == concept.provenance
    assert [(p.kind, p.settings) for p in again.parts] == [
        (p.kind, p.settings) for p in concept.parts
    ]
    assert all(same(*pair) for pair in zip(again.parts, concept.parts, strict=True))
    noise = [find_base(str(found)).config("scheduler") for found in (base, out)]
    assert len({told.get("prediction_type", "epsilon") for told in noise}) == 1
    # Without our description, as another program writes it, every network counts as tuned; and
    # from there to the other layout and back nothing is lost either.
    forget(out)
    foreign = Concept.load(out)
    assert {p.settings["network"] for p in foreign.parts} >= {"denoiser", "text"}
    other = next(layout for layout in ending if layout != name)
    there = write(other, foreign, tmp_path / f"there{ending[other]}")
    back = write(name, Concept.load(there), tmp_path / f"back{ending[name]}")
    forget(back)
    returned = Concept.load(back)
    assert all(same(*pair) for pair in zip(returned.parts, foreign.parts, strict=True))
    assert not same(returned.parts[0], Part("", {}, moved(base, "unet", seed=4)))  # the control


def forget(out: Path) -> None:
    """Take our own description out of what was written."""
    for file in [out] if out.is_file() else out.rglob("*.safetensors"):
        tensors, _ = read_safetensors(file)
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, file)


def same(one: Part, other: Part) -> bool:
    a, b = bare(one.tensors), bare(other.tensors)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def moved(base: Path, part: str, seed: int = 3) -> dict[str, Tensor]:
    """A network's weights, each of them moved."""
    draw = torch.Generator().manual_seed(seed)
    own = bare(Folder(base, "").weights(part))
    return {n: t + 0.05 * torch.randn(t.shape, generator=draw) for n, t in own.items()}


def changed(base: Path) -> Concept:
    """A base's denoiser and first text encoder, each weight moved, for `<mytoy>`, "sks dog"."""
    tuned = [
        Part("tuned-weights", {"network": PARTS[part]}, moved(base, part))
        for part in ("unet", "text_encoder")
    ]
    alias = Alias("<mytoy>", "sks dog").part()
    return Concept((alias, *tuned), Provenance.foreign("<mytoy>", {}))


def latents(model: Model, asked: Request, *concepts: Concept) -> Tensor:
    return torch.stack([painted.latents for painted in paint(model, asked, concepts)])


def bare(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("text_model."): tensor for name, tensor in weights.items()}


def apart(a: Tensor, b: Tensor) -> float:
    return float(((a - b).norm() / b.norm()).detach())
