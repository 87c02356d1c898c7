"""Findings of the literature reproduced on pocket: class nouns and the number of vectors.

Small experiments on few subjects. Results are kept in the work folder, so an interrupted
measurement continues. The last line on stdout is JSON.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

from PIL.Image import Image
from torch import Tensor

from lab.quality import subjects
from lab.quality.harness import Lab, LabImage, argument_parser, cached, print_progress
from pinxit import registry
from pinxit.concepts.concept import Concept
from pinxit.evaluation.metric import stack_images
from pinxit.evaluation.prompt_sets import Prompt
from pinxit.models.open_base import open_base
from pinxit.pocket.captions import prompt
from pinxit.pocket.eyes import JOINT, Eyes
from pinxit.pocket.world import BACKGROUNDS, CLASSES, COLOURS, STYLES, held_out_subjects
from pinxit.training.plan import TrainingPlan
from pinxit.training.recipe import Recipe

Options = Mapping[str, Any]
Similarity = Callable[[Sequence[Image]], float]
_DREAMBOOTH: Options = {"name": "dreambooth", "class_images": 0}
_INVERSION: Options = {"name": "textual-inversion"}
RIGHT, WRONG, NONE = "right noun", "wrong noun", "no noun"
# By group and experiment: options of the method and of the recipe. Short where an effect is clear.
GROUPS: dict[str, dict[str, tuple[Options, Options]]] = {
    # After few steps, while the class noun still matters, and after many.
    "nouns": {
        f"{name}, {steps} steps": (_DREAMBOOTH, {"steps": steps})
        for steps in (12, 25, 100)
        for name in (RIGHT, WRONG, NONE)
    },
    "words": {
        f"{count} {length}": (
            {**_INVERSION, "num_vectors": count, "embedding_norm": length},
            {"steps": 200, "batch_size": 4},
        )
        for count in (1, 8)
        for length in ("free", "held")
    },
}


@dataclass(frozen=True)
class Experiment:
    """One subject trained in one way, in a work folder."""

    subject: int
    group: str
    name: str
    work: Path

    @property
    def noun(self) -> str:
        """The class noun of the recipe; "thing" is close to no class noun."""
        right = held_out_subjects()[self.subject].class_noun
        wrong = CLASSES[(CLASSES.index(right) + 6) % len(CLASSES)]
        return {WRONG: wrong, NONE: "thing"}.get(self.name.partition(",")[0], right)

    def recipe(self, base: str) -> Recipe:
        """The recipe; writes the training images first."""
        method, options = GROUPS[self.group][self.name]
        own = {"method": dict(method), "class_noun": self.noun, "base": base}
        folder = self.work / f"{self.subject:02}"
        return subjects.recipe(self.subject, folder, **{**own, **options})


def places(noun: str) -> list[Prompt]:
    """A photo of the subject in each place of pocket's world."""
    return [_prompt(noun, None, place, "photo") for place in BACKGROUNDS]


def edits(noun: str) -> list[Prompt]:
    """The subject in colours, places and styles that are in none of its training images."""
    colours, styles = list(COLOURS), STYLES[1:]
    return [
        _prompt(noun, colours[at % len(colours)], place, styles[at % len(styles)])
        for at, place in enumerate(BACKGROUNDS)
    ]


def _prompt(noun: str, colour: str | None, place: str, style: str) -> Prompt:
    text = prompt(noun, colour, place, style)
    return Prompt(re.sub(rf"\b{noun}\b", "{}", text), text, text)


def run_experiment(lab: Lab, eyes: Eyes, experiment: Experiment) -> dict[str, float]:
    """The results of an experiment, from the work folder or else measured now."""
    recipe = experiment.recipe(lab.model.name)
    tag = lab.tag(TrainingPlan.of(recipe, lab.model, subjects.REFERENCES).recipe.to_toml())
    file = (
        experiment.work
        / f"{experiment.subject:02}-{experiment.name.replace(',', '').replace(' ', '-')}-{tag}.json"
    )
    return cached(file, lambda: _measure(lab, eyes, experiment, recipe))


def _measure(lab: Lab, eyes: Eyes, experiment: Experiment, recipe: Recipe) -> dict[str, float]:
    task = f"subject {experiment.subject}, {experiment.name}"
    trained = lab.train(recipe, experiment.work / f"{experiment.subject:02}-run", task)
    scales, concept = subjects.scales_of(experiment.subject, eyes), trained.concept
    row = {"seconds": trained.seconds}
    placed = lab.generate(places(experiment.noun), concept, f"{task}: places")
    images = [image.image for image in placed]
    row |= {name: scale.score(images).relative for name, scale in scales.items()}
    if experiment.group == "words":
        edited = lab.generate(edits(experiment.noun), concept, f"{task}: edits")
        row |= prompt_accuracy(edited, eyes)
        vectors = concept.parts[0].tensors["text"]
        row["norm"] = float(vectors.norm(dim=1).mean())
        own = lab.model.text_encoders["text"].token_embeddings(experiment.noun)
        row["norm of the noun"] = float(own.norm(dim=1).mean())
    return row


def prompt_accuracy(
    generated: Sequence[LabImage], eyes: Eyes, questions: Sequence[str] = JOINT
) -> dict[str, float]:
    """The share of images that show each attribute of the prompt, and the mean of all."""
    images = [image.image for image in generated]
    texts = [image.prompt.target_text for image in generated]
    accuracy: dict[str, float] = {}
    for question in questions:
        metric = registry.load("metrics", "pocket-attributes")(eyes=eyes, questions=(question,))
        accuracy[question] = fmean(metric.score(images, (), texts))
    return {**accuracy, "obeyed": fmean(accuracy.values())}


def class_change(
    lab: Lab, concept: Concept, similarity: Similarity, noun: str, eyes: Eyes
) -> dict[str, float]:
    """How the class has changed: similarity to the subject or style, and diversity of its members.

    Images of the class noun by the fine-tuned network and by the base model, all in one place, so
    that different places do not count as diversity.
    """
    row: dict[str, float] = {}
    own, base = _class_images(lab, concept, noun), _base_class_images(lab, noun)
    for which, images in (("", own), (" of the base", base)):
        row[f"drift{which}"] = similarity(images)
        # The mean distance between individuals: 1 minus the cosine of their embeddings.
        individuals: Tensor = eyes.look(stack_images(images)).instance
        distances = (1 - float(one @ other) for one, other in combinations(individuals, 2))
        row[f"diversity{which}"] = fmean(distances)
    return row


@cache
def _base_class_images(lab: Lab, noun: str) -> list[Image]:
    return _class_images(lab, None, noun)


def _class_images(lab: Lab, concept: Concept | None, noun: str) -> list[Image]:
    """Eight images of the class noun."""
    text = prompt(noun, None, BACKGROUNDS[0], "photo")
    plain = [Prompt(text, text, text, seed) for seed in range(8)]
    return [image.image for image in lab.generate(plain, concept, f"{noun}: class")]


def main() -> None:
    """Run all experiments; progress goes to stderr."""
    parser = argument_parser(__doc__, "build/truths")
    parser.add_argument("--groups", nargs="+", default=tuple(GROUPS), help="groups of experiments")
    parser.add_argument("--subjects", type=int, default=3, help="number of subjects")
    args = parser.parse_args()
    lab, eyes = Lab(open_base("pocket"), print_progress, num_images=1), Eyes.load()
    figures: dict[str, dict[str, object]] = {group: {} for group in args.groups}
    for group in args.groups:
        for name in GROUPS[group]:
            experiments = [
                Experiment(at, group, name, args.work)
                for at in subjects.sample_subjects(args.subjects)
            ]
            rows = [run_experiment(lab, eyes, experiment) for experiment in experiments]
            means = {key: fmean(row[key] for row in rows) for key in rows[0]}
            figures[group][name] = {**means, "rows": rows}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
