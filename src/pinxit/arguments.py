"""Arguments of public functions: one of a wrong type is an error that says what to give."""

import inspect
import os
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from numbers import Real
from pathlib import Path
from types import UnionType
from typing import Any, Literal, ParamSpec, TypeVar, Union, cast, get_args, get_origin

from pinxit.errors import RequestError

P = ParamSpec("P")
R = TypeVar("R")

# How to make an object of a class; other classes are clear from their names.
_HINTS = {
    "Model": 'open a base model first: model = pinxit.open_base("pocket")',
    "Recipe": "make one: pinxit.Recipe(method=..., images=..., token=..., class_noun=...)",
    "Concept": "read it first: concept = pinxit.read_concept(FILE)",
    "a list of Image": "give PIL images; of generated ones: [result.image for result in results]",
    "Concept or a list of them": "read them first: concepts = [pinxit.read_concept(FILE)]",
}
# What else is accepted where a function asks for a type.
_WIDER: dict[object, type] = {Path: os.PathLike, int: Real, float: Real, bool: object, Any: object}
_UNIONS = (Union, UnionType)
_LISTS = (Sequence, Iterable)


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function check its arguments against its annotations: RequestError for a wrong type.

    Checked are unions, sequences with their items, and callables; missing and unknown arguments
    are errors too. Nothing is converted.
    """
    signature = inspect.signature(function)
    parameters = signature.parameters
    names = [one.name for one in parameters.values() if one.kind is not one.VAR_KEYWORD]
    hint = f"the arguments of {function.__name__} are: {', '.join(names)}"

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        for name, value in {**dict(zip(names, args, strict=False)), **kwargs}.items():
            annotation = parameters[name].annotation if name in names else Any
            if not _fits(value, annotation):
                types = " or ".join(_type_names(annotation))
                raise RequestError(
                    f"`{name}` cannot be {' '.join(repr(value).split()):.80}: it must be {types}",
                    _HINTS.get(types.removesuffix(" or None"), hint),
                )
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            raise RequestError(f"{function.__name__}: {error}", hint) from None
        return function(*args, **kwargs)

    return call


def _fits(value: object, annotation: Any) -> bool:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin in _UNIONS:
        return any(_fits(value, part) for part in parts)
    if origin is Literal:
        return value in parts
    if origin is Callable:
        return callable(value)
    if origin in _LISTS:
        if isinstance(value, str) or not isinstance(value, cast("type", origin)):
            return False
        # The items of an iterator can be read only once.
        return not isinstance(value, Sequence) or all(_fits(item, parts[0]) for item in value)
    wider: Any = _WIDER.get(annotation, annotation)
    return isinstance(wider, str) or isinstance(value, wider)


def _type_names(annotation: Any) -> list[str]:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin in _UNIONS:
        lists = [get_args(part)[0] for part in parts if get_origin(part) in _LISTS]
        names = [name for part in (*lists, *parts[len(lists) :]) for name in _type_names(part)]
        return list(dict.fromkeys([*names, *["a list of them"] * len(lists)]))
    if origin is Literal:
        return [repr(part) for part in parts]
    if origin is Callable:
        return ["a function"]
    if origin in _LISTS:
        return [f"a list of {' or '.join(_type_names(parts[0]))}"]
    return [annotation.__name__.replace("NoneType", "None")]
