"""LoRA and its variants: equality with peft, reversibility, strengths, adapters that do not fit."""

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from pinxit.adapters.adapter import Adapter, applied
from pinxit.adapters.kinds.embedding import EmbeddingAdapter
from pinxit.adapters.kinds.full_weights import FullWeightsAdapter
from pinxit.adapters.kinds.lora import LoraAdapter
from pinxit.adapters.lora_part import LORA_VARIANTS, LayerGroup, LoraConfig, LoraPart, LoraVariant
from pinxit.adapters.parts import Part
from pinxit.concepts.concept import Concept, combined_adapters
from pinxit.concepts.metadata import Provenance
from pinxit.concepts.read import ConceptReference, read_concept, write_concept
from pinxit.errors import ConceptError, RequestError
from pinxit.generation.request import GenerationRequest
from pinxit.generation.sample import generate_images
from pinxit.images.folder import read_images
from pinxit.models.model import Model
from pinxit.models.open_base import open_base
from pinxit.runs.run import Run, train_run
from pinxit.training.concept_trainer import ConceptTrainer
from pinxit.training.recipe import Recipe
from pinxit.training.train import StepResult, TrainingSession, denoising_losses

every_kind = pytest.mark.parametrize("kind", LORA_VARIANTS)
CONFIGS: dict[str, Callable[..., Any]] = {
    "lora": lambda r, a: peft.LoraConfig(r=r, lora_alpha=a),
    "dora": lambda r, a: peft.LoraConfig(r=r, lora_alpha=a, use_dora=True),
    "loha": lambda r, a: peft.LoHaConfig(r=r, alpha=a),
    "lokr": lambda r, a: peft.LoKrConfig(r=r, alpha=a),
    "oft": lambda r, _: peft.OFTConfig(r=0, oft_block_size=r),
}


def trained_adapter(
    model: Model,
    kind: LoraVariant,
    seed: int = 0,
    target: str = "denoiser",
    layers: LayerGroup = "cross-attention",
) -> LoraAdapter:
    """An adapter as after training: no weight has its initial value."""
    # A LoKr whose factors are both whole has no rank, and counts as it is.
    alpha = 2.0 if kind == "lokr" else 3.0
    adapter = LoraAdapter.of(model, target, LoraConfig(kind, 2, alpha, layers), seed)
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in adapter.weights().values():
            weight.add_(0.2 * torch.randn(weight.shape, generator=draws))
    return adapter


def restored(adapter: Adapter, model: Model, strength: float = 1.0) -> LoraAdapter:
    """The adapter restored from its part, as it is used for generation."""
    again = LoraAdapter.restore(adapter.part(), model)
    again.strength = strength
    return again


def denoiser_output(model: Model, *adapters: Adapter) -> Tensor:
    """The denoiser's output for fixed noise and prompts."""
    draws = torch.Generator().manual_seed(1)
    side = model.default_size // model.vae_scale_factor
    noise = torch.randn(2, model.latent_channels, side, side, generator=draws)
    with torch.no_grad(), applied(model, adapters):
        conditioning = model.condition(["a dog", "a red toy on the beach"])
        return model.denoise(noise, torch.tensor([100, 700]), conditioning)


def weights_of(model: Model, target: str = "denoiser") -> dict[str, Tensor]:
    return model.networks[target].state_dict(keep_vars=True)


@every_kind
@pytest.mark.parametrize("target", ["denoiser", "text"])
def test_inject_and_eject(kind: LoraVariant, target: str, model: Model) -> None:
    def modules_of() -> list[tuple[str, nn.Module]]:
        return list(model.networks[target].named_modules())

    before, modules = weights_of(model, target), modules_of()
    values = {name: tensor.clone() for name, tensor in before.items()}
    plain = denoiser_output(model)
    fresh = LoraAdapter.of(model, target, LoraConfig(kind, 2, 3.0, "all"), 0)
    assert torch.allclose(denoiser_output(model, fresh), plain, atol=1e-5)
    adapter = trained_adapter(model, kind, target=target, layers="all")
    changed = denoiser_output(model, adapter)
    assert (changed - plain).abs().max() > 1e-3
    assert torch.allclose(denoiser_output(model, restored(adapter, model)), changed, atol=1e-5)
    assert torch.equal(denoiser_output(model), plain)
    assert modules_of() == modules
    after = weights_of(model, target)
    assert list(after) == list(before)
    assert all(after[name] is tensor for name, tensor in before.items())
    assert all(torch.equal(values[name], tensor) for name, tensor in after.items())
    assert adapter.changes_conditioning == (target == "text")


@pytest.mark.long
@every_kind
def test_outputs_equal_those_of_peft(kind: LoraVariant, nano: Path, model: Model) -> None:
    adapter = trained_adapter(model, kind, layers="all")
    pinxit_output = denoiser_output(model, adapter)
    other = open_base(nano)
    config = CONFIGS[kind](2, 2 if kind == "lokr" else 3)
    config.target_modules = list(adapter.layers)
    network = peft.inject_adapter_in_model(config, other.networks["denoiser"])
    assert torch.allclose(denoiser_output(other), denoiser_output(model), atol=1e-5)
    peft_tensors = peft.get_peft_model_state_dict(network)
    for name, tensor in adapter.part().tensors.items():
        if not name.endswith(".alpha"):
            peft_tensors[name] = tensor.reshape(peft_tensors[name].shape)
    peft.set_peft_model_state_dict(network, peft_tensors)
    assert torch.allclose(denoiser_output(other), pinxit_output, atol=1e-5)


@every_kind
def test_strength(kind: LoraVariant, model: Model) -> None:
    adapter = trained_adapter(model, kind)
    plain, full = denoiser_output(model), denoiser_output(model, adapter)
    assert torch.equal(denoiser_output(model, restored(adapter, model, 0)), plain)
    distances = [
        float((denoiser_output(model, restored(adapter, model, strength)) - plain).norm())
        for strength in (0.25, 0.5, 1.0)
    ]
    assert 0 < distances[0] < distances[1] < distances[2]
    assert distances[2] == pytest.approx(float((full - plain).norm()), rel=1e-4)


def test_a_strength_for_each_group_of_layers(model: Model) -> None:
    adapter = restored(trained_adapter(model, "lora", layers="all"), model)
    originals = {name: tensor.clone() for name, tensor in weights_of(model).items()}

    def changes(strength: Any) -> dict[str, Tensor]:
        adapter.strength = strength
        with applied(model, [adapter]):
            return {n: tensor - originals[n] for n, tensor in weights_of(model).items()}

    full, groups = changes(1.0), changes((("attention", 0.5), ("text", 0.0)))
    scales = {name: 0.5 if ".attn" in name else 1.0 for name in full}
    assert any(full[name].any() for name in full if ".attn" in name)
    for name, change in groups.items():
        assert torch.allclose(change, scales[name] * full[name], atol=1e-6)
    assert not any(change.any() for change in changes((("denoiser", 0.0),)).values())
    unknown = concept(adapter.part(), "<a>").with_strength((("atention", 1.0),))
    with pytest.raises(ConceptError, match="no group of layers `atention`"):
        unknown.adapters(model)


@pytest.mark.long
def test_two_adapters_add_up_in_any_order(model: Model) -> None:
    one, two = trained_adapter(model, "lora", 1), trained_adapter(model, "loha", 2)
    originals = {name: tensor.clone() for name, tensor in weights_of(model).items()}

    def added(*adapters: LoraAdapter) -> dict[str, Tensor]:
        with applied(model, adapters):
            return {name: tensor - originals[name] for name, tensor in weights_of(model).items()}

    separate = added(restored(one, model, 0.5)), added(restored(two, model))
    both = added(restored(one, model, 0.5), restored(two, model))
    assert any(change.abs().max() > 1e-3 for change in both.values())
    for name, change in both.items():
        assert torch.allclose(change, separate[0][name] + separate[1][name], atol=1e-6)
    merged = denoiser_output(model, restored(one, model), restored(two, model))
    for order in ((one, two), (two, one), (one, restored(two, model)), (restored(two, model), one)):
        assert torch.allclose(denoiser_output(model, *order), merged, atol=1e-5)
    assert torch.equal(weights_of(model)["conv_in.weight"], originals["conv_in.weight"])


def test_full_weights_are_applied_before_loras(model: Model) -> None:
    tuned = FullWeightsAdapter.of(model, "denoiser")
    with torch.no_grad():
        for weight in tuned.weights().values():
            weight.mul_(0.9)
    adapter = trained_adapter(model, "lora")
    expected = denoiser_output(model, tuned, adapter)
    result = combined_adapters(
        [concept(adapter.part(), "<a>"), concept(tuned.part(), "<b>")], model
    )
    assert torch.allclose(denoiser_output(model, *result), expected, atol=1e-5)
    assert not torch.allclose(denoiser_output(model, *reversed(result)), expected, atol=1e-3)


def concept(part: Part, token: str) -> Concept:
    return Concept((part,), Provenance(token, "toy", "", "", "", 1, {}, ""))


@every_kind
def test_the_tensors_of_a_part(kind: LoraVariant, model: Model) -> None:
    adapter = trained_adapter(model, kind)
    part = adapter.part()
    assert (part.network, part.variant) == ("denoiser", kind)
    layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    names = {name.removeprefix(f"{layer}.") for name in part.tensors if name.startswith(layer)}
    factors = {f"hada_w{n}_{side}" for n in (1, 2) for side in "ab"}
    lora = {"lora_A.weight", "lora_B.weight", "alpha"}
    assert (
        names
        == {
            "lora": lora,
            "dora": lora | {"lora_magnitude_vector"},
            "loha": factors | {"alpha"},
            "lokr": {"lokr_w1", "lokr_w2_a", "lokr_w2_b", "alpha"},
            "oft": {"oft_R.weight"},
        }[kind]
    )
    if kind != "oft":
        assert part.tensors[f"{layer}.alpha"].shape == ()
    if kind == "dora":
        assert part.tensors[f"{layer}.lora_magnitude_vector"].shape == (16,)
    # peft keeps the magnitudes of convolutions in four dimensions.
    part = trained_adapter(model, kind, layers="transformer").part()
    assert {t.ndim for n, t in part.tensors.items() if n.endswith("vector")} <= {1}
    again = LoraAdapter.restore(part, model).part()
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in part.tensors.items())
    assert again.tensors.keys() == part.tensors.keys()


def test_ranks_and_alphas_are_read_layer_by_layer(model: Model) -> None:
    full = trained_adapter(model, "lora")
    first_layer, other = list(full.layers)[:2]
    tensors = {
        name: t for name, t in full.part().tensors.items() if name.startswith((first_layer, other))
    }
    tensors[f"{first_layer}.lora_A.weight"] = tensors[f"{first_layer}.lora_A.weight"][:1]
    tensors[f"{first_layer}.lora_B.weight"] = tensors[f"{first_layer}.lora_B.weight"][:, :1]
    del tensors[f"{other}.alpha"]
    part = LoraPart.from_stored({"target": "denoiser", "kind": "lora"}, tensors)
    originals = {name: tensor.clone() for name, tensor in weights_of(model).items()}
    with applied(model, [LoraAdapter.restore(part, model)]):
        for layer, scale in ((first_layer, 3.0), (other, 1.0)):
            down, up = (tensors[f"{layer}.lora_{side}.weight"].flatten(1) for side in "AB")
            change = weights_of(model)[f"{layer}.weight"] - originals[f"{layer}.weight"]
            assert torch.allclose(change.flatten(1), scale * up @ down, atol=1e-6)


def test_only_the_seed_determines_the_initial_weights(model: Model) -> None:
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    one, same, other = (
        LoraAdapter.of(model, "denoiser", LoraConfig("loha", 2, 2.0, "attention"), seed)
        for seed in (3, 3, 4)
    )
    with applied(model, [one]):
        pass
    denoiser_output(model, restored(one, model))
    assert torch.equal(torch.rand(4), expected)
    assert all(torch.equal(same.weights()[name], w) for name, w in one.weights().items())
    assert any(not torch.equal(other.weights()[name], w) for name, w in one.weights().items())


@pytest.mark.long
@every_kind
@pytest.mark.parametrize("autocast", [False, True])
def test_on_a_frozen_base_in_bf16(
    kind: LoraVariant, autocast: bool, bases: Callable[[str], Path]
) -> None:
    """Each layer returns bf16, and the adapter weights get fp32 gradients."""
    half = open_base(bases("stable-diffusion-1"), precision="bf16")
    adapter = trained_adapter(half, kind, layers="all")
    frozen = weights_of(half)
    with applied(half, [adapter]), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        network = half.networks["denoiser"]
        for name in list(adapter.layers)[::7]:
            made: Any = network.get_submodule(name)
            weight = made.get_base_layer().weight
            sides = (2, 4, 4) if weight.ndim == 4 else (3,)
            shape = (
                (sides[0], weight.shape[1], *sides[1:])
                if weight.ndim == 4
                else (3, weight.shape[1])
            )
            result = made(torch.ones(shape, dtype=torch.bfloat16))
            assert result.dtype == torch.bfloat16
            result.float().square().sum().backward()
            for originals in adapter.layers[name].values():
                assert originals.dtype == originals.grad.dtype == torch.float32
                assert originals.grad.abs().max() > 0
    assert {tensor.dtype for tensor in frozen.values()} == {torch.bfloat16}
    changed, merged = denoiser_output(half, adapter), denoiser_output(half, restored(adapter, half))
    assert (changed - merged).norm() < 0.1 * (changed - denoiser_output(half)).norm()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: renamed(t, "gone"), "has no such layer"),
        (lambda t: renamed(t, "conv_norm_out"), "has no such layer"),
        (
            lambda t: {f"{LAYER}.lora_A.weight": t[f"{LAYER}.lora_A.weight"]},
            "no complete set of weights: lora_A.weight",
        ),
        (lambda _: {f"{LAYER}.alpha": torch.tensor(1.0)}, "no complete set of weights: none"),
        (
            lambda t: {**t, f"{LAYER}.lora_A.weight": torch.ones(2, 99)},
            r"shape \(16, 32\) in .*\(2, 99",
        ),
        (
            lambda t: {**t, f"{LAYER}.lora_B.weight": torch.ones(99, 2)},
            r"shape \(16, 32\) in .*\(99, 2",
        ),
        (
            lambda t: {**t, f"{LAYER}.lora_B.weight": torch.ones(1, 2)},
            r"shape \(16, 32\) in .*\(1, 2",
        ),
        (lambda t: {**t, f"{LAYER}.lora_A.weight": torch.tensor(1.0)}, "do not match: .*A.weight"),
        (lambda t: {**t, f"{LAYER}.lora_A.weight": torch.ones(3, 32)}, "do not match: .*A.weight"),
        (lambda t: {**t, f"{LAYER}.lora_C.weight": torch.ones(1)}, "belongs to no kind of adapter"),
        (lambda t: {**t, f"{LAYER}.alpha": torch.ones(2)}, "do not match: alpha"),
    ],
)
def test_tensors_that_do_not_fit(change: Any, message: str, model: Model) -> None:
    tensors = {
        n: t
        for n, t in trained_adapter(model, "lora").part().tensors.items()
        if n.startswith(LAYER)
    }
    settings = {"target": "denoiser", "kind": "lora"}
    with pytest.raises(ConceptError, match=message):
        LoraAdapter.restore(LoraPart.from_stored(settings, change(tensors)), model)


def renamed(tensors: dict[str, Tensor], layer: str) -> dict[str, Tensor]:
    return {name.replace(LAYER, layer): tensor for name, tensor in tensors.items()}


LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": "text_9", "kind": "lora"}, "changes the network `text_9`"),
        ({"target": "denoiser", "kind": "lorra"}, "unknown adapter kind `lorra`"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, str], message: str, model: Model) -> None:
    with pytest.raises(ConceptError, match=message):
        LoraAdapter.restore(LoraPart.from_stored(settings, {}), model)


@every_kind
def test_shapes_of_another_base(kind: LoraVariant, model: Model) -> None:
    tensors = dict(trained_adapter(model, kind).part().tensors)
    name = next(n for n in tensors if n.startswith(LAYER) and not n.endswith("alpha"))
    tensors[name] = torch.ones(7, 5)
    settings = {"target": "denoiser", "kind": kind}
    with pytest.raises(ConceptError, match=r"shape \(16, 32\) in|do not match"):
        LoraAdapter.restore(LoraPart.from_stored(settings, tensors), model)


def test_groups_of_layers(model: Model) -> None:
    def layers(group: Any, kind: LoraVariant = "lora", target: str = "denoiser") -> set[str]:
        return set(LoraAdapter.of(model, target, LoraConfig(kind, 1, 1.0, group), 0).layers)

    cross, attention, blocks, everything = map(
        layers, ("cross-attention", "attention", "transformer", "all")
    )
    assert cross < attention < blocks < everything
    assert all(".attn2." in name for name in cross)
    assert {name.partition(".attn1.")[2] for name in attention - cross} == {
        *("to_q", "to_k", "to_v", "to_out.0")
    }
    assert {"ff", "proj_in", "proj_out"} == {
        word
        for name in blocks - attention
        for word in name.split(".")
        if word in ("ff", "proj_in", "proj_out")
    }
    assert any(name.endswith("resnets.0.conv1") for name in everything)
    assert not any(name.endswith("conv1") for name in layers("all", "oft"))
    assert layers("attention", target="text") == {
        f"encoder.layers.{at}.self_attn.{side}_proj"
        for at in (0, 1)
        for side in ("q", "k", "v", "out")
    }


def test_layer_names_have_no_text_encoder_prefix(opened: Callable[[str], Model]) -> None:
    model = opened("stable-diffusion-xl")
    adapter = trained_adapter(model, "lora", target="text_2")
    assert all(name.startswith("encoder.layers.") for name in adapter.layers)
    plain = model.condition(["a dog"]).states
    with applied(model, [restored(adapter, model)]):
        assert not torch.allclose(model.condition(["a dog"]).states, plain, atol=1e-3)
    assert torch.equal(model.condition(["a dog"]).states, plain)


def test_an_error_during_inject_restores_the_base(model: Model) -> None:
    adapter = restored(trained_adapter(model, "lora"), model)
    before = weights_of(model)
    adapter.layers["gone"] = {}
    with pytest.raises(KeyError), applied(model, [adapter]):
        raise AssertionError
    assert all(tensor is before[name] for name, tensor in weights_of(model).items())


def test_parsing_of_strengths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for concept_inputs, path, strength in (
        ("a.safetensors", "a.safetensors", 1),
        ("a.safetensors:0.7", "a.safetensors", 0.7),
        ("runs/toy:-.5", "runs/toy", -0.5),
        ("a:b:2", "a:b", 2),
        ("a:1e-1", "a", 0.1),
        (r"C:\\toys\\a.safetensors", r"C:\\toys\\a.safetensors", 1),
        (r"C:\\toys\\a.safetensors:0.5", r"C:\\toys\\a.safetensors", 0.5),
        ("a:strong", "a:strong", 1),
        ("a:attention=.5,all=1", "a", (("attention", 0.5), ("all", 1.0))),
    ):
        result = ConceptReference.parse(concept_inputs)
        assert (str(result.path), result.strength) == (path, strength)
        assert ConceptReference.parse(str(result)) == result
    Path("toy:0.5").mkdir()
    assert ConceptReference.parse("toy:0.5") == ConceptReference(Path("toy:0.5"))
    assert ConceptReference.parse("toy:0.5:0.7") == ConceptReference(Path("toy:0.5"), 0.7)
    Path("toy:0.5").rmdir()
    assert ConceptReference.parse(str(ConceptReference(Path("toy:0.5")))) == ConceptReference(
        Path("toy:0.5")
    )
    with pytest.raises(RequestError, match="not a finite number"):
        ConceptReference.parse("a:1e999")


@pytest.mark.long
def test_a_request_keeps_strengths(model: Model, tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    write_concept(concept(trained_adapter(model, "lora").part(), "<a>"), file)
    drawn = [
        generate_images(model, "a dog", [concept_inputs])[0]
        for concept_inputs in (
            f"{file}:0.5",
            read_concept(file).with_strength(0.5),
            file,
            f"{file}:0",
        )
    ]
    assert torch.equal(drawn[0].latents, drawn[1].latents)
    assert not torch.allclose(drawn[0].latents, drawn[2].latents, atol=1e-3)
    assert torch.equal(drawn[3].latents, generate_images(model, "a dog")[0].latents)
    drawn[0].save(tmp_path / "a.png")
    again = GenerationRequest.from_png(tmp_path / "a.png")
    assert again == drawn[0].request
    assert again.concepts == (ConceptReference(file, 0.5),)


def test_a_strength_needs_a_lora(model: Model) -> None:
    word = concept(EmbeddingAdapter.of(model, "<a>", "toy", 1).part(), "<a>")
    with pytest.raises(
        ConceptError, match=r"a strength \(`:0.7`\) works for LoRAs only; <a> has no LoRA"
    ):
        word.with_strength(0.7)
    tuned = concept(FullWeightsAdapter.of(model, "denoiser").part(), "<b>")
    with pytest.raises(ConceptError, match="has no LoRA"):
        combined_adapters([tuned.with_strength(0.5)], model)


@pytest.mark.long
@every_kind
def test_every_kind_trains_and_resumes(
    kind: LoraVariant, model: Model, pictures: Path, tmp_path: Path
) -> None:
    method = {"name": "lora", "adapter": kind, "prior_pictures": 0, "rank": 4, "layers": "all"}
    recipe = Recipe.model_validate(
        {
            **{"method": method, "pictures": pictures, "token": "<mytoy>", "class_noun": "toy"},
            **{"steps": 30, "batch_size": 4, "rate": 1e-2, "preview_every": 0},
        }
    )
    full = train_run(model, recipe, tmp_path / "whole")
    losses = [float(entry.losses[0]) for entry in full.state.steps]
    stopped = Run.create(tmp_path / "stopped", recipe)
    with closing(stopped.train(model)) as events:
        next(event for event in events if isinstance(event, StepResult) and event.number == 3)
    for _ in (again := Run.open(stopped.folder)).train(model):
        pass
    for pinxit_output, others in zip(full.concept.parts, again.concept.parts, strict=True):
        assert all(
            torch.equal(others.tensors[name], t) for name, t in pinxit_output.tensors.items()
        )
    plain = TrainingSession(model, [ConceptTrainer(model, full.plan, read_images(pictures))])
    with torch.no_grad():
        before = errors(plain, ())
        assert errors(plain, full.concept.adapters(model)) < before
    assert losses == [float(entry.losses[0]) for entry in again.state.steps]


def errors(session: TrainingSession, adapters: Sequence[Adapter]) -> float:
    """The loss on samples that no training step used."""
    with applied(session.model, [*session.adapters[:1], *adapters[1:]]):
        tell = session.conditioner()
        return sum(
            float(denoising_losses(session.model, part, tell).sum())
            for n in range(8)
            for part in session.batches(10_000 + n)
        )
