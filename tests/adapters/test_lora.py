"""LoRA and its kin: peft's numbers, the base untouched, strengths, and what does not fit."""

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from pinxit.adapters.adapter import Adapter, NewWord, Part, TunedWeights, injected
from pinxit.adapters.lora import PART, Form, Layers, LowRank
from pinxit.adapters.peft_layers import KINDS, Kind
from pinxit.concepts.concept import Concept, Pick, Provenance, combined
from pinxit.errors import ConceptError, RequestError
from pinxit.generation.generate import Request, paint
from pinxit.images.folder import read_pictures
from pinxit.models.model import Model, open_base
from pinxit.runs.run import Run, teach
from pinxit.training.recipe import Recipe
from pinxit.training.train import Lesson, Step, objective

every_kind = pytest.mark.parametrize("kind", KINDS)
CONFIGS: dict[str, Callable[..., Any]] = {
    "lora": lambda r, a: peft.LoraConfig(r=r, lora_alpha=a),
    "dora": lambda r, a: peft.LoraConfig(r=r, lora_alpha=a, use_dora=True),
    "loha": lambda r, a: peft.LoHaConfig(r=r, alpha=a),
    "lokr": lambda r, a: peft.LoKrConfig(r=r, alpha=a),
    "oft": lambda r, _: peft.OFTConfig(r=0, oft_block_size=r),
}


def learned(
    model: Model,
    kind: Kind,
    seed: int = 0,
    target: str = "denoiser",
    layers: Layers = "cross-attention",
) -> LowRank:
    """An adapter as if it had been trained: every weight is somewhere else than at the start."""
    # A LoKr whose factors are both whole has no rank, and counts as it is.
    alpha = 2.0 if kind == "lokr" else 3.0
    adapter = LowRank.of(model, target, Form(kind, 2, alpha, layers), seed)
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in adapter.weights().values():
            weight.add_(0.2 * torch.randn(weight.shape, generator=draws))
    return adapter


def kept(adapter: Adapter, model: Model, strength: float = 1.0) -> LowRank:
    """The same from its part, as it is painted with."""
    again = LowRank.restore(adapter.part(), model)
    again.strength = strength
    return again


def answer(model: Model, *adapters: Adapter) -> Tensor:
    """What the denoiser says of the same noise each time."""
    draws = torch.Generator().manual_seed(1)
    side = model.picture_size // model.factor
    noise = torch.randn(2, model.latent_channels, side, side, generator=draws)
    with torch.no_grad(), injected(model, adapters):
        told = model.condition(["a dog", "a red toy on the beach"])
        return model.denoise(noise, torch.tensor([100, 700]), told)


def weights_of(model: Model, target: str = "denoiser") -> dict[str, Tensor]:
    return model.networks[target].state_dict(keep_vars=True)


@every_kind
@pytest.mark.parametrize("target", ["denoiser", "text"])
def test_inject_and_eject(kind: Kind, target: str, model: Model) -> None:
    def tree() -> list[tuple[str, nn.Module]]:
        return list(model.networks[target].named_modules())

    before, modules = weights_of(model, target), tree()
    values = {name: tensor.clone() for name, tensor in before.items()}
    plain = answer(model)
    fresh = LowRank.of(model, target, Form(kind, 2, 3.0, "all"), 0)
    assert torch.allclose(answer(model, fresh), plain, atol=1e-5)
    adapter = learned(model, kind, target=target, layers="all")
    changed = answer(model, adapter)
    assert (changed - plain).abs().max() > 1e-3
    assert torch.allclose(answer(model, kept(adapter, model)), changed, atol=1e-5)
    assert torch.equal(answer(model), plain)
    assert tree() == modules
    after = weights_of(model, target)
    assert list(after) == list(before)
    assert all(after[name] is tensor for name, tensor in before.items())
    assert all(torch.equal(values[name], tensor) for name, tensor in after.items())
    assert adapter.touches_text == (target == "text")


@pytest.mark.long
@every_kind
def test_it_is_what_peft_computes(kind: Kind, nano: Path, model: Model) -> None:
    adapter = learned(model, kind, layers="all")
    ours = answer(model, adapter)
    other = open_base(nano)
    config = CONFIGS[kind](2, 2 if kind == "lokr" else 3)
    config.target_modules = list(adapter.layers)
    network = peft.inject_adapter_in_model(config, other.networks["denoiser"])
    assert torch.allclose(answer(other), answer(model), atol=1e-5)
    theirs = peft.get_peft_model_state_dict(network)
    for name, tensor in adapter.part().tensors.items():
        if not name.endswith(".alpha"):
            theirs[name] = tensor.reshape(theirs[name].shape)
    peft.set_peft_model_state_dict(network, theirs)
    assert torch.allclose(answer(other), ours, atol=1e-5)


@every_kind
def test_strength(kind: Kind, model: Model) -> None:
    adapter = learned(model, kind)
    plain, whole = answer(model), answer(model, adapter)
    assert torch.equal(answer(model, kept(adapter, model, 0)), plain)
    moved = [
        float((answer(model, kept(adapter, model, strength)) - plain).norm())
        for strength in (0.25, 0.5, 1.0)
    ]
    assert 0 < moved[0] < moved[1] < moved[2]
    assert moved[2] == pytest.approx(float((whole - plain).norm()), rel=1e-4)


@pytest.mark.long
def test_two_together_add_up_and_other_kinds_nest(model: Model) -> None:
    one, two = learned(model, "lora", 1), learned(model, "loha", 2)
    own = {name: tensor.clone() for name, tensor in weights_of(model).items()}

    def added(*adapters: LowRank) -> dict[str, Tensor]:
        with injected(model, adapters):
            return {name: tensor - own[name] for name, tensor in weights_of(model).items()}

    alone = added(kept(one, model, 0.5)), added(kept(two, model))
    both = added(kept(one, model, 0.5), kept(two, model))
    assert any(change.abs().max() > 1e-3 for change in both.values())
    for name, change in both.items():
        assert torch.allclose(change, alone[0][name] + alone[1][name], atol=1e-6)
    merged = answer(model, kept(one, model), kept(two, model))
    for order in ((one, two), (two, one), (one, kept(two, model)), (kept(two, model), one)):
        assert torch.allclose(answer(model, *order), merged, atol=1e-5)
    assert torch.equal(weights_of(model)["conv_in.weight"], own["conv_in.weight"])


def test_weights_that_replace_a_network_go_in_first(model: Model) -> None:
    tuned = TunedWeights.of(model, "denoiser")
    with torch.no_grad():
        for weight in tuned.weights().values():
            weight.mul_(0.9)
    adapter = learned(model, "lora")
    expected = answer(model, tuned, adapter)
    found = combined([concept(adapter.part(), "<a>"), concept(tuned.part(), "<b>")], model)
    assert torch.allclose(answer(model, *found), expected, atol=1e-5)
    assert not torch.allclose(answer(model, *reversed(found)), expected, atol=1e-3)


def concept(part: Part, token: str) -> Concept:
    return Concept((part,), Provenance(token, "toy", "", "", "", 1, {}, ""))


@every_kind
def test_a_part_is_what_the_seam_says(kind: Kind, model: Model) -> None:
    adapter = learned(model, kind)
    part = adapter.part()
    assert (part.kind, part.settings) == (PART, {"target": "denoiser", "kind": kind})
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
    part = learned(model, kind, layers="transformer").part()
    assert {t.ndim for n, t in part.tensors.items() if n.endswith("vector")} <= {1}
    again = LowRank.restore(part, model).part()
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in part.tensors.items())
    assert again.tensors.keys() == part.tensors.keys()


def test_ranks_and_alphas_are_read_layer_by_layer(model: Model) -> None:
    whole = learned(model, "lora")
    some, other = list(whole.layers)[:2]
    tensors = {
        name: t for name, t in whole.part().tensors.items() if name.startswith((some, other))
    }
    tensors[f"{some}.lora_A.weight"] = tensors[f"{some}.lora_A.weight"][:1]
    tensors[f"{some}.lora_B.weight"] = tensors[f"{some}.lora_B.weight"][:, :1]
    del tensors[f"{other}.alpha"]
    part = Part(PART, {"target": "denoiser", "kind": "lora"}, tensors)
    own = {name: tensor.clone() for name, tensor in weights_of(model).items()}
    with injected(model, [LowRank.restore(part, model)]):
        for layer, scale in ((some, 3.0), (other, 1.0)):
            down, up = (tensors[f"{layer}.lora_{side}.weight"].flatten(1) for side in "AB")
            change = weights_of(model)[f"{layer}.weight"] - own[f"{layer}.weight"]
            assert torch.allclose(change.flatten(1), scale * up @ down, atol=1e-6)


def test_the_seed_decides_and_nothing_else_is_drawn(model: Model) -> None:
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    one, same, other = (
        LowRank.of(model, "denoiser", Form("loha", 2, 2.0, "attention"), seed) for seed in (3, 3, 4)
    )
    with injected(model, [one]):
        pass
    answer(model, kept(one, model))
    assert torch.equal(torch.rand(4), expected)
    assert all(torch.equal(same.weights()[name], w) for name, w in one.weights().items())
    assert any(not torch.equal(other.weights()[name], w) for name, w in one.weights().items())


@pytest.mark.long
@every_kind
@pytest.mark.parametrize("autocast", [False, True])
def test_beside_a_frozen_base_in_bf16(
    kind: Kind, autocast: bool, bases: Callable[[str], Path]
) -> None:
    """Each layer answers in bf16, and its own weights get whole gradients."""
    half = open_base(bases("stable-diffusion-1"), precision="bf16")
    adapter = learned(half, kind, layers="all")
    frozen = weights_of(half)
    with injected(half, [adapter]), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
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
            found = made(torch.ones(shape, dtype=torch.bfloat16))
            assert found.dtype == torch.bfloat16
            found.float().square().sum().backward()
            for own in adapter.layers[name].values():
                assert own.dtype == own.grad.dtype == torch.float32
                assert own.grad.abs().max() > 0
    assert {tensor.dtype for tensor in frozen.values()} == {torch.bfloat16}
    changed, merged = answer(half, adapter), answer(half, kept(adapter, half))
    assert (changed - merged).norm() < 0.1 * (changed - answer(half)).norm()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {"gone.lora_A.weight": t[f"{LAYER}.lora_A.weight"]}, "has no such layer"),
        (lambda _: {"conv_norm_out.lora_A.weight": torch.ones(1)}, "has no such layer"),
        (
            lambda t: {f"{LAYER}.lora_A.weight": t[f"{LAYER}.lora_A.weight"]},
            r"has lora_A.weight \(2, 32\) for",
        ),
        (lambda _: {f"{LAYER}.alpha": torch.tensor(1.0)}, "has nothing for it as lora"),
        (
            lambda t: {**t, f"{LAYER}.lora_A.weight": torch.ones(2, 99)},
            r"is \(16, 32\) in .*\(2, 99",
        ),
        (
            lambda t: {**t, f"{LAYER}.lora_B.weight": torch.ones(99, 2)},
            r"is \(16, 32\) in .*\(99, 2",
        ),
        (lambda t: {**t, f"{LAYER}.lora_B.weight": torch.ones(1, 2)}, r"is \(16, 32\) in .*\(1, 2"),
        (lambda t: {**t, f"{LAYER}.lora_A.weight": torch.tensor(1.0)}, r"is \(16, 32\) in"),
        (lambda t: {**t, f"{LAYER}.lora_C.weight": torch.ones(1)}, "is no adapter's"),
        (lambda t: {**t, f"{LAYER}.alpha": torch.ones(2)}, "is no adapter's"),
    ],
)
def test_what_does_not_fit(change: Any, message: str, model: Model) -> None:
    tensors = {
        n: t for n, t in learned(model, "lora").part().tensors.items() if n.startswith(LAYER)
    }
    part = Part(PART, {"target": "denoiser", "kind": "lora"}, change(tensors))
    with pytest.raises(ConceptError, match=message):
        LowRank.restore(part, model)


LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": "text_9", "kind": "lora"}, "changes the network `text_9`"),
        ({"target": "denoiser", "kind": "lorra"}, "no adapter is of the kind `lorra`"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, str], message: str, model: Model) -> None:
    with pytest.raises(ConceptError, match=message):
        LowRank.restore(Part(PART, settings, {}), model)


@every_kind
def test_shapes_of_another_base(kind: Kind, model: Model) -> None:
    tensors = dict(learned(model, kind).part().tensors)
    name = next(n for n in tensors if n.startswith(LAYER) and not n.endswith("alpha"))
    tensors[name] = torch.ones(7, 5)
    with pytest.raises(ConceptError, match=r"is \(16, 32\) in"):
        LowRank.restore(Part(PART, {"target": "denoiser", "kind": kind}, tensors), model)


def test_groups_of_layers(model: Model) -> None:
    def layers(group: Any, kind: Kind = "lora", target: str = "denoiser") -> set[str]:
        return set(LowRank.of(model, target, Form(kind, 1, 1.0, group), 0).layers)

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


def test_a_tower_with_a_prefix_is_named_without(opened: Callable[[str], Model]) -> None:
    model = opened("stable-diffusion-xl")
    adapter = learned(model, "lora", target="text_2")
    assert all(name.startswith("encoder.layers.") for name in adapter.layers)
    plain = model.condition(["a dog"]).states
    with injected(model, [kept(adapter, model)]):
        assert not torch.allclose(model.condition(["a dog"]).states, plain, atol=1e-3)
    assert torch.equal(model.condition(["a dog"]).states, plain)


def test_what_stops_half_way_leaves_the_base_as_it_was(model: Model) -> None:
    adapter = kept(learned(model, "lora"), model)
    before = weights_of(model)
    adapter.layers["gone"] = {}
    with pytest.raises(KeyError), injected(model, [adapter]):
        raise AssertionError
    assert all(tensor is before[name] for name, tensor in weights_of(model).items())


def test_strengths_are_written_after_a_colon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for given, path, strength in (
        ("a.safetensors", "a.safetensors", 1),
        ("a.safetensors:0.7", "a.safetensors", 0.7),
        ("runs/toy:-.5", "runs/toy", -0.5),
        ("a:b:2", "a:b", 2),
        ("a:1e-1", "a", 0.1),
        (r"C:\\toys\\a.safetensors", r"C:\\toys\\a.safetensors", 1),
        (r"C:\\toys\\a.safetensors:0.5", r"C:\\toys\\a.safetensors", 0.5),
        ("a:strong", "a:strong", 1),
    ):
        found = Pick.of(given)
        assert (str(found.path), found.strength) == (path, strength)
        assert Pick.of(str(found)) == found
    Path("toy:0.5").mkdir()
    assert Pick.of("toy:0.5") == Pick(Path("toy:0.5"))
    assert Pick.of("toy:0.5:0.7") == Pick(Path("toy:0.5"), 0.7)
    Path("toy:0.5").rmdir()
    assert Pick.of(str(Pick(Path("toy:0.5")))) == Pick(Path("toy:0.5"))
    with pytest.raises(RequestError, match="no strength"):
        Pick.of("a:1e999")


def test_a_request_keeps_strengths(model: Model, tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    concept(learned(model, "lora").part(), "<a>").save(file)
    drawn = [
        paint(model, "a dog", [given])[0]
        for given in (f"{file}:0.5", Concept.load(file).at(0.5), file, f"{file}:0")
    ]
    assert torch.equal(drawn[0].latents, drawn[1].latents)
    assert not torch.allclose(drawn[0].latents, drawn[2].latents, atol=1e-3)
    assert torch.equal(drawn[3].latents, paint(model, "a dog")[0].latents)
    drawn[0].save(tmp_path / "a.png")
    again = Request.from_png(tmp_path / "a.png")
    assert again == drawn[0].request
    assert again.concepts == (Pick(file, 0.5),)


def test_a_word_has_no_strength(model: Model) -> None:
    word = concept(NewWord.of(model, "<a>", "toy", 1).part(), "<a>")
    with pytest.raises(ConceptError, match=r"<a> cannot have the strength 0.7: it holds no LoRA"):
        paint(model, Request(prompt="<a>"), [word.at(0.7)])
    tuned = concept(TunedWeights.of(model, "denoiser").part(), "<b>")
    with pytest.raises(ConceptError, match="it holds no LoRA"):
        combined([tuned.at(0.5)], model)


@pytest.mark.long
@every_kind
def test_every_kind_learns_and_goes_on(
    kind: Kind, model: Model, pictures: Path, tmp_path: Path
) -> None:
    method = {"name": "lora", "adapter": kind, "prior_pictures": 0, "rank": 4, "layers": "all"}
    recipe = Recipe.model_validate(
        {
            **{"method": method, "pictures": pictures, "token": "<mytoy>", "class_noun": "toy"},
            **{"steps": 30, "batch_size": 4, "rate": 1e-2, "preview_every": 0},
        }
    )
    whole = teach(model, recipe, tmp_path / "whole")
    losses = [float(entry["losses"][0]) for entry in whole.journal()]
    stopped = Run.create(tmp_path / "stopped", recipe)
    with closing(stopped.learn(model)) as events:
        next(event for event in events if isinstance(event, Step) and event.number == 3)
    for _ in (again := Run.open(stopped.folder)).learn(model):
        pass
    for ours, others in zip(whole.concept.parts, again.concept.parts, strict=True):
        assert all(torch.equal(others.tensors[name], t) for name, t in ours.tensors.items())
    plain = Lesson.of(model, whole.recipe, read_pictures(pictures))
    with torch.no_grad():
        before = errors(plain, ())
        assert errors(plain, whole.concept.adapters(model)) < before
    assert losses == [float(entry["losses"][0]) for entry in again.journal()]


def errors(lesson: Lesson, adapters: Sequence[Adapter]) -> float:
    """The loss over samples that no step had."""
    with injected(lesson.model, [*lesson.adapters[:1], *adapters[1:]]):
        tell = lesson.tell()
        return sum(
            float(objective(lesson.model, part, tell).sum())
            for n in range(8)
            for part in lesson.batches(10_000 + n)
        )
