"""Painting: seeds, sizes, what a picture carries, what is said."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from pinxit.adapters.adapter import NewWord
from pinxit.concepts.concept import Concept, Provenance
from pinxit.errors import ConceptError, PictureError, RequestError
from pinxit.generation.generate import Frame, Notice, Painted, Request, generate, paint
from pinxit.images.tensors import sheet, to_image, to_pixels
from pinxit.models.model import Model

QUICK = Request(prompt="a dog", steps=3)


def changed(**fields: object) -> Request:
    return Request.model_validate({**QUICK.model_dump(), **fields})


def concept(model: Model, width: int = 32, base_hash: str = "") -> Concept:
    about = Provenance(
        "<mytoy>", "toy", "textual-inversion", "x", base_hash or model.hash, 1, {}, ""
    )
    return Concept((NewWord("<mytoy>", "toy", {"text": torch.ones(1, width)}).part(),), about)


@pytest.mark.parametrize("scheduler", ["ddim", "euler-a", "ddpm"])
def test_a_picture_depends_on_its_own_seed_alone(model: Model, scheduler: str) -> None:
    several = paint(model, changed(scheduler=scheduler, seed=5, count=4))
    for number, together in enumerate(several):
        alone = paint(model, changed(scheduler=scheduler, seed=5 + number))[0]
        # The batch only rounds otherwise: the seventh digit of the largest number.
        assert (together.latents - alone.latents).abs().max() < 1e-5 * alone.latents.abs().max()
        assert together.request == alone.request
    assert not torch.allclose(several[0].latents, several[1].latents, atol=0.1)


def test_the_same_request_paints_the_same_picture(model: Model, tmp_path: Path) -> None:
    first = paint(model, changed(seed=3, negative="red", width=40, height=24))[0]
    assert first.image.size == (40, 24)
    first.save(tmp_path / "a.png")
    again = Request.from_png(tmp_path / "a.png")
    assert again == first.request
    assert again.base == model.name
    assert paint(model, again)[0].image.tobytes() == first.image.tobytes()


def test_large_orders_are_painted_in_groups(model: Model) -> None:
    events = list(generate(model, changed(count=17, steps=2)))
    frames = [event for event in events if isinstance(event, Frame)]
    assert [frame.done for frame in frames] == [1, 2, 3, 4]
    assert {frame.total for frame in frames} == {4}
    assert [len(frame.latents) for frame in frames] == [16, 16, 1, 1]
    painted = [event for event in events if isinstance(event, Painted)]
    assert [picture.request.seed for picture in painted] == list(range(17))


def test_painting_leaves_gradients_as_they_were(model: Model) -> None:
    for _ in generate(model, QUICK):
        assert torch.is_grad_enabled()


def test_strength_is_how_much_is_painted_anew(model: Model, tmp_path: Path) -> None:
    Image.new("RGB", (50, 60), "teal").save(tmp_path / "start.png")
    painted = [
        sum(
            isinstance(event, Frame)
            for event in generate(
                model, changed(init=tmp_path / "start.png", steps=10, strength=strength)
            )
        )
        for strength in (0.2, 0.6, 1.0)
    ]
    assert painted == [2, 6, 10]


def test_what_the_user_should_know(model: Model) -> None:
    request = changed(prompt="a <mytoy> dog " * 20 + "in the grass", negative="<other>")
    notes = [
        event
        for event in generate(model, request, [concept(model, 32, "other")])
        if isinstance(event, Notice)
    ]
    assert "cut was `" in notes[0].message
    assert notes[0].message.endswith("in the grass`")
    assert "`<other>` is no word that was learned" in notes[1].message
    assert "<mytoy> was learned on another base" in notes[2].message
    assert len(notes) == 3


@pytest.mark.parametrize(
    ("fields", "message", "hint"),
    [
        ({"scheduler": "eular"}, "there is no scheduler `eular`", "did you mean euler?"),
        ({"guidance": 0.5}, "`guidance` of the request cannot be 0.5", "guidance is: how"),
        ({"count": 0}, "`count` of the request cannot be 0", "count is: how many"),
        ({"sede": 1}, "the request has no `sede`", "did you mean seed?"),
    ],
)
def test_requests_that_are_wrong(fields: dict[str, object], message: str, hint: str) -> None:
    with pytest.raises(RequestError) as caught:
        changed(**fields)
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_sizes_that_latents_cannot_have(model: Model) -> None:
    with pytest.raises(RequestError, match="cannot paint 30x30") as caught:
        paint(model, changed(width=30))
    assert "32x32" in caught.value.hint


def test_clip_skip_is_remembered(model: Model) -> None:
    taught = concept(model)
    taught = replace(taught, provenance=replace(taught.provenance, recipe="clip_skip = 2"))
    told = [
        [event.message for event in generate(model, asked, [taught]) if isinstance(event, Notice)]
        for asked in (QUICK, changed(clip_skip=2))
    ]
    assert told == [["<mytoy> was learned with --clip-skip 2: give it here too"], []]


def test_a_start_that_is_no_picture(model: Model, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="there is no picture"):
        paint(model, changed(init=tmp_path / "none.png"))
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(PictureError, match=r"text\.png"):
        paint(model, changed(init=tmp_path / "text.png"))
    with pytest.raises(RequestError, match=r"text\.png cannot be read"):
        Request.from_png(tmp_path / "text.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    with pytest.raises(RequestError, match="carries no request"):
        Request.from_png(tmp_path / "plain.png")


def test_a_concept_of_another_width(model: Model) -> None:
    with pytest.raises(ConceptError, match=r"vectors of 24 numbers, and those of .* have 32"):
        paint(model, QUICK, [concept(model, 24)])
    assert not model.words


def test_concepts_that_are_none(model: Model, tmp_path: Path) -> None:
    with pytest.raises(ConceptError, match="is not there"):
        Concept.load(tmp_path / "none")
    with pytest.raises(ConceptError, match="is no run"):
        Concept.load(tmp_path)
    begun = tmp_path / "recipe.toml"
    begun.touch()
    with pytest.raises(ConceptError, match="a run without a result"):
        Concept.load(tmp_path)
    begun.unlink()
    file = tmp_path / "concept.safetensors"
    file.write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00nonsense")
    with pytest.raises(ConceptError, match="neither a safetensors file"):
        Concept.load(tmp_path)
    concept(model).save(file)
    assert Concept.load(tmp_path).token == "<mytoy>"
    assert not [path for path in tmp_path.iterdir() if path != file]


def test_pixels_go_there_and_back() -> None:
    image = Image.effect_noise((24, 16), 80).convert("RGB")
    assert to_image(to_pixels(image, 24, 16)[0]).tobytes() == image.tobytes()
    wide = to_pixels(Image.new("RGB", (90, 30), "red"), 16, 16)
    assert wide.shape == (1, 3, 16, 16)
    assert sheet([image] * 5).size == (3 * 28 + 4, 2 * 20 + 4)
    assert sheet([image]).size == (32, 24)
