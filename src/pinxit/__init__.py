"""Train image models on a few images of a subject or a style, and generate images.

```python
import pinxit

model = pinxit.open_base("pocket")
recipe = pinxit.Recipe(
    method="textual-inversion", images="toy/", token="<mytoy>", class_noun="toy"
)
run = pinxit.train(model, recipe, "runs/mytoy")
results = pinxit.generate(model, "a photo of <mytoy> on the beach", run, steps=25, seed=7)
pinxit.contact_sheet([result.image for result in results]).show()
```

- `open_base`: open a base model; `Bases` keeps the last ones open
- `Recipe`: all settings of a training run; `help(pinxit.Recipe)` describes each option
- `train`, `resume`: train a concept in a run folder; `read_run` reads the state of a run
- `generate`: generate images from a prompt or a `GenerationRequest`
- `evaluate`: compare concepts by measured images, in one report
- `read_concept`, `write_concept`, `convert`, `inspect_file`: files of concepts, in all formats
- `merge_loras`, `fuse_loras`, `extract_lora`: LoRAs into one, into a base model, and out of one
- `model.to_pipeline(concepts)`, `Model.from_pipeline(pipe)`: to and from pipelines of diffusers
- `read_images`, `contact_sheet`: folders of training images, and sheets of several images

Whatever a user can correct is a `PinxitError` with a hint.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pinxit.api import (
        convert,
        evaluate,
        extract_lora,
        fuse_loras,
        generate,
        inspect_file,
        merge_loras,
        resume,
        train,
    )
    from pinxit.concepts.concept import Concept
    from pinxit.concepts.read import read_concept, write_concept
    from pinxit.errors import PinxitError
    from pinxit.generation.request import GeneratedImage, GenerationRequest
    from pinxit.images.folder import read_images
    from pinxit.images.tensors import contact_sheet
    from pinxit.models.model import Model
    from pinxit.models.open_base import Bases, open_base
    from pinxit.runs.reader import read_run
    from pinxit.runs.run import Run
    from pinxit.training.recipe import Recipe

    paint = generate
    teach = train
    Request = GenerationRequest
    read_pictures = read_images
    sheet = contact_sheet
    __version__: str

__all__ = [
    "Bases",
    "Concept",
    "GeneratedImage",
    "GenerationRequest",
    "Model",
    "PinxitError",
    "Recipe",
    "Run",
    "__version__",
    "contact_sheet",
    "convert",
    "evaluate",
    "extract_lora",
    "fuse_loras",
    "generate",
    "inspect_file",
    "merge_loras",
    "open_base",
    "read_concept",
    "read_images",
    "read_run",
    "resume",
    "train",
    "write_concept",
]

# The module of each public name. Modules are imported on first use, because importing torch takes
# seconds.
_HOMES = {
    "Bases": "models.open_base",
    "Concept": "concepts.concept",
    "GeneratedImage": "generation.request",
    "GenerationRequest": "generation.request",
    "Model": "models.model",
    "PinxitError": "errors",
    "Recipe": "training.recipe",
    "Run": "runs.run",
    "contact_sheet": "images.tensors",
    "convert": "api",
    "evaluate": "api",
    "extract_lora": "api",
    "fuse_loras": "api",
    "generate": "api",
    "inspect_file": "api",
    "merge_loras": "api",
    "open_base": "models.open_base",
    "read_concept": "concepts.read",
    "read_images": "images.folder",
    "read_run": "runs.reader",
    "resume": "api",
    "train": "api",
    "write_concept": "concepts.read",
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
    return getattr(import_module(f"pinxit.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
