"""Findings: what is wrong with a trained concept, and advice on what to try, as sentences."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from torch.nn import functional as F

from pinxit import registry
from pinxit.adapters.parts import EmbeddingPart
from pinxit.concepts.concept import Concept
from pinxit.evaluation.judge import Judge, JudgeScore
from pinxit.evaluation.metric import Images, Scale, leave_one_out_scores, stack_images
from pinxit.evaluation.prompt_sets import Prompt
from pinxit.models.model import Model
from pinxit.pocket.prompt_attributes import prompt_attributes
from pinxit.pocket.words import PLACE_PHRASES

# Thresholds of the advice.
_LOW_LIKENESS, _HIGH_LIKENESS = 0.4, 0.9  # on the scale from floor to ceiling
_LOW_PROMPT, _REDUCED_PROMPT = 0.75, 0.9  # of the base model's score
_MANY_COPIES = 0.1  # of all images
_LEAK_IN_ONE, _LEAK_IN_ALL = 0.5, 0.3  # of the images of one background, and of all
_CLASS_DRIFT = 0.3  # on the scale from floor to ceiling
_LOW_VARIETY = 0.6  # of the base model's
_LARGE_NORM = 3.0  # times the mean of the vocabulary
# An image is a copy of a training image if their thumbnails correlate more than this and more
# than the training images do among themselves.
_COPY = 0.9


@dataclass(frozen=True)
class BackgroundLeak:
    """Of `total` images of one background, `count` show a background of the training images.

    `background` is the one they show most often.
    """

    count: int
    total: int
    background: str


@dataclass(frozen=True)
class EmbeddingNorm:
    """The norm of a token's embedding, relative to the vocabulary, and its class noun cosine."""

    relative_norm: float
    cosine: float

    @classmethod
    def of(cls, concept: Concept, model: Model, noun: str) -> "EmbeddingNorm | None":
        """Of a concept's first token, mean over text encoders; None if it has no embedding."""
        parts = (part for part in concept.parts if isinstance(part, EmbeddingPart))
        tables = next((part.tables for part in parts), {})
        norms: list[float] = []
        cosines: list[float] = []
        for name, encoder in model.text_encoders.items():
            if name in tables:
                vectors = tables[name].float()
                usual_norm = encoder.embedding.weight.detach().float().norm(dim=1).mean()
                norms.append(float(vectors.norm(dim=1).mean() / usual_norm))
                noun_vector = encoder.token_embeddings(noun).to(vectors.device).mean(0)
                cosines.append(float(F.cosine_similarity(vectors.mean(0), noun_vector, dim=0)))
        return cls(fmean(norms), fmean(cosines)) if norms else None


@dataclass(frozen=True)
class Findings:
    """What images of a concept show; `base_prompt` and `base_variety` are without the token.

    `leaks` are by the background in the prompt. `background_similarity` is on a scale from the
    base model's images (0) to the backgrounds of the training images (1), for models outside of
    pocket's world. None means not measured.
    """

    num_images: int
    score: JudgeScore
    base_prompt: float
    copies: int
    leaks: Mapping[str, BackgroundLeak] = field(default_factory=dict[str, BackgroundLeak])
    variety: float | None = None
    base_variety: float | None = None
    drift: float | None = None
    embedding_norm: EmbeddingNorm | None = None
    background_similarity: float | None = None

    @property
    def leak_rate(self) -> float:
        """The fraction of images with a training background instead of the one in the prompt."""
        return sum(leak.count for leak in self.leaks.values()) / self.num_images

    @classmethod
    def of(cls, judge: Judge, images: Images, prompts: Sequence[Prompt]) -> "Findings":
        """What a judge finds in images that were generated with the token, one prompt for each."""
        similarities = background_similarities(judge, images)
        return cls(
            len(images),
            judge.score(images, prompts),
            judge.base_prompt,
            sum(near_copies(judge, images)),
            background_leaks(compare_backgrounds(judge, images, prompts)),
            background_similarity=fmean(similarities) if similarities else None,
        )


def advice(findings: Findings, concept: Concept, *, rising: bool = False) -> list[str]:
    """What is wrong and what to try with such a concept, worst first; one sentence if nothing is.

    `rising` is whether the likeness was still rising at the last step.
    """
    likeness = findings.score.likeness
    problems = [*_content_problems(findings, concept), *_model_problems(findings)]
    if rising and likeness is not None and _LOW_LIKENESS <= likeness < _HIGH_LIKENESS:
        problems.append(f"likeness is still rising ({likeness:.0%}); try more steps")
    return problems or ["these metrics show no problem"]


def near_copies(judge: Judge, images: Images) -> list[bool]:
    """Whether each image is nearly identical to a training image."""
    nearest, references = registry.load("metrics", "nearest")(), judge.training_images
    limit = _COPY
    if len(references) > 1:
        limit = max(_COPY, *leave_one_out_scores(nearest, references))
    return [score > limit for score in nearest.score(images, references, ())]


def compare_backgrounds(
    judge: Judge, images: Images, prompts: Sequence[Prompt]
) -> list[tuple[str, str | None]]:
    """For each image the background in its prompt, and the training background shown instead.

    The second is None if there is no leak. Empty outside of pocket's world.
    """
    eyes = judge.metrics.eyes
    if eyes is None:
        return []
    trained = set(eyes.look(stack_images(judge.training_images)).named("background"))
    actual = eyes.look(stack_images(images)).named("background")
    expected = [prompt_attributes(prompt.target_text).get("background", "") for prompt in prompts]
    return [
        (prompted, shown if prompted and shown != prompted and shown in trained else None)
        for prompted, shown in zip(expected, actual, strict=True)
    ]


def background_leaks(pairs: Sequence[tuple[str, str | None]]) -> dict[str, BackgroundLeak]:
    """The leaks in pairs of `compare_backgrounds`, by the background in the prompt."""
    leaks: dict[str, BackgroundLeak] = {}
    for background in dict.fromkeys(expected for expected, _ in pairs):
        shown = [leak for expected, leak in pairs if expected == background]
        counts = Counter(leak for leak in shown if leak is not None)
        if counts:
            most_common = counts.most_common(1)[0][0]
            leaks[background] = BackgroundLeak(counts.total(), len(shown), most_common)
    return leaks


def background_similarities(judge: Judge, images: Images) -> list[float]:
    """How similar each image is to the backgrounds of the training images, from 0 to 1.

    0 is the base model's images, 1 the training images. Empty if some training image has no mask,
    and in pocket's world.
    """
    if not judge.backgrounds or judge.metrics.eyes:
        return []
    metric = judge.metrics.similarity
    scale = Scale.of(metric, judge.backgrounds, judge.base_images, judge.training_images)
    return scale.relative(metric.score(images, judge.backgrounds, ()))


def _leak_sentence(findings: Findings) -> str:
    """The worst background leak as a phrase; empty if few images leak."""
    leaks = findings.leaks
    worst = max(leaks, key=lambda name: leaks[name].count / leaks[name].total, default=None)
    if worst:
        leak = leaks[worst]
        if leak.count >= 2 and leak.count >= _LEAK_IN_ONE * leak.total:
            expected, actual = PLACE_PHRASES[worst][0], PLACE_PHRASES[leak.background][0]
            return f"{leak.count} of {leak.total} images {expected} are {actual} instead"
    if findings.leak_rate >= _LEAK_IN_ALL:
        count = sum(leak.count for leak in leaks.values())
        return f"{count} of {findings.num_images} images show a training background instead"
    similarity = findings.background_similarity
    if similarity is not None and similarity > _LEAK_IN_ONE:
        return f"backgrounds are {similarity:.0%} as similar to the training images' as those are"
    return ""


def _content_problems(findings: Findings, concept: Concept) -> Iterator[str]:
    """What is wrong with images of the token."""
    num_vectors = _num_vectors(concept)
    leak = _leak_sentence(findings)
    if leak:
        yield (
            f"background leak: {leak}; try training images with other backgrounds, masks "
            "(toy.mask.png for toy.jpg), or captions that describe the background"
        )
    if findings.copies > _MANY_COPIES * findings.num_images:
        yield (
            f"copies of training images: {findings.copies} of {findings.num_images} images are "
            "nearly identical to one; try fewer steps, or more training images"
        )
    score, base_prompt = findings.score, findings.base_prompt
    if score.prompt < _LOW_PROMPT * base_prompt:
        yield (
            f"low prompt fidelity: {score.prompt:.0%}, and {base_prompt:.0%} without the token; "
            f"try fewer steps{', fewer vectors' if num_vectors > 1 else ''} or a lower "
            "--learning-rate"
        )
    if score.likeness is not None and score.likeness < _LOW_LIKENESS:
        yield (
            f"low subject fidelity: {max(score.likeness, 0):.0%} of that of real images; try more "
            f"steps, {_more_capacity(concept)}"
        )


def _num_vectors(concept: Concept) -> int:
    """The number of vectors of a concept's embeddings; 0 if it has none."""
    tables = [part.tables for part in concept.parts if isinstance(part, EmbeddingPart)]
    return max((len(vectors) for table in tables for vectors in table.values()), default=0)


def _more_capacity(concept: Concept) -> str:
    """How else than by more steps a concept of this kind can learn more."""
    return {
        "adapters": "a higher --rank or a higher --learning-rate",
        "full weights": "a higher --learning-rate or --train-text-encoder",
    }.get(concept.content, "more vectors, or a method that changes the denoiser, such as lora")


def _model_problems(findings: Findings) -> Iterator[str]:
    """What training has done to the class, to variety and to the embedding."""
    if findings.drift is not None and findings.drift > _CLASS_DRIFT:
        yield (
            f"class drift: without the token too, images are {findings.drift:.0%} as similar to "
            "the training images as real ones; try --preserve class-images or --preserve "
            "weights, a higher --preserve-weight, or fewer steps"
        )
    variety, base_variety = findings.variety, findings.base_variety or 0
    if variety is not None and variety < _LOW_VARIETY * base_variety:
        yield (
            f"low variety: images of one prompt differ by {variety:.2f}, and by "
            f"{base_variety:.2f} without the token; try fewer steps, or more training "
            "images"
        )
    norm, prompt = findings.embedding_norm, findings.score.prompt
    if (
        norm
        and norm.relative_norm > _LARGE_NORM
        and prompt < _REDUCED_PROMPT * findings.base_prompt
    ):
        yield (
            f"large embedding norm: {norm.relative_norm:.1f} times the vocabulary's mean, so that "
            "the token outweighs the rest of the prompt; try a lower --learning-rate, or fewer "
            "steps"
        )
