"""What every control there is must keep to, on the nano base and on every family's."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image

from pinxit import registry
from pinxit.errors import RequestError
from pinxit.generation.generate import Frame, Painted, Request, generate, paint
from pinxit.models.model import Model, open_base

CONTROLS = registry.names("controls")
ACCOMPANIED = ("inversion", "masactrl", "same-seed")
later = [pytest.param(name, marks=pytest.mark.long) for name in registry.names("families")]


@pytest.fixture(params=["nano", *later])
def model(request: pytest.FixtureRequest, opened: Callable[[str], Model]) -> Model:
    return opened(request.param)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    levels = torch.randint(0, 256, (4, 4, 3), generator=torch.Generator().manual_seed(3))
    image = Image.fromarray(levels.byte().numpy()).resize((32, 32), Image.Resampling.BICUBIC)
    image.save(tmp_path / "given.png")
    white = Image.new("L", (32, 32))
    white.paste(255, (0, 0, 16, 32))
    white.save(tmp_path / "mask.png")
    return tmp_path / "given.png"


def save_controlnet(model: Model, folder: Path) -> Path:
    """A ControlNet of random weights, which says something at once."""
    torch.manual_seed(11)
    unet: Any = model.networks["denoiser"]
    with torch.device("meta"):
        alike = diffusers.ControlNetModel.from_unet(unet, load_weights_from_unet=False).config
    shape = {key: value for key, value in alike.items() if not key.startswith("_")}
    shape["addition_embed_type_num_heads"] = unet.config.addition_embed_type_num_heads
    made: Any = diffusers.ControlNetModel.from_config(shape)
    for name, weight in made.named_parameters():
        if "controlnet" in name:
            torch.nn.init.normal_(weight, std=0.1)
    made.save_pretrained(folder)
    return folder


def table(control: str, model: Model, picture: Path) -> dict[str, object]:
    """A control that changes something, on this base."""
    known = registry.load("controls", control).model_fields
    given: dict[str, object] = {"shows": "a red cat", "keep": 0.7, "picture": picture}
    given["mask"] = picture.with_name("mask.png")
    if "weights" in known and hasattr(model.networks["denoiser"], "up_blocks"):
        given["weights"] = str(save_controlnet(model, picture.parent / "net"))
    return {"name": control, **{name: value for name, value in given.items() if name in known}}


def asked(*controls: object, **changed: object) -> Request:
    whole: dict[str, Any] = {"prompt": "a dog", "steps": 4, "guidance": 3.0}
    return Request.model_validate({**whole, "controls": controls, **changed})


def left(model: Model) -> list[object]:
    """Every weight as it is, and every hook on every layer."""
    found: list[object] = []
    for network in model.networks.values():
        found += [
            (name, id(one), one._version)
            for name, one in network.state_dict(keep_vars=True).items()
        ]
        for layer in network.modules():
            found += [*layer._forward_hooks, *layer._forward_pre_hooks, layer.forward.__func__]
        found += [type(layer) for layer in network.modules()]
    return found


@pytest.mark.parametrize("control", CONTROLS)
def test_controls_leave_the_model_as_it_was_and_repeat(
    control: str, model: Model, picture: Path
) -> None:
    plain = paint(model, asked())[0]
    before = left(model)  # only now: a text tower of transformers lays hooks when first it is used
    request = asked(table(control, model, picture))
    if control == "controlnet" and not hasattr(model.networks["denoiser"], "up_blocks"):
        with pytest.raises(RequestError, match="has no U-Net"):
            paint(model, request)
        assert left(model) == before
        return
    with closing(generate(model, request)) as events:
        for event in events:
            if isinstance(event, Frame) and event.done == event.total - 1:
                break  # in the midst of it, as by Ctrl-C
    assert left(model) == before
    first = paint(model, request)[0]
    assert left(model) == before
    assert (first.latents - plain.latents).abs().max() > 1e-4
    assert torch.equal(plain.latents, paint(model, asked())[0].latents)
    first.save(picture.with_name("painted.png"))
    again = Request.from_png(picture.with_name("painted.png"))
    assert again == first.request
    assert torch.equal(paint(model, again)[0].latents, first.latents)


@pytest.mark.parametrize("control", ACCOMPANIED)
def test_nothing_kept_is_the_prompt_to_the_bit(control: str, model: Model, picture: Path) -> None:
    nothing = {**table(control, model, picture), "keep": 0}
    held, plain = (paint(model, asked(*some))[0].latents for some in ([nothing], []))
    assert torch.equal(held, plain)


@pytest.mark.parametrize("control", ["inversion", "mask"])
def test_pictures_together_are_what_they_are_alone(
    control: str, model: Model, picture: Path
) -> None:
    one = {
        **table(control, model, picture),
        **({"path": "noised"} if control == "inversion" else {}),
    }
    together = paint(model, asked(one, count=3, scheduler=None))
    alone = paint(model, asked(one, seed=2))[0]
    apart = (together[2].latents - alone.latents).abs().max()
    assert apart < 1e-4 * alone.latents.abs().max()


@pytest.mark.parametrize("control", ["img2img", "inversion", "same-seed"])
def test_masks_go_with_every_control(control: str, model: Model, picture: Path) -> None:
    both = [table(control, model, picture), table("mask", model, picture)]
    (painted,) = (e for e in generate(model, asked(*both)) if isinstance(e, Painted))
    left_half, right_half = ((0, 0, 16, 32), (16, 0, 32, 32))
    given = Image.open(picture).convert("RGB")
    assert painted.image.crop(right_half).tobytes() == given.crop(right_half).tobytes()
    assert painted.image.crop(left_half).tobytes() != given.crop(left_half).tobytes()


def test_controls_work_on_the_layers_that_a_cpu_has(nano: Path, picture: Path) -> None:
    from pinxit.models.kernels.cpu import suit_cpu

    model = open_base(nano)
    request = asked(table("inversion", model, picture))
    usual = paint(model, request)[0].latents
    suit_cpu(model.networks["denoiser"])
    before = left(model)
    assert (paint(model, request)[0].latents - usual).abs().max() < 1e-3 * usual.abs().max()
    assert left(model) == before
