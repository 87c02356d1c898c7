# pyright: standard
"""Training that can stop at any moment: its whole state in one safetensors file."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

SAVE_EVERY = 60.0  # seconds


def halves(device: torch.device) -> torch.autocast:
    """Products in bfloat16 where the device has units for them; elsewhere that takes longer."""
    if device.type == "cpu":
        units: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict[str, object])()
        able = any(units.get(name) is True for name in ("amx_bf16", "avx512_bf16"))
        return torch.autocast("cpu", torch.bfloat16, enabled=able)
    return torch.autocast(device.type, torch.bfloat16)


class Orthogonal(torch.optim.Optimizer):
    """Muon (Jordan et al., 2024): momentum made orthogonal, for every matrix and kernel.

    Twice as fast per picture as Adam on the autoencoder; see docs/log.md.
    """

    def __init__(self, parameters: list[nn.Parameter], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Move each parameter along its orthogonalised momentum."""
        for group in self.param_groups:
            for p in group["params"]:
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                momentum.lerp_(p.grad, 0.05)
                flat = p.grad.lerp(momentum, 0.95).flatten(1)
                move = newton_schulz(flat) * (0.2 * max(flat.shape) ** 0.5)
                p.mul_(1 - 0.01 * group["lr"]).add_(move.view_as(p), alpha=-group["lr"])


def newton_schulz(matrix: Tensor) -> Tensor:
    """The nearest orthogonal matrix, roughly: five quintic Newton-Schulz iterations."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.mT if tall else matrix) / (matrix.norm() + 1e-7)
    for _ in range(5):
        s = x @ x.mT
        x = 3.4445 * x + (-4.7750 * s + 2.0315 * s @ s) @ x
    return x.mT if tall else x


@dataclass
class Trainer:
    """A network in training: its weights, their moving average, the optimizer's moments, the step.

    The learning rate rises over `warm` steps, holds, and falls in a line to a fiftieth over the
    last third; so a run can be made longer while it holds.
    """

    path: Path
    network: nn.Module
    rate: float
    steps: int
    warm: int = 100
    decay: float = 0.999
    orthogonal: bool = False
    step: int = 0

    def __post_init__(self) -> None:
        self.trained = {n: p for n, p in self.network.named_parameters() if p.requires_grad}
        self.average = {n: p.detach().clone() for n, p in self.trained.items()}
        many, few = ([p for p in self.trained.values() if (p.ndim > 1) == w] for w in (True, False))
        betas = (0.9, 0.99)
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(few, self.rate, betas, weight_decay=0.0, fused=True),
            Orthogonal(many, self.rate)
            if self.orthogonal
            else torch.optim.AdamW(many, self.rate, betas, weight_decay=0.01, fused=True),
        ]
        if self.path.exists():
            self._load()

    def rate_at(self, step: int) -> float:
        """The learning rate of a step."""
        fall = min(1.0, max(0.02, 3 * (1 - step / self.steps)))
        return self.rate * fall * min(1.0, (step + 1) / self.warm)

    def chunk(self, seconds: float, last: int | None = None) -> Iterator[int]:
        """Yield step numbers until the last step or the end of the time; saves at intervals."""
        started = saved = time.monotonic()
        last = self.steps if last is None else last
        try:
            while self.step < last and time.monotonic() - started < seconds:
                yield self.step
                self.step += 1
                if time.monotonic() - saved > SAVE_EVERY:
                    self.save()
                    saved = time.monotonic()
        finally:
            self.save()

    def learn(self, loss: Tensor) -> None:
        """One optimizer step on a loss, with the gradient's norm held at 1."""
        for optimizer in self.optimizers:
            optimizer.param_groups[0]["lr"] = self.rate_at(self.step)
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained.values(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        keep = min(self.decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            names = list(self.trained)
            torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
                [self.average[n] for n in names], [self.trained[n] for n in names], 1 - keep
            )

    def averaged(self) -> nn.Module:
        """The network with its averaged weights (in place)."""
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(self.average[name])
        return self.network

    def save(self) -> None:
        """Write the state to another file and rename it into place."""
        tensors = {f"network.{n}": p.detach() for n, p in self.trained.items()}
        tensors |= {f"average.{n}": p for n, p in self.average.items()}
        for name, parameter in self.trained.items():
            for optimizer in self.optimizers:
                for key, value in optimizer.state.get(parameter, {}).items():
                    tensors[f"optimizer.{name}.{key}"] = value
        self.path.parent.mkdir(parents=True, exist_ok=True)
        draft = self.path.with_suffix(f".{os.getpid()}.part")
        tensors = {n: t.detach().contiguous() for n, t in tensors.items()}
        save_file(tensors, draft, {"step": str(self.step)})
        draft.replace(self.path)

    def _load(self) -> None:
        device = str(next(iter(self.trained.values())).device)
        with safe_open(self.path, "pt", device=device) as file, torch.no_grad():
            self.step = int((file.metadata() or {})["step"])
            for name, parameter in self.trained.items():
                parameter.copy_(file.get_tensor(f"network.{name}"))
                self.average[name].copy_(file.get_tensor(f"average.{name}"))
            for key in list(file.keys()):
                kind, name = key.split(".", 1)
                name, _, moment = name.rpartition(".")
                if kind == "optimizer" and moment in ("step", "exp_avg", "exp_avg_sq", "momentum"):
                    moments = self._optimizer_of(self.trained[name]).state[self.trained[name]]
                    moments[moment] = file.get_tensor(key)

    def _optimizer_of(self, parameter: nn.Parameter) -> torch.optim.Optimizer:
        return self.optimizers[int(parameter.ndim > 1)]
