"""Settings of images in the text form of AUTOMATIC1111."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pinxit.errors import RequestError
from pinxit.generation.png_parameters import parameters_text, parse_parameters
from pinxit.generation.request import GeneratedImage, GenerationRequest
from pinxit.generation.schedulers import SCHEDULERS

CASES: list[dict[str, Any]] = [
    {"prompt": "a dog"},
    {"prompt": "a <toy>, (red:1.2)\nin two lines", "negative_prompt": "blurry, bad: hands"},
    {"prompt": 'Steps: 3, "quoted"', "steps": 7, "seed": 2**40, "guidance_scale": 7.5},
    {"prompt": "", "clip_skip": 2, "width": 64, "height": 96},
    *({"prompt": "x", "scheduler": name} for name in SCHEDULERS),
]


@pytest.mark.parametrize("values", CASES)
def test_settings_are_read_as_they_are_written(values: dict[str, Any], tmp_path: Path) -> None:
    request = GenerationRequest(**values)
    size = (request.width or 32, request.height or 32)
    image = GeneratedImage(Image.new("RGB", size), request, torch.zeros(1))
    image.save(tmp_path / "own.png")
    with Image.open(tmp_path / "own.png") as written:
        text = written.info["parameters"]
    assert GenerationRequest.from_png(tmp_path / "own.png") == request
    info = PngInfo()
    info.add_text("parameters", text)
    Image.new("RGB", size).save(tmp_path / "other.png", pnginfo=info)
    again = GenerationRequest.from_png(tmp_path / "other.png")
    names = (
        "prompt",
        "negative_prompt",
        "steps",
        "seed",
        "guidance_scale",
        "clip_skip",
        "scheduler",
    )
    assert [getattr(again, n) for n in names] == [getattr(request, n) for n in names]
    assert (again.width, again.height) == size


def test_settings_of_automatic1111() -> None:
    text = (
        "a photo of mydog <lora:toy:0.7>\nNegative prompt: ugly,\nblurry\nSteps: 20, Sampler: "
        "DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 12, Size: 512x768, Lora hashes: "
        '"toy: ab, b: c", Version: v1.10.1'
    )
    assert parse_parameters(text) == {
        "prompt": "a photo of mydog <lora:toy:0.7>",
        "negative_prompt": "ugly,\nblurry",
        "steps": 20,
        "guidance_scale": 7.0,
        "seed": 12,
        "width": 512,
        "height": 768,
        "scheduler": "dpm++",
    }


@pytest.mark.parametrize(
    "text", ["", "a dog", "Steps", "Steps:x", "\n\n", "a" * 10**6 + ": " * 999]
)
def test_other_texts_are_no_settings(text: str, tmp_path: Path) -> None:
    assert parse_parameters(text) is None
    info = PngInfo()
    info.add_text("parameters", text[:1000])
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png", pnginfo=info)
    with pytest.raises(RequestError, match="no generation request"):
        GenerationRequest.from_png(tmp_path / "x.png")


def test_a_prompt_cannot_forge_settings() -> None:
    values = {"prompt": "x\nSteps: 99, Seed: 5", "steps": 3, "seed": 1, "guidance_scale": 2.0}
    text = parameters_text(values, (8, 8))
    parsed = parse_parameters(text)
    assert parsed is not None
    assert (parsed["steps"], parsed["seed"], parsed["prompt"]) == (3, 1, values["prompt"])
