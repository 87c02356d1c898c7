"""Run a script that was written for the module names of pinxit's first version.

    python -m lab.first_version SCRIPT ARGUMENTS...

The old modules exist only while the script runs; only what such scripts use has its old name.
"""

import importlib.util
import runpy
import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import torch

from pinxit.adapters.adapter import applied
from pinxit.concepts.concept import Concept
from pinxit.concepts.read import read_concept
from pinxit.generation.schedulers import SCHEDULERS, Sampler
from pinxit.models.checkpoint_source import CheckpointSource
from pinxit.models.clip_encoder import ClipEncoder
from pinxit.models.model import Model
from pinxit.models.noise_schedule import Diffusion, Flow
from pinxit.models.open_base import open_base

_LATENT_SHAPE = (4, 8, 8)


class _Solver(Sampler):
    """A sampler without the shape of the latents, which the first version did not need."""

    def __init__(self, kind: Any, name: str, config: Any, steps: int) -> None:
        schedule = Flow() if kind == "flow" else Diffusion(torch.tensor([0.5]))
        super().__init__(schedule, name, config, steps, _LATENT_SHAPE)


def _open_base(base: object) -> Model:
    return open_base(str(base))


_MODULES: dict[str, dict[str, Any]] = {
    "pinxit.model": {"open_base": _open_base},
    "pinxit.concept": {"Concept": Concept},
    "pinxit.adapter": {"injected": applied},
    "pinxit.single_file": {"SingleFile": CheckpointSource},
    "pinxit.solvers": {"SOLVERS": SCHEDULERS, "Solver": _Solver},
}
_ATTRIBUTES: dict[type, dict[str, Any]] = {
    Concept: {"load": staticmethod(read_concept)},
    Model: {
        "towers": property(lambda model: model.text_encoders),
        "solver_config": property(lambda model: model.scheduler_config),
    },
    ClipEncoder: {
        "encoder": property(lambda text_encoder: text_encoder.loaded),
        "word_vectors": ClipEncoder.token_embeddings,
    },
    Diffusion: {"weight": Diffusion.loss_weight},
    Flow: {"weight": Flow.loss_weight},
}
# Old names of functions in the project's tests, which a script may load by their path.
_TEST_FUNCTIONS = {"single_file_tensors": "as_one"}


def main(script: str, *arguments: str) -> None:
    """Run a script with these arguments, as if it were started alone."""
    for name, content in _MODULES.items():
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(content)
    for owner, attributes in _ATTRIBUTES.items():
        for name, attribute in attributes.items():
            setattr(owner, name, attribute)
    importlib.util.spec_from_file_location = _spec_with_old_names
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).parent))
    runpy.run_path(script, run_name="__main__")


_spec_from_file_location = importlib.util.spec_from_file_location


def _spec_with_old_names(*arguments: Any, **options: Any) -> ModuleSpec | None:
    """A module's specification, which gives functions of tests their old names as well."""
    spec = _spec_from_file_location(*arguments, **options)
    loader: Any = spec.loader if spec else None
    if loader is not None and hasattr(loader, "exec_module"):
        execute = loader.exec_module

        def execute_with_old_names(module: Any) -> None:
            execute(module)
            for name, old_name in _TEST_FUNCTIONS.items():
                if hasattr(module, name):
                    setattr(module, old_name, getattr(module, name))

        loader.exec_module = execute_with_old_names
    return spec


if __name__ == "__main__":
    main(*sys.argv[1:])
