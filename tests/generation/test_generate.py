"""Generation: seeds, sizes, requests stored in images, notices."""

import json
import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from zlib import crc32

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pinxit.adapters.kinds.embedding import EmbeddingAdapter
from pinxit.adapters.lora_part import LoraPart
from pinxit.concepts.concept import Concept
from pinxit.concepts.metadata import Provenance
from pinxit.concepts.png_embedding import read_hidden_embedding
from pinxit.concepts.read import ConceptReference, read_concept, write_concept
from pinxit.errors import ConceptError, ImageError, PinxitError, RequestError, RunError
from pinxit.generation import schedulers
from pinxit.generation.control import SamplingProgress
from pinxit.generation.controls.inversion import Inversion
from pinxit.generation.controls.mask import Mask
from pinxit.generation.notices import request_notices
from pinxit.generation.request import GeneratedImage, GenerationRequest
from pinxit.generation.sample import batch_requests, generate_images, sample_images
from pinxit.generation.schedulers import SCHEDULER_ALIASES, SCHEDULERS
from pinxit.images.tensors import contact_sheet, to_image, to_pixels
from pinxit.models.model import Model
from pinxit.models.noise_schedule import ScheduleKind
from pinxit.models.open_base import open_base
from pinxit.progress import Notice

QUICK = GenerationRequest(prompt="a dog", steps=3)


def changed(**fields: object) -> GenerationRequest:
    return GenerationRequest.model_validate({**QUICK.model_dump(), **fields})


def concept(model: Model, width: int = 32, base_hash: str = "") -> Concept:
    about = Provenance(
        "<mytoy>", "toy", "textual-inversion", "x", base_hash or model.hash, 1, {}, ""
    )
    return Concept(
        (EmbeddingAdapter("<mytoy>", "toy", {"text": torch.ones(1, width)}).part(),), about
    )


@pytest.mark.parametrize("scheduler", ["ddim", "euler-a", "ddpm"])
def test_an_image_depends_on_its_own_seed_only(model: Model, scheduler: str) -> None:
    batch = generate_images(model, changed(scheduler=scheduler, seed=5, num_images=4))
    for number, image in enumerate(batch):
        single = generate_images(model, changed(scheduler=scheduler, seed=5 + number))[0]
        # A batch differs only by rounding: in the seventh digit of the largest value.
        assert (image.latents - single.latents).abs().max() < 1e-5 * single.latents.abs().max()
        assert image.request == single.request
    assert not torch.allclose(batch[0].latents, batch[1].latents, atol=0.1)


def test_the_same_request_generates_the_same_image(model: Model, tmp_path: Path) -> None:
    first = generate_images(model, changed(seed=3, negative_prompt="red", width=40, height=24))[0]
    assert first.image.size == (40, 24)
    first.save(tmp_path / "a.png")
    again = GenerationRequest.from_png(tmp_path / "a.png")
    assert again == first.request
    assert again.base == model.name
    assert generate_images(model, again)[0].image.tobytes() == first.image.tobytes()


# The text of a PNG as the first version wrote it.
FIRST_VERSION = {
    "prompt": "a <mytoy> dog",
    "negative": "red",
    "concepts": ["/runs/mytoy:0.7"],
    "count": 1,
    "seed": 7,
    "steps": 4,
    "guidance": 3.0,
    "scheduler": "euler-a",
    "width": 40,
    "init": "/images/dog.png",
    "strength": 0.4,
    "controls": [
        {"name": "inversion", "picture": "/dog.png", "keep": 0.3, "shows": "a", "path": "noised"},
        {"name": "mask", "picture": "/dog.png", "mask": "/mask.png", "outside": True},
    ],
    "base": "pocket",
    "precision": "fp32",
}


def test_images_of_the_first_version_contain_the_same_request(tmp_path: Path) -> None:
    info = PngInfo()
    info.add_text("pinxit", json.dumps(FIRST_VERSION))
    Image.new("RGB", (8, 8)).save(tmp_path / "old.png", pnginfo=info)
    request = GenerationRequest.from_png(tmp_path / "old.png")
    assert request == GenerationRequest(
        prompt="a <mytoy> dog",
        negative_prompt="red",
        concepts=(ConceptReference(Path("/runs/mytoy"), 0.7),),
        seed=7,
        steps=4,
        guidance_scale=3.0,
        scheduler="euler-a",
        width=40,
        init_image=Path("/images/dog.png"),
        denoising_strength=0.4,
        controls=(
            Inversion(
                image=Path("/dog.png"), preserve=0.3, source_prompt="a", initial_noise="random"
            ),
            Mask(image=Path("/dog.png"), mask=Path("/mask.png"), invert_mask=True),
        ),
        base="pocket",
        precision="fp32",
    )


@pytest.mark.parametrize(
    ("name", "scheduler"),
    [
        ("dpmpp_2m", "dpm++"),
        ("euler_a", "euler-a"),
        ("k_euler", "euler"),
        ("Euler a", "euler-a"),
        ("DDIMScheduler", "ddim"),
    ],
)
def test_scheduler_names_of_other_programs(name: str, scheduler: str) -> None:
    assert changed(scheduler=name).scheduler == scheduler


def test_every_scheduler_alias_is_a_scheduler() -> None:
    assert set(SCHEDULER_ALIASES.values()) == set(SCHEDULERS)
    assert not SCHEDULER_ALIASES.keys() & set(SCHEDULERS)


def test_a_request_for_very_many_images_is_split_at_once(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[GenerationRequest] = []
    seeds = property(lambda request: made.append(request) or range(request.num_images))
    monkeypatch.setattr(GenerationRequest, "seeds", seeds)
    batches = batch_requests(model, GenerationRequest(prompt="a toy", num_images=100))
    assert (len(made), sum(batch.num_images for batch in batches)) == (1, 100)


def test_a_long_prompt_is_not_repeated_in_full(model: Model) -> None:
    request = GenerationRequest(prompt="red toy " * 250, steps=1)
    (note,) = (n.message for n in request_notices(model, request, ()) if "too long" in n.message)
    assert note.count("red toy") <= 52
    assert note.endswith("...`")


def test_many_images_are_generated_in_batches(model: Model) -> None:
    events = list(sample_images(model, changed(num_images=17, steps=2)))
    frames = [event for event in events if isinstance(event, SamplingProgress)]
    assert [frame.done for frame in frames] == [1, 2, 3, 4]
    assert {frame.total for frame in frames} == {4}
    assert [len(frame.latents) for frame in frames] == [16, 16, 1, 1]
    images = [event for event in events if isinstance(event, GeneratedImage)]
    assert [image.request.seed for image in images] == list(range(17))


def test_gradients_are_enabled_between_events(model: Model) -> None:
    for _ in sample_images(model, QUICK):
        assert torch.is_grad_enabled()


def test_denoising_strength_is_the_fraction_of_steps(model: Model, tmp_path: Path) -> None:
    Image.new("RGB", (50, 60), "teal").save(tmp_path / "start.png")
    steps = [
        sum(
            isinstance(event, SamplingProgress)
            for event in sample_images(
                model,
                changed(init_image=tmp_path / "start.png", steps=10, denoising_strength=strength),
            )
        )
        for strength in (0.2, 0.6, 1.0)
    ]
    assert steps == [2, 6, 10]


def test_notices(model: Model) -> None:
    request = changed(prompt="a <mytoy> dog " * 20 + "in the grass", negative_prompt="<other>")
    notes = [
        event
        for event in sample_images(model, request, [concept(model, 32, "other")])
        if isinstance(event, Notice)
    ]
    assert "this part was left out: `" in notes[0].message
    assert notes[0].message.endswith("in the grass`")
    assert "unknown token `<other>`" in notes[1].message
    assert "<mytoy> was trained on x, not on" in notes[2].message
    assert len(notes) == 3


@pytest.mark.parametrize(
    ("fields", "note"),
    [
        ({"prompt": "a Siamese dog in Paris"}, "does not know `Siamese`, `Paris`: its vocab"),
        ({"width": 128}, "was trained at 32 pixels: at 128x128, images"),
        ({"width": 16}, "was trained at 32 pixels: at 16x16, images"),
        ({"prompt": " "}, "the prompt is empty"),
        ({"prompt": "a (toy"}, "has no partner"),
        ({"negative_prompt": "red", "guidance_scale": 1}, "no effect at guidance scale 1"),
        ({"denoising_strength": 0.5}, "no effect without an image"),
    ],
)
def test_unusual_requests_are_noted(model: Model, fields: dict[str, object], note: str) -> None:
    notes = [e.message for e in sample_images(model, changed(**fields)) if isinstance(e, Notice)]
    assert len(notes) == 1
    assert note in notes[0]
    assert not [e for e in sample_images(model, changed(width=40)) if isinstance(e, Notice)]


def test_prompt_syntax_of_other_programs_is_noted(model: Model) -> None:
    request = changed(prompt="a <lora:toy:0.8> dog [a:cat:0.5] BREAK (a toy:1.2) [dog]")
    notes = [e.message for e in sample_images(model, request) if isinstance(e, Notice)]
    assert "read as ordinary words: `<lora:toy:0.8>`, `[a:cat:0.5]`, `BREAK`" in notes[0]


def test_a_mask_that_is_a_photograph_is_noted(model: Model, tmp_path: Path) -> None:
    source, mask = tmp_path / "source.png", tmp_path / "mask.png"
    Image.new("RGB", (32, 32), "teal").save(source)
    for color, number in (("grey", 1), ("white", 0)):
        Image.new("RGB", (32, 32), color).save(mask)
        control = {"name": "mask", "image": source, "mask": mask}
        events = sample_images(model, changed(controls=[control], steps=1))
        notes = [event.message for event in events if isinstance(event, Notice)]
        assert ["mostly grey, as a photograph" in note for note in notes] == [True] * number


@pytest.mark.parametrize(
    ("fields", "message", "hint"),
    [
        ({"scheduler": "eular"}, "unknown scheduler `eular`", "did you mean euler?"),
        (
            {"guidance_scale": 0.5},
            "`guidance_scale` cannot be 0.5",
            "guidance_scale is: class",
        ),
        ({"num_images": 0}, "`num_images` cannot be 0", "num_images is: number"),
        ({"sede": 1}, "the request has no `sede`", "did you mean seed?"),
    ],
)
def test_wrong_requests(fields: dict[str, object], message: str, hint: str) -> None:
    with pytest.raises(RequestError) as caught:
        changed(**fields)
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_sizes_that_do_not_fit_the_latents(model: Model) -> None:
    with pytest.raises(RequestError, match="cannot generate 30x30") as caught:
        generate_images(model, changed(width=30))
    assert "32x32" in caught.value.hint


def test_notice_about_another_clip_skip(model: Model) -> None:
    trained = concept(model)
    trained = replace(trained, provenance=replace(trained.provenance, recipe="clip_skip = 2"))
    messages = [
        [
            event.message
            for event in sample_images(model, request, [trained])
            if isinstance(event, Notice)
        ]
        for request in (changed(prompt="<mytoy>"), changed(prompt="<mytoy>", clip_skip=2))
    ]
    assert messages == [["<mytoy> was trained with clip skip 2. hint: add --clip-skip 2"], []]


def test_initial_images_that_cannot_be_read(model: Model, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="there is no image"):
        generate_images(model, changed(init_image=tmp_path / "none.png"))
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ImageError, match=r"text\.png"):
        generate_images(model, changed(init_image=tmp_path / "text.png"))
    with pytest.raises(RequestError, match=r"text\.png cannot be read"):
        GenerationRequest.from_png(tmp_path / "text.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    with pytest.raises(RequestError, match="contains no generation request"):
        GenerationRequest.from_png(tmp_path / "plain.png")


def test_a_concept_of_another_width(model: Model) -> None:
    with pytest.raises(ConceptError, match=r"are 24 wide, but those of .* are 32 wide"):
        generate_images(model, QUICK, [concept(model, 24)])
    assert not model.placeholders


def test_files_that_are_not_concepts(model: Model, tmp_path: Path) -> None:
    with pytest.raises(ConceptError, match="does not exist"):
        read_concept(tmp_path / "none")
    with pytest.raises(ConceptError, match="is not a run, model or embedding"):
        read_concept(tmp_path)
    recipe = tmp_path / "recipe.toml"
    recipe.touch()
    with pytest.raises(ConceptError, match="a run without a result"):
        read_concept(tmp_path)
    recipe.unlink()
    file = tmp_path / "concept.safetensors"
    file.write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00nonsense")
    with pytest.raises(ConceptError, match="not a safetensors file"):
        read_concept(tmp_path)
    with pytest.raises(RunError, match="is in the way"):
        write_concept(concept(model), file)
    file.unlink()
    write_concept(concept(model), file)
    assert read_concept(tmp_path).token == "<mytoy>"
    assert not [path for path in tmp_path.iterdir() if path != file]


def test_pixels_and_images_convert_both_ways() -> None:
    image = Image.effect_noise((24, 16), 80).convert("RGB")
    assert to_image(to_pixels(image, 24, 16)[0]).tobytes() == image.tobytes()
    wide = to_pixels(Image.new("RGB", (90, 30), "red"), 16, 16)
    assert wide.shape == (1, 3, 16, 16)
    assert contact_sheet([image] * 5).size == (3 * 28 + 4, 2 * 20 + 4)
    assert contact_sheet([image]).size == (32, 24)


def png_with(text: str, path: Path) -> Path:
    info = PngInfo()
    info.add_text("pinxit", text, zip=True)
    Image.new("RGB", (64, 64), "red").save(path, pnginfo=info)
    return path


def stored_request(**values: object) -> str:
    return json.dumps({"prompt": "a cat", "steps": 1, **values})


@pytest.mark.parametrize(
    "text",
    [
        "hello",
        "[1]",
        "[" * 100_000,
        '{"prompt": ' + "9" * 5000 + "}",
        '{"prompt": "\\ud800"}',
        "A" * 3 * 10**7,
        stored_request(seed=10**30),
        stored_request(seed=True, steps="x"),
        stored_request(base="a\0b"),
        stored_request(base="a" * 5000),
        stored_request(width=8 * 10**18),
        stored_request(height=800_000),
        stored_request(num_images=10**9),
        stored_request(prompt="a" * 2_000_000),
        stored_request(concepts=[5]),
        stored_request(controls=[{"name": "../x"}]),
    ],
    ids=lambda text: text[:40],
)
def test_an_invalid_request_in_a_png_is_an_error(text: str, tmp_path: Path) -> None:
    with pytest.raises(PinxitError) as caught:
        GenerationRequest.from_png(png_with(text, tmp_path / "image.png"))
    assert len(caught.value.message) < 1000


def test_a_png_that_claims_to_be_huge_is_an_error(tmp_path: Path) -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc32(name + data))

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    path = tmp_path / "huge.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IEND", b""))
    with pytest.raises(RequestError, match="pixels"):
        GenerationRequest.from_png(path)
    with pytest.raises(ConceptError, match="pixels"):
        read_hidden_embedding(path)


def test_a_png_contains_no_path_of_the_users_folder(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "ada"
    (home / "work").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    monkeypatch.chdir(home / "work")
    image = generate_images(model, QUICK)[0]
    request = image.request.model_copy(
        update={
            "prompt": "~/a toy",
            "base": str(home / "work" / "nano"),
            "concepts": (ConceptReference(home / "runs" / "toy", 0.5),),
            "init_image": home / "work" / "dog.png",
        }
    )
    replace(image, request=request).save(tmp_path / "a.png")
    assert b"ada" not in (tmp_path / "a.png").read_bytes()
    again = GenerationRequest.from_png(tmp_path / "a.png")
    assert again == request.model_copy(update={"init_image": Path("dog.png")})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_concept_with_values_that_are_not_finite_is_refused(model: Model, value: float) -> None:
    broken = concept(model)
    broken.parts[0].tensors["text"][0, 3] = value
    with pytest.raises(ConceptError, match="1 values of text are infinite or NaN"):
        generate_images(model, changed(prompt="<mytoy>"), [broken])
    lora = LoraPart("denoiser", "lora", {"x": {"lora_A.weight": torch.full((1, 2), value)}})
    with pytest.raises(ConceptError, match=r"2 values of x\.lora_A\.weight are infinite or NaN"):
        generate_images(model, QUICK, [replace(broken, parts=(lora,))])


@pytest.mark.parametrize("network", ["denoiser", "text", "vae"])
def test_weights_of_the_base_model_that_are_not_finite_are_named(nano: Path, network: str) -> None:
    broken = open_base(str(nano))
    layers = dict(broken.network(network).named_parameters())
    name = next(name for name in layers if "enc" not in name)
    layers[name].data.fill_(float("nan"))
    with pytest.raises(RequestError, match=f"`{name}` of the {network}"):
        generate_images(broken, changed(prompt="a dog"))


@pytest.mark.parametrize("weight", ["9" * 400, "1" + "0" * 38])
def test_weights_of_a_prompt_that_are_too_large_are_refused(model: Model, weight: str) -> None:
    with pytest.raises(RequestError, match=r"not a finite number|infinite or NaN"):
        generate_images(model, changed(prompt=f"(a dog:{weight})", guidance_scale=7.5))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_options_must_be_finite(value: float) -> None:
    with pytest.raises(RequestError, match="guidance_scale"):
        changed(guidance_scale=value)


@pytest.mark.parametrize(
    ("prompt", "used"),
    [
        ("a <mytoy>", True),
        ("a mine", True),
        ("a dog, <MYTOY>", True),
        ("\u4e00\u53ea<mytoy>\u5728", True),
        ("my_<mytoy>_photo", True),
        ("a dog", False),
        ("my_mine_photo", False),
        ("<mytoys>", False),
    ],
)
def test_a_concept_that_the_prompt_does_not_use_is_reported(
    model: Model, prompt: str, used: bool
) -> None:
    given = replace(concept(model), nickname="mine")
    events = list(sample_images(model, changed(prompt=prompt), [given]))
    notices = [event.message for event in events if isinstance(event, Notice)]
    assert any("is not in the prompt" in notice for notice in notices) != used
    images = [event for event in events if isinstance(event, GeneratedImage)]
    without = generate_images(model, changed(prompt=prompt))
    assert torch.equal(images[0].latents, without[0].latents) != used


def test_a_scheduler_is_created_twice_for_a_batch(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for all timesteps and once to denoise; it takes as long as a step of a small model."""
    created: list[str | None] = []
    make = schedulers.make_scheduler

    def recorded(kind: ScheduleKind, name: str | None, config: Mapping[str, object]) -> object:
        created.append(name)
        return make(kind, name, config)

    monkeypatch.setattr(schedulers, "make_scheduler", recorded)
    generate_images(model, QUICK)
    assert created == ["ddim"] * 2
