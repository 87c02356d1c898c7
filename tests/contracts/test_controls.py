"""Rules that every control must follow, on the nano base model and on one of each family."""

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
from pinxit.generation.control import SamplingProgress
from pinxit.generation.request import GeneratedImage, GenerationRequest
from pinxit.generation.sample import generate_images, sample_images
from pinxit.models.model import Model
from pinxit.models.open_base import open_base

CONTROLS = registry.names("controls")
PAIRED = ("inversion", "masactrl", "same-seed")
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
    """Save a ControlNet with random weights that change the result."""
    torch.manual_seed(11)
    unet: Any = model.networks["denoiser"]
    with torch.device("meta"):
        config = diffusers.ControlNetModel.from_unet(unet, load_weights_from_unet=False).config
    options = {key: value for key, value in config.items() if not key.startswith("_")}
    options["addition_embed_type_num_heads"] = unet.config.addition_embed_type_num_heads
    network: Any = diffusers.ControlNetModel.from_config(options)
    for name, weight in network.named_parameters():
        if "controlnet" in name:
            torch.nn.init.normal_(weight, std=0.1)
    network.save_pretrained(folder)
    return folder


def is_refused(control: str, model: Model, request: GenerationRequest) -> bool:
    """Whether the model has no layers for the control; then an error says so."""
    if control not in PAIRED or "queries-keys" in model.layer_groups:
        return False
    with pytest.raises(RequestError, match="has no attention layers"):
        next(iter(sample_images(model, request)))  # before any step
    return True


def table(control: str, model: Model, picture: Path) -> dict[str, object]:
    """Options of a control that changes the result, on this base model."""
    fields = registry.load("controls", control).model_fields
    options: dict[str, object] = {"source_prompt": "a red cat", "preserve": 0.7, "image": picture}
    options["mask"] = picture.with_name("mask.png")
    if "weights" in fields and hasattr(model.networks["denoiser"], "up_blocks"):
        options["weights"] = str(save_controlnet(model, picture.parent / "net"))
    return {"name": control, **{name: value for name, value in options.items() if name in fields}}


def request_with(*controls: object, **changed: object) -> GenerationRequest:
    options: dict[str, Any] = {"prompt": "a dog", "steps": 4, "guidance_scale": 3.0}
    return GenerationRequest.model_validate({**options, "controls": controls, **changed})


def state(model: Model) -> list[object]:
    """Versions of all weights, and the hooks and types of all layers."""
    items: list[object] = []
    for network in model.networks.values():
        items += [
            (name, id(weight), weight._version)
            for name, weight in network.state_dict(keep_vars=True).items()
        ]
        for layer in network.modules():
            items += [*layer._forward_hooks, *layer._forward_pre_hooks, layer.forward.__func__]
        items += [type(layer) for layer in network.modules()]
    return items


@pytest.mark.parametrize("control", CONTROLS)
def test_controls_restore_the_model_and_are_reproducible(
    control: str, model: Model, picture: Path
) -> None:
    plain = generate_images(model, request_with())[0]
    before = state(model)  # after the first run: text encoders of transformers add hooks then
    request = request_with(table(control, model, picture))
    if control == "controlnet" and not hasattr(model.networks["denoiser"], "up_blocks"):
        with pytest.raises(RequestError, match="has no U-Net"):
            generate_images(model, request)
        assert state(model) == before
        return
    if is_refused(control, model, request):
        assert state(model) == before
        return
    with closing(sample_images(model, request)) as events:
        for event in events:
            if isinstance(event, SamplingProgress) and event.done == event.total - 1:
                break  # interrupted, as by Ctrl-C
    assert state(model) == before
    first = generate_images(model, request)[0]
    assert state(model) == before
    assert (first.latents - plain.latents).abs().max() > 1e-4
    assert torch.equal(plain.latents, generate_images(model, request_with())[0].latents)
    first.save(picture.with_name("painted.png"))
    again = GenerationRequest.from_png(picture.with_name("painted.png"))
    assert again == first.request
    assert torch.equal(generate_images(model, again)[0].latents, first.latents)


@pytest.mark.parametrize("control", PAIRED)
def test_preserve_0_changes_nothing_to_the_bit(control: str, model: Model, picture: Path) -> None:
    nothing = {**table(control, model, picture), "preserve": 0}
    result = generate_images(model, request_with(nothing))[0].latents
    assert torch.equal(result, generate_images(model, request_with())[0].latents)


@pytest.mark.parametrize("control", ["inversion", "mask"])
def test_batches_equal_single_images(control: str, model: Model, picture: Path) -> None:
    options = {
        **table(control, model, picture),
        **({"initial_noise": "random"} if control == "inversion" else {}),
    }
    if is_refused(control, model, request_with(options)):
        return
    batch = generate_images(model, request_with(options, num_images=3, scheduler=None))
    single = generate_images(model, request_with(options, seed=2))[0]
    difference = (batch[2].latents - single.latents).abs().max()
    assert difference < 1e-4 * single.latents.abs().max()


@pytest.mark.parametrize("control", ["img2img", "inversion", "same-seed"])
def test_masks_work_with_every_control(control: str, model: Model, picture: Path) -> None:
    both = [table(control, model, picture), table("mask", model, picture)]
    if is_refused(control, model, request_with(*both)):
        return
    (result,) = (
        e for e in sample_images(model, request_with(*both)) if isinstance(e, GeneratedImage)
    )
    left_half, right_half = ((0, 0, 16, 32), (16, 0, 32, 32))
    source = Image.open(picture).convert("RGB")
    assert result.image.crop(right_half).tobytes() == source.crop(right_half).tobytes()
    assert result.image.crop(left_half).tobytes() != source.crop(left_half).tobytes()


def test_controls_work_with_optimized_cpu_layers(nano: Path, picture: Path) -> None:
    from pinxit.models.kernels.cpu import optimize_for_cpu

    model = open_base(nano)
    request = request_with(table("inversion", model, picture))
    usual = generate_images(model, request)[0].latents
    optimize_for_cpu(model.networks["denoiser"])
    before = state(model)
    assert (
        generate_images(model, request)[0].latents - usual
    ).abs().max() < 1e-3 * usual.abs().max()
    assert state(model) == before
