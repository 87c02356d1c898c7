"""Settings of an image in the text form of AUTOMATIC1111, which most programs show and read."""

import re
from collections.abc import Mapping
from typing import Any

from pinxit.generation.schedulers import SCHEDULER_ALIASES, SCHEDULERS

# The name of the text chunk in a PNG.
PARAMETERS_KEY = "parameters"
_NEGATIVE = "Negative prompt: "
_SETTING = re.compile(r'\s*([\w ]{1,40}): ("(?:\\.|[^"\\])*"|[^,]*)(?:,|$)')
_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")
_MAX_TEXT = 1_000_000
# Names in the settings, the names of a request, and how their values are read.
_NUMBERS: dict[str, tuple[str, type]] = {
    "Steps": ("steps", int),
    "CFG scale": ("guidance_scale", float),
    "Seed": ("seed", int),
    "Clip skip": ("clip_skip", int),
    "Denoising strength": ("denoising_strength", float),
}
_SAMPLERS = {
    "ddim": "DDIM",
    "euler": "Euler",
    "euler-a": "Euler a",
    "dpm++": "DPM++ 2M",
    "pndm": "PLMS",
}


def sampler_names() -> dict[str, str]:
    """The scheduler for each sampler name of AUTOMATIC1111."""
    return {title: name for name, title in _SAMPLERS.items()} | SCHEDULER_ALIASES


def parameters_text(values: Mapping[str, Any], size: tuple[int, int]) -> str:
    """The settings of a request as one text. `values` have the names of a request."""
    settings = {"Steps": values["steps"]}
    scheduler = values.get("scheduler")
    if scheduler:
        settings["Sampler"] = _SAMPLERS.get(scheduler, scheduler)
    for name, (key, _) in _NUMBERS.items():
        if key in values and (name != "Denoising strength" or "init_image" in values):
            settings[name] = values[key]
    settings["Size"] = f"{size[0]}x{size[1]}"
    lines = [values["prompt"]]
    if values.get("negative_prompt"):
        lines.append(_NEGATIVE + values["negative_prompt"])
    return "\n".join([*lines, ", ".join(f"{name}: {value}" for name, value in settings.items())])


def parse_parameters(text: str) -> dict[str, Any] | None:
    """The values of a request in such a text; None if it is not one. Unknown settings are left out.

    Lines before the settings are the prompt, and from `Negative prompt:` on the negative one.
    """
    lines = text[:_MAX_TEXT].strip().split("\n")
    settings = dict(_SETTING.findall(lines[-1]))
    if "Steps" not in settings:
        return None
    prompt, _, negative = "\n".join(lines[:-1]).partition(_NEGATIVE)
    values: dict[str, Any] = {"prompt": prompt.strip(), "negative_prompt": negative.strip()}
    for name, (key, kind) in _NUMBERS.items():
        try:
            values[key] = kind(settings[name])
        except (KeyError, ValueError):
            continue
    if match := _SIZE.fullmatch(settings.get("Size", "")):
        values |= {"width": int(match[1]), "height": int(match[2])}
    scheduler = sampler_names().get(settings.get("Sampler", ""), settings.get("Sampler"))
    return values | ({"scheduler": scheduler} if scheduler in SCHEDULERS else {})
