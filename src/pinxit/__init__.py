"""Train Stable Diffusion models on a few images of a subject or a style, and generate images.

```python
import pinxit

model = pinxit.open_base("pocket")
recipe = pinxit.Recipe(
    method="textual-inversion", images="toy/", token="<mytoy>", class_noun="toy"
)
run = pinxit.train(model, recipe, "runs/mytoy")
results = pinxit.generate(model, "a photo of <mytoy> on the beach", [run.folder])
pinxit.contact_sheet([result.image for result in results]).show()
```
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pinxit.concepts.concept import Concept
    from pinxit.concepts.read import read_concept, write_concept
    from pinxit.errors import PinxitError
    from pinxit.generation.request import GenerationRequest
    from pinxit.generation.sample import generate_images
    from pinxit.images.folder import read_images
    from pinxit.images.tensors import contact_sheet
    from pinxit.models.open_base import Bases, open_base
    from pinxit.runs.reader import read_run
    from pinxit.runs.run import Run, train_run
    from pinxit.training.recipe import Recipe

    generate = paint = generate_images
    train = teach = train_run
    Request = GenerationRequest
    read_pictures = read_images
    sheet = contact_sheet
    __version__: str

__all__ = [
    "Bases",
    "Concept",
    "GenerationRequest",
    "PinxitError",
    "Recipe",
    "Run",
    "__version__",
    "contact_sheet",
    "generate",
    "open_base",
    "read_concept",
    "read_images",
    "read_run",
    "train",
    "write_concept",
]

# The module and the object of each public name. Modules are imported on first use, because
# importing torch takes seconds.
_HOMES = {
    "Bases": ("models.open_base", "Bases"),
    "Concept": ("concepts.concept", "Concept"),
    "GenerationRequest": ("generation.request", "GenerationRequest"),
    "PinxitError": ("errors", "PinxitError"),
    "Recipe": ("training.recipe", "Recipe"),
    "Run": ("runs.run", "Run"),
    "contact_sheet": ("images.tensors", "contact_sheet"),
    "generate": ("generation.sample", "generate_images"),
    "open_base": ("models.open_base", "open_base"),
    "read_concept": ("concepts.read", "read_concept"),
    "read_images": ("images.folder", "read_images"),
    "read_run": ("runs.reader", "read_run"),
    "train": ("runs.run", "train_run"),
    "write_concept": ("concepts.read", "write_concept"),
}
# Names of the first version.
_ALIASES = {
    "Request": "GenerationRequest",
    "paint": "generate",
    "read_pictures": "read_images",
    "sheet": "contact_sheet",
    "teach": "train",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("pinxit")
    name = _ALIASES.get(name, name)
    if name not in _HOMES:
        raise AttributeError(f"module `pinxit` has no attribute `{name}`")
    module, attribute = _HOMES[name]
    return getattr(import_module(f"pinxit.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
