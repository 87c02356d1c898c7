"""LoRA tools: what the denoiser computes with their output is what it should compute."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import pinxit
from pinxit import registry
from pinxit.adapters.adapter import applied, before_denoise
from pinxit.adapters.kinds.lora import LoraAdapter
from pinxit.adapters.lora_part import LORA_VARIANTS, LoraConfig, LoraPart, LoraVariant
from pinxit.adapters.parts import AliasPart, EmbeddingPart, FullWeightsPart, Part
from pinxit.cli import main
from pinxit.concepts.concept import Concept
from pinxit.concepts.format import default_format
from pinxit.concepts.layer_errors import relative_error
from pinxit.concepts.lora_tools import extract_lora, merge_loras
from pinxit.concepts.low_rank import RankLimit, reduced_matrix, reduced_product
from pinxit.concepts.metadata import Provenance
from pinxit.concepts.read import ConceptReference, read_concept, write_concept
from pinxit.errors import ConceptError
from pinxit.files.safetensors_file import read_safetensors
from pinxit.models.model import Model
from pinxit.models.open_base import open_base

FAMILIES = registry.names("families")


def lora_part(
    model: Model, seed: int, rank: int = 2, variant: LoraVariant = "lora", network: str = "denoiser"
) -> LoraPart:
    """A LoRA of all layers as after training."""
    config = LoraConfig(variant, rank, 1.5 * rank, "all")
    adapter = LoraAdapter.of(model, network, config, seed)
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in adapter.weights().values():
            weight.add_(0.1 * torch.randn(weight.shape, generator=draws))
    return adapter.part()


def written(path: Path, model: Model, *parts: Part, token: str = "<my>") -> Path:
    provenance = Provenance.from_metadata(token, {}, model.name)
    write_concept(Concept(parts, provenance), path)
    return path


def output(model: Model, *concepts: Concept) -> Tensor:
    """The denoiser's output for fixed noise and a prompt."""
    side = model.default_size // model.vae_scale_factor
    size = (1, model.latent_channels, side, side)
    noise = torch.randn(size, generator=torch.Generator().manual_seed(2))
    adapters = [adapter for concept in concepts for adapter in concept.adapters(model)]
    with torch.no_grad(), applied(model, adapters):
        before_denoise(model, torch.tensor([500]))
        return model.denoise(noise, torch.tensor([500]), model.condition(["a photo of a dog"]))


def matrix(tensors: object) -> Tensor:
    layer: dict[str, Tensor] = tensors  # pyright: ignore[reportAssignmentType]
    up, down = layer["lora_B.weight"].flatten(1), layer["lora_A.weight"].flatten(1)
    return float(layer["alpha"]) / len(down) * up @ down


@pytest.mark.parametrize("family", ["nano", *FAMILIES])
def test_a_merged_lora_is_the_sum(
    family: str, opened: Callable[[str], Model], tmp_path: Path
) -> None:
    model = opened(family)
    one = written(tmp_path / "one.safetensors", model, lora_part(model, 1))
    two = written(tmp_path / "two.safetensors", model, lora_part(model, 2, rank=3))
    out = tmp_path / "merged.safetensors"
    pinxit.merge_loras([one, f"{two}:-0.5"], out)
    separate = output(model, read_concept(one), read_concept(two).with_strength(-0.5))
    assert torch.allclose(output(model, read_concept(out)), separate, atol=2e-5)
    assert not torch.allclose(output(model, read_concept(one)), separate, atol=1e-2)


@pytest.mark.parametrize("variant", ["dora", "loha", "lokr", "oft"])
def test_other_adapters_become_plain_loras(
    variant: LoraVariant, model: Model, tmp_path: Path
) -> None:
    file = written(tmp_path / "one.safetensors", model, lora_part(model, 1, variant=variant))
    concept, errors = merge_loras([ConceptReference(file)])
    assert {part.settings["kind"] for part in concept.parts} == {"lora"}
    assert torch.allclose(output(model, concept), output(model, read_concept(file)), atol=1e-4)
    assert relative_error(errors) < 1e-6


@pytest.mark.parametrize("variant", LORA_VARIANTS)
def test_the_order_of_numbers_in_memory_changes_nothing(variant: LoraVariant, model: Model) -> None:
    part = lora_part(model, 1, variant=variant)
    layers = {
        layer: {name: t.mT.contiguous().mT if t.ndim > 1 else t for name, t in tensors.items()}
        for layer, tensors in part.layers.items()
    }
    same, transposed = (
        Concept((LoraPart("denoiser", variant, one),), Provenance.from_metadata("<my>", {}))
        for one in (part.layers, layers)
    )
    assert torch.allclose(output(model, transposed), output(model, same), atol=1e-6)
    assert not torch.allclose(output(model, same), output(model), atol=1e-2)


def test_a_lora_with_enough_rank_is_unchanged_to_the_bit(model: Model, tmp_path: Path) -> None:
    part = lora_part(model, 1, rank=4)
    file = written(tmp_path / "one.safetensors", model, part)
    (same,) = merge_loras([ConceptReference(file)], RankLimit(4))[0].parts
    assert same.tensors.keys() == part.tensors.keys()
    assert all(torch.equal(same.tensors[name], part.tensors[name]) for name in part.tensors)


def test_a_strength_of_0_leaves_no_change(model: Model, tmp_path: Path) -> None:
    part = lora_part(model, 1)
    one = written(tmp_path / "one.safetensors", model, part)
    pinxit.merge_loras([f"{one}:0"], tmp_path / "none.safetensors")
    merged = output(model, read_concept(tmp_path / "none.safetensors"))
    assert torch.allclose(merged, output(model), atol=1e-6)


def test_a_smaller_rank_keeps_the_largest_singular_values(model: Model, tmp_path: Path) -> None:
    part = lora_part(model, 1, rank=4)
    file = written(tmp_path / "one.safetensors", model, part)
    concept, errors = merge_loras([ConceptReference(file)], RankLimit(1))
    (small,) = concept.parts
    assert isinstance(small, LoraPart)
    lost = total = 0.0
    for layer, tensors in part.layers.items():
        values = torch.linalg.svdvals(matrix(tensors)).square()
        lost, total = lost + float(values[1:].sum()), total + float(values.sum())
        difference = (matrix(tensors) - matrix(small.layers[layer])).square().sum()
        assert torch.allclose(difference, values[1:].sum(), rtol=1e-3, atol=1e-6), layer
    assert relative_error(errors) == pytest.approx((lost / total) ** 0.5, rel=1e-3)


@pytest.mark.parametrize(("energy", "rank"), [(0.5, 1), (0.79, 1), (0.81, 2), (0.99, 3), (1.0, 3)])
def test_the_rank_for_a_share_of_the_energy(energy: float, rank: int) -> None:
    values = torch.tensor([4.0, 1.6, 1.2, 0.0])  # shares 0.8, 0.928, 1
    basis = torch.linalg.qr(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)))[0]
    up, down = basis * values, basis.T.contiguous()
    for low in (
        reduced_matrix(up @ down, RankLimit(energy=energy)),
        reduced_product(up, down, RankLimit(energy=energy)),
    ):
        assert len(low.down) == rank
        assert low.total == pytest.approx(20.0, rel=1e-4)
        assert torch.allclose(low.up @ low.down, (up[:, :rank] @ down[:rank]), atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("family", ["nano", "flux-1"])
def test_a_fused_model_is_the_base_with_the_lora(
    family: str, opened: Callable[[str], Model], tmp_path: Path
) -> None:
    model = opened(family)
    parts = [lora_part(model, 1, network=network) for network in ("denoiser", "text")]
    embedding = EmbeddingPart("<my>", "a", {"text": torch.ones(1, 8)})
    one = written(tmp_path / "one.safetensors", model, *parts, embedding)
    dora = written(tmp_path / "d.safetensors", model, lora_part(model, 3, variant="dora"))
    assert main(["lora", "fuse", f"{one}:0.7", str(dora), "--out", str(tmp_path / "model")]) == 0
    fused = open_base(tmp_path / "model")
    concepts = (read_concept(one).with_strength(0.7), read_concept(dora))
    loras = [Concept(concepts[0].parts[:2], concepts[0].provenance, strength=0.7), concepts[1]]
    assert torch.allclose(output(fused), output(model, *loras), atol=1e-5)
    assert not torch.allclose(output(fused), output(model), atol=1e-2)
    assert read_concept(tmp_path / "my.safetensors").tokens == ["<my>"]


def test_a_fused_checkpoint_has_the_weights_of_the_folder(
    opened: Callable[[str], Model], tmp_path: Path
) -> None:
    model = opened("stable-diffusion-1")
    parts = [lora_part(model, 1, network=network) for network in ("denoiser", "text")]
    one = written(tmp_path / "one.safetensors", model, *parts)
    for name in ("model", "model.safetensors"):
        pinxit.fuse_loras([one], tmp_path / name, precision="fp16")
    folder, file = (
        {f"{part.key}.{name}": t for part in concept.parts for name, t in part.tensors.items()}
        for concept in map(read_concept, (tmp_path / "model", tmp_path / "model.safetensors"))
    )
    assert folder.keys() == file.keys()
    assert all(torch.equal(folder[name], file[name]) for name in folder)
    assert {tensor.dtype for tensor in file.values()} == {torch.float16}


@pytest.mark.parametrize("family", ["pocket", *FAMILIES])
def test_a_base_that_no_file_can_store_is_refused_before_it_is_read(
    family: str,
    opened: Callable[[str], Model],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = open_base("pocket") if family == "pocket" else opened(family)
    one = written(tmp_path / "one.safetensors", model, lora_part(model, 1))
    monkeypatch.setattr("pinxit.concepts.base_weights.trainable_weights", None)
    typed = ["lora", "fuse", str(one), "--out", str(tmp_path / "new.safetensors")]
    problem = "which single files (SD 1, 2 and XL) cannot store"
    if family == "pocket":
        problem = "single-file checkpoints have no name for the weight"
    elif model.facts.single_file_prefixes:
        with pytest.raises(TypeError):
            main(typed)
        return
    assert main(typed) == 2
    assert problem in capsys.readouterr().err
    assert not (tmp_path / "new.safetensors").exists()


@pytest.mark.parametrize("family", ["nano", *FAMILIES])
def test_an_extracted_lora_is_the_difference(
    family: str, opened: Callable[[str], Model], tmp_path: Path
) -> None:
    model, weights = opened(family), dict[str, Tensor]()
    draws = torch.Generator().manual_seed(0)
    for name, weight in model.networks["denoiser"].state_dict().items():
        weights[name] = weight + 0.05 * torch.randn(weight.shape, generator=draws)
    tuned = written(
        tmp_path / "tuned.safetensors",
        model,
        AliasPart("<my>", "qfm dog"),
        FullWeightsPart("denoiser", weights),
    )
    out = tmp_path / "lora.safetensors"
    whole, errors, others = extract_lora(tuned, base=model.name, all_weights=True)
    layers = {name for name in weights if name.endswith(("weight", "bias"))}
    assert len(errors) + len(others) == len(weights) >= len(layers)
    if layers == weights.keys():  # other parameters have no place in a LoRA
        expected = output(model, read_concept(tuned))
        assert torch.allclose(output(model, whole), expected, atol=1e-3)
        assert not torch.allclose(output(model), expected, atol=1e-2)
    lost = pinxit.extract_lora(tuned, out, rank=2, base=model.name)
    assert 0 < lost["all"] < 1
    extracted = read_concept(out)
    assert {rank for part in extracted.parts for rank in getattr(part, "ranks", [])} <= {1, 2}
    assert "<my>" in extracted.tokens


def test_what_the_command_cannot_do_is_an_error_message(
    model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str], nano: Path
) -> None:
    lora = written(tmp_path / "one.safetensors", model, lora_part(model, 1))
    embedding = EmbeddingPart("<my>", "a", {"text": torch.ones(1, 8)})
    word = written(tmp_path / "word.safetensors", model, embedding)
    tuned = FullWeightsPart("denoiser", dict(model.networks["denoiser"].state_dict()))
    same = written(tmp_path / "same.safetensors", model, tuned)
    (tmp_path / "there.safetensors").touch()
    run = tmp_path / "run"
    run.mkdir()
    lora.rename(run / "concept.safetensors")
    lora = run / "concept.safetensors"
    (run / "recipe.toml").touch()
    new = str(tmp_path / "new.safetensors")
    for arguments, message in {
        ("merge", "--out", new): "no LoRA to merge",
        ("merge", str(word), "--out", new): "has no LoRA",
        ("merge", str(same), "--out", new): "has full weights",
        ("merge", f"{lora}:attention=0.5", "--out", new): "one number",
        ("merge", str(lora), "--rank", "0", "--out", new): "rank cannot be 0",
        ("merge", str(lora), "--energy", "7", "--out", new): "cannot be 7",
        ("merge", str(lora), "--out", str(tmp_path / "there.safetensors")): "exists already",
        ("merge", str(word), str(word), str(lora), "--out", new): "two files define",
        ("resize", str(lora), "--out", new): "no rank to reduce to",
        ("extract", str(lora), "--out", new): "no fine-tuned model",
        ("extract", str(same), "--base", str(nano), "--out", new): "differs from",
        ("fuse", str(lora), "--base", "pocket", "--out", str(tmp_path / "new")): "pocket has",
        ("fuse", str(lora), "--base", str(run), "--out", str(tmp_path / "new")): "families",
    }.items():
        assert main(["lora", *arguments]) == 2, arguments
        assert message in capsys.readouterr().err, arguments
    assert not Path(new).exists()


def test_precision_and_format_of_the_file(
    model: Model, opened: Callable[[str], Model], tmp_path: Path
) -> None:
    one = written(tmp_path / "one.safetensors", model, lora_part(model, 1))
    out = tmp_path / "half.safetensors"
    assert main(["lora", "merge", str(one), "--out", str(out), "--precision", "fp16"]) == 0
    tensors = read_safetensors(out)[0]
    assert {
        tensor.dtype for name, tensor in tensors.items() if "lora" in name and "alpha" not in name
    } == {torch.float16}
    flux = Concept((lora_part(opened("flux-1"), 1),), Provenance.from_metadata("<my>", {}))
    assert default_format(flux, ".safetensors") == "diffusers-lora"


@pytest.mark.parametrize("kind", ["lora", "full weights"])
def test_values_that_fp16_cannot_store_are_an_error(
    kind: str,
    opened: Callable[[str], Model],
    bases: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, base = opened("stable-diffusion-1"), str(bases("stable-diffusion-1"))
    lora = lora_part(model, 1)
    layer, tensors = next(iter(lora.layers.items()))
    large = {**tensors, "lora_B.weight": tensors["lora_B.weight"] * 1e7}
    weights = dict(model.networks["denoiser"].state_dict())
    name = f"{layer}.weight"
    parts = {
        "lora": LoraPart("denoiser", "lora", {**lora.layers, layer: large}),
        "full weights": FullWeightsPart("denoiser", weights | {name: weights[name] * 1e9}),
    }
    one = str(written(tmp_path / "one.safetensors", model, parts[kind]))
    file, folder = tmp_path / "new.safetensors", tmp_path / "new"
    commands = {
        "lora": [
            ["lora", "merge", one, "--out", file],
            ["lora", "fuse", one, "--base", base, "--out", file],
            ["lora", "fuse", one, "--base", base, "--out", folder],
        ],
        "full weights": [["convert", one, out, "--base", base] for out in (file, folder)],
    }
    for command in commands[kind]:
        assert main([*map(str, command), "--precision", "fp16"]) == 2, command
        assert "too large for float16" in capsys.readouterr().err, command
        assert not file.exists()
    assert main([*map(str, commands[kind][0]), "--precision", "bf16"]) == 0


def test_layers_of_different_sizes_are_refused(model: Model, tmp_path: Path) -> None:
    part = lora_part(model, 1)
    name, layer = next(iter(part.layers.items()))
    wide = {**layer, "lora_B.weight": torch.cat([layer["lora_B.weight"]] * 2)}
    one = written(tmp_path / "one.safetensors", model, part)
    two = written(tmp_path / "two.safetensors", model, LoraPart("denoiser", "lora", {name: wide}))
    with pytest.raises(ConceptError, match="different sizes"):
        merge_loras([ConceptReference(one), ConceptReference(two)])
