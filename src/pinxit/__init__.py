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
    from pinxit.bases import Bases
    from pinxit.concept import Concept
    from pinxit.errors import PinxitError
    from pinxit.generate import Request, paint
    from pinxit.model import open_base
    from pinxit.pictures import read_pictures
    from pinxit.pixels import sheet
    from pinxit.recipe import Recipe
    from pinxit.run import Run, teach

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
    "Bases": "bases",
    "Concept": "concept",
    "PinxitError": "errors",
    "Recipe": "recipe",
    "Request": "generate",
    "Run": "run",
    "open_base": "model",
    "paint": "generate",
    "read_pictures": "pictures",
    "sheet": "pixels",
    "teach": "run",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module pinxit has no `{name}`")
    return getattr(import_module(f"pinxit.{_HOMES[name]}"), name)
