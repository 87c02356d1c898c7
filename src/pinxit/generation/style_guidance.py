"""Guidance for styles by textual inversion: the negative prompt has half of the style."""

import re

from pinxit.adapters.adapter import Adapter
from pinxit.generation.request import GenerationRequest
from pinxit.models.model import SMALL, Model
from pinxit.models.prompt import normal_form, token_pattern

# How much of the conditioning of the negative prompt comes from that with the style.
STYLE_SHARE = 0.5


def styled_negative_prompt(model: Model, request: GenerationRequest) -> str:
    """The negative prompt with the styles of the prompt; "" if the prompt has none.

    Guidance amplifies what the prompt adds to the negative prompt: the objects, and no longer the
    style that covers them. A style is the token of an embedding after the words "in the style of",
    unless the negative prompt has the token already. With an adapter that changes weights there is
    none: a style by LoRA is trained with empty prompts instead. Nor is there one on a large base
    model, which generates what other programs generate with the same embedding.
    """
    if model.num_parameters >= SMALL:  # measured on pocket only
        return ""
    if not all(isinstance(one, Adapter) and one.placeholders() for one in model.changes):
        return ""
    names = [normal_form(name) for name, one in model.placeholders.items() if one.vectors]
    token = token_pattern(names)
    negative = normal_form(request.negative_prompt)
    used = {match[0].lower() for match in token.finditer(negative)}
    style = re.compile(rf"in the style of [(\[]*({token.pattern})", re.IGNORECASE)
    tokens = dict.fromkeys(match[1] for match in style.finditer(normal_form(request.prompt)))
    phrases = [f"in the style of {name}" for name in tokens if name.lower() not in used]
    return ", ".join([negative.strip() or "a picture", *phrases]) if phrases else ""
