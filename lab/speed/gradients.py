"""Counts the bytes of gradients that two processes sum in each step; prints JSON on one line."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from pinxit.images.folder import read_images
from pinxit.models.joining import is_rank, joined
from pinxit.models.model import Model
from pinxit.models.open_base import open_base
from pinxit.models.ranks import Ranks
from pinxit.pocket import gallery
from pinxit.training.concept_trainer import ConceptTrainer
from pinxit.training.plan import TrainingPlan
from pinxit.training.recipe import Recipe
from pinxit.training.train import TrainingSession, train

STEPS = 2
METHODS: dict[str, dict[str, Any]] = {
    "textual inversion": {"name": "textual-inversion"},
    "LoRA": {"name": "lora", "preserve": "none"},
    "LoRA with the text encoder": {"name": "lora", "preserve": "none", "train_text_encoder": True},
    "DreamBooth": {"name": "dreambooth", "preserve": "none"},
    "DreamBooth with the text encoder": {
        "name": "dreambooth",
        "preserve": "none",
        "train_text_encoder": True,
    },
}


def measure(ranks: Ranks, model: Model, images: Path, method: dict[str, Any]) -> dict[str, object]:
    """The number of trained weights, and the bytes that each step summed."""
    options = {"images": images, "token": "<t>", "class_noun": "robot", "batch_size": ranks.size}
    recipe = Recipe.model_validate({**options, "method": method, "steps": STEPS})
    own = read_images(images)
    trainer = ConceptTrainer(model, TrainingPlan.of(recipe, model, len(own)), own, (), ranks)
    before = ranks.summed_bytes
    steps = sum(1 for _ in train(TrainingSession(model, [trainer], ranks)))
    weights = sum(weight.numel() for weight in trainer.weights)
    return {"weights": weights, "bytes": (ranks.summed_bytes - before) // steps}


def main() -> None:
    """Start two processes, and measure in each; rank 0 prints."""
    if not is_rank():
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        subprocess.run([*start, "--nproc-per-node", "2", "-m", "lab.speed.gradients"], check=True)
        return
    images = next(path for path in sorted(gallery.folder().iterdir()) if path.is_dir())
    with joined("cpu") as ranks:
        model = open_base("pocket", "cpu")
        figures = {name: measure(ranks, model, images, one) for name, one in METHODS.items()}
        if ranks.rank == 0:
            print(json.dumps({"methods": figures}))


if __name__ == "__main__":
    main()
