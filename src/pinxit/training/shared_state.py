"""The state of a trainer in several processes: given to all at the start, gathered to be saved."""

from collections.abc import Mapping

from torch import Tensor

from pinxit.images.folder import TrainingImage, fingerprints
from pinxit.models.ranks import Ranks
from pinxit.models.sharding import own_rows
from pinxit.training.concept_trainer import ConceptTrainer


def share_state(ranks: Ranks, trainer: ConceptTrainer, images: tuple[TrainingImage, ...]) -> None:
    """Give the state of rank 0 to all; RunError if they have other images or another base model."""
    if ranks.size == 1:
        return
    inputs = {"base model": trainer.model.hash, "prompts and class images": trainer.inputs()}
    ranks.check_same({**inputs, "images": fingerprints(images)})
    state, division = trainer.state(), trainer.division
    if division.shards:
        _shard(trainer)
    state = ranks.broadcast(state, division.own_part)
    if ranks.rank or division.networks:
        trainer.restore(state)
    own, states = division.own_weights, trainer.optimizer.state
    trainer.optimizer.state = {weight: states[weight] for weight in own if weight in states}


def _shard(trainer: ConceptTrainer) -> None:
    """Divide the weights, and what is as large, among all processes; the optimizer has no state."""
    division, groups = trainer.division, trainer.optimizer.groups
    networks = [adapter.shard(trainer.model) for adapter in trainer.adapters]
    division.networks = tuple(filter(None, networks))
    trainer.optimizer.state = {}
    rank, size = division.ranks.rank, division.ranks.size
    trainer.averages = {n: own_rows(one, rank, size) for n, one in trainer.averages.items()}
    for origin in (origin for group in groups for origin in group.origins):
        origin.data = own_rows(origin, rank, size)


def gather_state(trainer: ConceptTrainer) -> dict[str, Tensor]:
    """The whole state on rank 0; {} if it cannot be had, because a process ended in a step.

    If something is divided, all processes must call it together.
    """
    division = trainer.division
    if not division.divided:
        return trainer.state()
    if division.ranks.lost:
        return {}
    if division.networks:
        return _gather(trainer, trainer.state())
    own: dict[str, Tensor] = {}
    for number in range(len(trainer.weights)):
        own |= trainer.optimizer_state(number)
    gathered = division.ranks.gather((trainer.steps_done, division.complete), own)
    return trainer.state() | gathered if gathered is not None and division.complete else {}


def gather_weights(trainer: ConceptTrainer) -> None:
    """Let rank 0 have the weights to save, if they are divided; all must call it together."""
    if trainer.division.networks:
        names = "weight.", "mean."
        _gather(trainer, {n: one for n, one in trainer.state().items() if n.startswith(names)})


def _gather(trainer: ConceptTrainer, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The whole tensors on rank 0, whose adapters get the weights to save."""
    gathered = trainer.division.gather(trainer.steps_done, state) or {}
    numbers = iter(range(len(trainer.weights)))
    for adapter in trainer.adapters if gathered else ():
        adapter.whole = {
            name: gathered.get(f"mean.{number}", gathered[f"weight.{number}"])
            for name, number in zip(adapter.weights(), numbers, strict=False)
        }
    return gathered
