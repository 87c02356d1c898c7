"""The self-test of training: what never reaches the loss, and what has no gradient."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from math import isclose, nan

import torch
from torch import Tensor

from pinxit.adapters.adapter import Adapter
from pinxit.adapters.lora_part import ALPHA
from pinxit.adapters.parts import Part
from pinxit.errors import RunError, listed
from pinxit.models.model import Model
from pinxit.models.prompt import Placeholders, parse_prompt
from pinxit.models.text_encoder import PromptParsing

# In the first step only one factor of a LoRA has a gradient, because it is multiplied by the other
# one, which is zero. The second step has gradients for both.
_STEPS = 2
_TOLERANCE = 1e-3
_HINT = "this is an error of the program, please report it; the checkpoints of the run are intact"


class GradientCheck:
    """Finds trained tensors that have no gradient in the first steps, so training is useless.

    Steps without a prompt in `prompts`, those that contain the placeholder token, do not count.
    """

    def __init__(self, names: Collection[str], prompts: Collection[str]) -> None:
        self._names = tuple(names)
        self._missing = list(names)
        self._prompts = frozenset(prompts)
        self._steps_left = _STEPS

    def add_step(self, prompts: Iterable[str], norms: Sequence[Tensor]) -> Iterator[str]:
        """Look at the gradients' norms in a step with these prompts; yields what to tell the user.

        Raises RunError if no tensor has had a gradient.
        """
        if not self._steps_left or self._prompts.isdisjoint(prompts):
            return
        self._steps_left -= 1
        present = {name for name, one in zip(self._names, norms, strict=True) if one.any()}
        self._missing = [name for name in self._missing if name not in present]
        if self._steps_left or not self._missing:
            return
        total = len(self._names)
        if len(self._missing) == total:
            raise RunError(
                f"none of the {total} trained tensors has a gradient other than zero after "
                f"{_STEPS} steps, so training changes nothing",
                "train with --precision fp32 or bf16, or choose other --layers",
            )
        yield (
            f"{len(self._missing)} of {total} trained tensors have no gradient in the first "
            f"{_STEPS} steps: {_listed(self._missing)}; hint: that is normal where the base "
            "model does not use what a layer computes; for other layers use --precision fp32"
        )


def prompts_with_token(
    model: Model, prompts: Iterable[str], placeholders: Placeholders, parsing: PromptParsing
) -> list[str]:
    """The prompts in which every text encoder sees a placeholder token, with all of its vectors."""
    return [
        prompt
        for prompt in prompts
        if any(piece.token for piece in parse_prompt(prompt, placeholders, weights=parsing.weights))
        and _sees_vectors(model, prompt, placeholders, parsing)
    ]


def _sees_vectors(
    model: Model, prompt: str, placeholders: Placeholders, parsing: PromptParsing
) -> bool:
    """Whether the vectors of a placeholder token are in the window of each text encoder."""
    for name, text_encoder in model.text_encoders.items():
        count = sum(len(one.vectors.get(name, ())) for one in placeholders.values())
        rows = text_encoder.tokenize([prompt], placeholders, parsing).embedding_rows
        if count and len(rows[rows >= 0].unique()) < count:
            return False
    return True


def unused_inputs(
    token: str, prompts: Sequence[str], with_token: Collection[str], undrawn: Sequence[str]
) -> Iterator[str]:
    """Say what never reaches the loss; RunError if no training prompt shows the token.

    `prompts` are those of the training images, `with_token` those that show the placeholder token,
    `undrawn` the file names of images that no step uses.
    """
    without = [prompt for prompt in prompts if prompt not in with_token]
    if len(without) == len(prompts):
        raise RunError(
            f"no text encoder sees {token} in the training prompts, such as `{prompts[0][:80]}`",
            "choose another --token, or write it into the captions",
        )
    if without:
        yield (
            f"{len(without)} of {len(prompts)} training prompts do not show {token}: "
            f"{_listed(without)}; hint: write the token into these captions"
        )
    if undrawn:
        yield (
            f"the steps are too few for all images: {_listed(undrawn)} will not be used; "
            "hint: choose a larger --steps or --batch-size"
        )


@torch.no_grad()
def check_saved(
    trained: Sequence[Adapter], saved: Sequence[Part], answer: Callable[[], Tensor]
) -> None:
    """RunError if the parts read from the file of trained adapters do not give what was trained.

    Where values differ, the adapters, which are applied to the model, get those of the file, and
    both give an `answer` of the denoiser. To apply new adapters would take longer than a step.
    """
    if len(trained) != len(saved) or not all(map(_is_part_of, saved, trained)):
        raise RunError("the saved concept was read back, and is another one", _HINT)
    pairs = [
        (weight, part.tensors[name].to(weight).reshape(weight.shape))
        for adapter, part in zip(trained, saved, strict=True)
        for name, weight in (adapter.whole or adapter.weights()).items()
    ]
    if all(weight.equal(value) for weight, value in pairs):
        return  # the same values give the same answer
    if any(adapter.whole for adapter in trained):
        raise RunError("the saved concept was read back, and has other weights", _HINT)
    own = answer()
    for weight, value in pairs:
        weight.copy_(value)
    difference = float((answer() - own).norm() / own.norm().clamp(min=1e-12))
    if not difference <= _TOLERANCE:
        raise RunError(
            "the saved concept was read back, and does not give what was trained: the answers of "
            f"the denoiser differ by {difference:.2%}",
            _HINT,
        )


def _is_part_of(part: Part, adapter: Adapter) -> bool:
    """Whether a part has what the adapter has, apart from the values of its weights."""
    weights, tensors = adapter.weights(), part.tensors
    if not weights:
        return adapter.part() == part
    alphas: Mapping[str, float] = getattr(adapter, "alphas", {})
    return (
        set(adapter.placeholders()) == set(part.tokens)
        and weights.keys() <= tensors.keys()
        and all(
            isclose(tensors.get(f"{n}.{ALPHA}", nan), a, rel_tol=1e-5) for n, a in alphas.items()
        )
    )


def _listed(names: Sequence[str]) -> str:
    return listed([f"`{name[:80]}`" for name in names])
