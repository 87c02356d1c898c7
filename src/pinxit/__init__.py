"""Teach a Stable Diffusion model a subject or a style from a few pictures, and paint with it.

```python
import pinxit

model = pinxit.open_base("pocket")
recipe = pinxit.Recipe(
    method="textual-inversion", pictures="toy/", token="<mytoy>", class_noun="toy"
)
run = pinxit.teach(model, recipe, "runs/mytoy")
pictures = pinxit.paint(model, "a photo of <mytoy> on the beach", [run.folder])
pinxit.sheet([picture.image for picture in pictures]).show()
```
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pinxit.concepts.concept import Concept
    from pinxit.errors import PinxitError
    from pinxit.generation.generate import Request, paint
    from pinxit.images.folder import read_pictures
    from pinxit.images.tensors import sheet
    from pinxit.models.model import open_base
    from pinxit.models.open_bases import Bases
    from pinxit.runs.run import Run, teach
    from pinxit.training.recipe import Recipe

__all__ = [
    "Bases",
    "Concept",
    "PinxitError",
    "Recipe",
    "Request",
    "Run",
    "open_base",
    "paint",
    "read_pictures",
    "sheet",
    "teach",
]

# Where each name lives: imported when it is first asked for, since torch takes seconds.
_HOMES = {
    "Bases": "models.open_bases",
    "Concept": "concepts.concept",
    "PinxitError": "errors",
    "Recipe": "training.recipe",
    "Request": "generation.generate",
    "Run": "runs.run",
    "open_base": "models.model",
    "paint": "generation.generate",
    "read_pictures": "images.folder",
    "sheet": "images.tensors",
    "teach": "runs.run",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module pinxit has no `{name}`")
    return getattr(import_module(f"pinxit.{_HOMES[name]}"), name)
