"""`pinxit transfer`: a picture's structure, painted as the prompt says."""

from inspect import Parameter
from pathlib import Path
from typing import Any

from pinxit import registry
from pinxit.cli.flags import Values, command, flag, word
from pinxit.cli.paint import paint_as, painting_flags
from pinxit.cli.screen import say
from pinxit.errors import RequestError, did_you_mean
from pinxit.generation.control import Control
from pinxit.generation.generate import Request
from pinxit.images.crop import shape_for
from pinxit.images.folder import Picture
from pinxit.models.model import LITTLE, Model

_USUAL, _PAINTED, _MASK = "inversion", "same-seed", "mask"
_NAMES = [name for name in registry.names("controls") if name != _MASK]
_KINDS: dict[str, type[Control]] = {name: registry.load("controls", name) for name in _NAMES}
# Said by `--control` and by the picture itself.
_NOT_TYPED = frozenset({"init", "strength"})


def _transfer(given: Values) -> None:
    picture: Path = given["picture"].expanduser().resolve()
    if not picture.is_file():
        raise RequestError(f"there is no picture {picture}", "give a picture file")
    before = None if "control" in given else _carried(picture)
    name: str = given.get("control") or (_PAINTED if before else _USUAL)
    if name not in _KINDS:
        raise RequestError(f"there is no control `{name}`", did_you_mean(name, _NAMES))
    knobs = {knob for kind in _KINDS.values() for knob in kind.model_fields} - {"picture"}
    table: dict[str, object] = {knob: given[knob] for knob in knobs if knob in given}
    if "picture" in _KINDS[name].model_fields:
        table["picture"] = picture
    typed: dict[str, Any] = {"count": 1, **given}
    if before:
        typed = {**before.model_dump(exclude_none=True), **typed}
        typed["concept"] = [str(pick) for pick in before.concepts] + given.get("concept", [])
        typed.pop("concepts", None)
        table.setdefault("shows", before.prompt)
        say(f"{picture.name} was painted by pinxit: its prompt and seed are painted beside")
    controls = [{"name": name, **table}, *_masked(given, picture)]

    def suited(request: Request, model: Model) -> Request:
        changed: dict[str, object] = {}
        advice = _KINDS[name].guidance
        if advice and "guidance" not in typed:
            changed["guidance"] = advice[model.size >= LITTLE]
        if request.width is None:
            size = Picture(picture, None, "").open().size
            shape = shape_for(size, model.picture_size, model.grain)
            changed |= dict(zip(("width", "height"), shape, strict=True))
        return request.model_copy(update=changed)

    paint_as({**typed, "controls": controls}, suited)


def _masked(given: Values, picture: Path) -> list[dict[str, object]]:
    """The mask that was typed, if there is one."""
    if "mask" in given:
        where = {"mask": given["mask"].expanduser().resolve(), "picture": picture}
        return [{"name": _MASK, **where, "outside": given.get("outside", False)}]
    if "outside" in given:
        raise RequestError("--outside goes with a mask", "give one with --mask FILE")
    return []


def _carried(picture: Path) -> Request | None:
    """The request of a picture that was painted from words alone."""
    try:
        request = Request.from_png(picture)
    except RequestError:
        return None
    return None if request.controls or request.init else request


def _knobs() -> list[Parameter]:
    """A flag for each knob of the controls, once, with what each takes if it is not typed."""
    fields = [(name, knob) for name, kind in _KINDS.items() for knob in kind.model_fields.items()]
    found: dict[str, Parameter] = {}
    for _, (knob, field) in fields:
        if knob == "picture" or knob in found:
            continue
        usual = {name: other.default for name, (one, other) in fields if one == knob}
        shown = ", ".join(f"{value} for {name}" for name, value in usual.items() if value)
        told = f"{field.description} ({', '.join(usual)})"
        found[knob] = flag(knob, field.annotation, told, shown)
    return list(found.values())


transfer = command(
    [
        word("picture", Path, "the picture that is held on to"),
        word("prompt", str, "what to paint, learned words included"),
        flag("control", str, f"what holds it: {', '.join(_NAMES)}", f"{_USUAL}; see docs"),
        *_knobs(),
        flag("mask", Path, "a picture that is white where to paint and black elsewhere"),
        flag("outside", bool, "paint outside of the mask's white instead"),
        *painting_flags(1, "the picture's shape", _NOT_TYPED),
    ],
    _transfer,
)
