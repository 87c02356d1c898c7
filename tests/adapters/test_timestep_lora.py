"""T-LoRA: at each timestep the output is that of a plain LoRA of the rank of that timestep."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pinxit import registry
from pinxit.adapters.adapter import Adapter, applied, before_denoise
from pinxit.adapters.kinds.lora import LoraAdapter
from pinxit.adapters.kinds.timestep_lora import TimestepLora
from pinxit.adapters.lora_part import LoraConfig, LoraPart, TimestepLoraPart
from pinxit.adapters.parts import AliasPart
from pinxit.concepts.concept import Concept
from pinxit.concepts.conversion import convert_concept
from pinxit.concepts.lora_tools import merge_loras
from pinxit.concepts.metadata import Provenance
from pinxit.concepts.programs import outcomes
from pinxit.concepts.read import ConceptReference, read_concept, write_concept
from pinxit.errors import ConceptError, RecipeError
from pinxit.models.model import Model
from pinxit.runs.file_names import result_file
from pinxit.runs.run import train_run
from pinxit.training.recipe import Recipe

CONFIG = LoraConfig("lora", 4, 3.0, "all")
# By hand from floor((rank - smallest) * (1000 - t) / 1000) + smallest, for 4 and 2.
RANKS = {0: 4, 1: 3, 500: 3, 501: 2, 999: 2, 1000: 2}
every_family = pytest.mark.parametrize("base", ["nano", *registry.names("families")])


def adapter_of(model: Model, min_rank: int = 2) -> TimestepLora:
    """An adapter as after training: no weight has its initial value."""
    adapter = TimestepLora.of(model, "denoiser", CONFIG, 0)
    adapter.min_rank = min_rank
    draws = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in adapter.weights().values():
            weight.add_(0.1 * torch.randn(weight.shape, generator=draws))
    return adapter


def of_rank(part: LoraPart, rank: int) -> LoraPart:
    """A plain LoRA of the first ranks, with the same scale."""
    layers = {
        name: {
            "lora_A.weight": tensors["lora_A.weight"][:rank],
            "lora_B.weight": tensors["lora_B.weight"][:, :rank],
            "alpha": tensors["alpha"] * rank / 4,
        }
        for name, tensors in part.layers.items()
    }
    return LoraPart(part.network, "lora", layers)


def output(model: Model, timesteps: list[int], *adapters: Adapter) -> Tensor:
    """The denoiser's output for fixed noise and prompts, a row for each timestep."""
    draws = torch.Generator().manual_seed(1)
    side = model.default_size // model.vae_scale_factor
    noise = torch.randn(1, model.latent_channels, side, side, generator=draws)
    times = torch.tensor(timesteps)
    with torch.no_grad(), applied(model, adapters):
        conditioning = model.condition(["a red toy on the beach"] * len(timesteps))
        before_denoise(model, times)
        return model.denoise(noise.repeat(len(timesteps), 1, 1, 1), times, conditioning)


@every_family
def test_each_sample_has_the_rank_of_its_timestep(
    base: str, opened: Callable[[str], Model]
) -> None:
    model = opened(base)
    adapter, times = adapter_of(model), list(RANKS)
    plain, own = output(model, times), output(model, times, adapter)
    assert torch.equal(output(model, times), plain)
    for row, (time, rank) in enumerate(RANKS.items()):
        oracle = LoraAdapter.restore(of_rank(adapter.part(), rank), model)
        expected = output(model, [time], oracle)[0]
        assert torch.allclose(own[row], expected, atol=2e-4), time
        assert (own[row] - plain[row]).abs().max() > 1e-3


def test_a_strength_scales_the_change_and_a_text_in_a_batch_of_one_timestep(model: Model) -> None:
    adapter = adapter_of(model)
    for strength in (0.0, 0.4):
        again = TimestepLora.restore(adapter.part(), model)
        again.strength = strength
        oracle = LoraAdapter.restore(of_rank(adapter.part(), 2), model)
        oracle.strength = strength
        expected = output(model, [900, 900], oracle)
        with torch.no_grad(), applied(model, [again]):
            before_denoise(model, torch.tensor([900]))  # one for the whole batch, as in generation
            own = output(model, [900, 900])
        assert torch.allclose(own, expected, atol=1e-5)


def test_it_starts_orthogonal_and_changes_nothing(model: Model) -> None:
    adapter = TimestepLora.of(model, "denoiser", CONFIG, 5)
    for weights in adapter.layers.values():
        down = weights["lora_A.weight"].detach().flatten(1)
        products = down @ down.T
        assert torch.allclose(products, products[0, 0] * torch.eye(4), atol=1e-5)
        assert not weights["lora_B.weight"].any()
    same, other = (TimestepLora.of(model, "denoiser", CONFIG, seed) for seed in (5, 6))
    name = next(iter(adapter.layers))
    first = adapter.layers[name]["lora_A.weight"]
    assert torch.equal(first, same.layers[name]["lora_A.weight"])
    assert not torch.equal(first, other.layers[name]["lora_A.weight"])


def test_a_run_trains_saves_and_resumes_it(model: Model, pictures: Path, tmp_path: Path) -> None:
    method = {"name": "lora", "rank": 4, "min_rank": 2, "class_images": 0}
    subject = {"method": method, "images": pictures, "token": "<mytoy>", "class_noun": "toy"}
    table = {**subject, "batch_size": 2, "preview_every": 0, "train_text_encoder": True}
    table["method"] = {**method, "train_text_encoder": True}
    del table["train_text_encoder"]
    whole = train_run(model, Recipe.model_validate({**table, "steps": 3}), tmp_path / "whole")
    part = train_run(model, Recipe.model_validate({**table, "steps": 2}), tmp_path / "part")
    again = type(part).open(tmp_path / "part", 3)
    for _ in again.train(model):
        pass
    concepts = [read_concept(result_file(run.folder)) for run in (whole, again)]
    lora, text = concepts[0].parts[1:]
    assert isinstance(lora, TimestepLoraPart)
    assert (lora.min_rank, lora.network, set(lora.ranks)) == (2, "denoiser", {4})
    assert type(text) is LoraPart
    assert any(tensors["lora_B.weight"].any() for tensors in lora.layers.values())
    for one, other in zip(*(concept.parts for concept in concepts), strict=True):
        assert one.tensors.keys() == other.tensors.keys()
        assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)
    with pytest.raises(ConceptError, match="timestep"):
        model.to_pipeline(concepts[:1])


def test_converted_files_keep_it_and_say_what_other_programs_do(
    model: Model, tmp_path: Path
) -> None:
    part = adapter_of(model).part()
    own = tmp_path / "own.safetensors"
    write_concept(
        Concept((AliasPart("<t>", "qfm toy"), part), Provenance.from_metadata("<t>", {})), own
    )
    concept, _ = convert_concept(own, tmp_path / "theirs.safetensors", "kohya")
    again = read_concept(tmp_path / "theirs.safetensors").parts[1]
    assert isinstance(again, TimestepLoraPart)
    assert again.min_rank == 2
    assert ("rank", "2 at the noisiest timestep (T-LoRA)") in again.describe()
    results = outcomes("kohya", ".safetensors", concept)
    assert results["ComfyUI"].startswith("wrong: it uses the full rank at every timestep")
    plain = Concept((of_rank(part, 4),), Provenance.from_metadata("<t>", {}))
    assert outcomes("kohya", ".safetensors", plain)["ComfyUI"] == "exact"


@pytest.mark.parametrize("least", ["0", "-1", "x", "99999"])
def test_damaged_settings_are_refused(least: str, model: Model) -> None:
    part = adapter_of(model).part()
    settings = {**part.settings, "min_rank": least}
    with pytest.raises(ConceptError, match="`min_rank` must be a number"):
        TimestepLoraPart.from_stored(settings, part.tensors)


@pytest.mark.parametrize("options", [{"adapter": "loha", "min_rank": 2}, {"min_rank": 8}])
def test_options_that_do_not_fit_are_refused(
    options: dict[str, object], model: Model, pictures: Path, tmp_path: Path
) -> None:
    table = {"method": {"name": "lora", **options}, "images": pictures, "token": "<mytoy>"}
    recipe = Recipe.model_validate({**table, "class_noun": "toy", "steps": 1})
    with pytest.raises(RecipeError, match="min-rank"):
        train_run(model, recipe, tmp_path / "run")


def test_it_is_not_merged_with_other_loras(model: Model, tmp_path: Path) -> None:
    own = tmp_path / "own.safetensors"
    write_concept(Concept((adapter_of(model).part(),), Provenance.from_metadata("<t>", {})), own)
    with pytest.raises(ConceptError, match="depends on the timestep"):
        merge_loras([ConceptReference(own)])
