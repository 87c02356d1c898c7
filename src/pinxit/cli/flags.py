"""Flags made from described fields, so that a knob is written once."""

from collections.abc import Callable, Mapping
from inspect import Parameter as Argument
from inspect import Signature
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from cyclopts import Parameter
from pydantic import BaseModel
from pydantic.fields import FieldInfo

Values = Mapping[str, Any]
_GROUP = "Parameters"


def flags(
    model: type[BaseModel], leave_out: frozenset[str] = frozenset(), group: str = _GROUP
) -> list[Argument]:
    """A keyword flag for each field; one that is not typed is left to the field's own default."""
    fields = model.model_fields.items()
    return [_flag(name, field, group) for name, field in fields if name not in leave_out]


def command(signature: list[Argument], run: Callable[[Values], None]) -> Callable[..., None]:
    """A function with that signature, given to `run` as the values that were typed."""
    shape = Signature(sorted(signature, key=lambda argument: argument.kind))

    def typed(*args: object, **kwargs: object) -> None:
        bound = shape.bind(*args, **kwargs).arguments
        run({name: value for name, value in bound.items() if value is not None})

    # The parser reads both of these, as it does from a function that was written out.
    typed.__signature__ = shape  # pyright: ignore[reportFunctionMemberAccess]
    typed.__annotations__ = {name: part.annotation for name, part in shape.parameters.items()}
    return typed


def flag(
    name: str, kind: object, explained: str, default: str = "", group: str = _GROUP
) -> Argument:
    """A keyword flag that is no field: left out unless typed, `default` is what help says."""
    shows = _constantly(default) if default else False
    shown = Parameter(help=explained, show_default=shows, group=group, negative_iterable="")
    return Argument(
        name, Argument.KEYWORD_ONLY, default=None, annotation=Annotated[_or_none(kind), shown]
    )


def word(name: str, kind: object, explained: str, *, required: bool = True) -> Argument:
    """A positional argument."""
    shown = Parameter(help=explained)
    if required:
        return Argument(name, Argument.POSITIONAL_OR_KEYWORD, annotation=Annotated[kind, shown])
    return Argument(
        name,
        Argument.POSITIONAL_OR_KEYWORD,
        default=None,
        annotation=Annotated[_or_none(kind), shown],
    )


def words(name: str, kind: object, explained: str) -> Argument:
    """Positional arguments, as many as one likes."""
    shown = Annotated[kind, Parameter(help=explained)]
    return Argument(name, Argument.VAR_POSITIONAL, annotation=shown)


def _flag(name: str, field: FieldInfo, group: str) -> Argument:
    explained = (field.description or "") + _bounds(field)
    if field.is_required():
        shown = Parameter(help=explained, group=group)
        return Argument(name, Argument.KEYWORD_ONLY, annotation=Annotated[field.annotation, shown])
    default = field.get_default(call_default_factory=True)
    return flag(name, field.annotation, explained, "" if default is None else str(default), group)


def _bounds(field: FieldInfo) -> str:
    """The range a number must be in, as words."""
    words = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
    said = [
        f"{words[name]} {getattr(limit, name)}"
        for limit in field.metadata
        for name in words
        if hasattr(limit, name)
    ]
    return f" ({', '.join(said)})" if said else ""


def _or_none(kind: Any) -> Any:
    optional = get_origin(kind) in (Union, UnionType) and NoneType in get_args(kind)
    return kind if optional else kind | None


def _constantly(text: str) -> Callable[[object], str]:
    return lambda _: text
