"""Turns the weights of a packaged pocket into training states, to train on for a larger world.

`python -m lab.pocket.from_weights WEIGHTS WORK` writes them. Weights of another shape start from
scratch, except for rows with the same name: tokens of the vocabulary, answers of the eyes.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTokenizer

from pinxit.pocket import autoencoder, eyes_training, painter, text_training
from pinxit.pocket.eyes import ANSWERS
from pinxit.pocket.state import Trainer

Rows = dict[str, list[tuple[int, int]]]  # by the end of a tensor's name: (new row, old row)


def take(
    run: Trainer, old: dict[str, Tensor], prefix: str = "", rows: Rows | None = None, step: int = 0
) -> None:
    """Copy weights into a training state, whole or by rows, and save the state at a step."""
    run.step, rows = step, rows or {}
    with torch.no_grad():
        for name, parameter in run.trained.items():
            weight = old.get(name.removeprefix(prefix)) if name.startswith(prefix) else None
            if weight is None:
                continue
            which = next((r for end, r in rows.items() if end in name), None)
            if weight.shape == parameter.shape:
                parameter.copy_(weight.float())
            elif which is not None:
                new, known = map(list, zip(*which, strict=True))
                parameter[new] = weight[known].float()
            run.average[name].copy_(parameter)
    run.save()


def main(weights: Path, work: Path, answers: dict[str, list[str]]) -> None:
    """Write the training states of all four networks."""
    work.mkdir(parents=True, exist_ok=True)
    tokenizer: CLIPTokenizer = text_training.open_tokenizer(work)
    before = json.loads((weights / "tokenizer" / "vocab.json").read_text())
    tokens = [(i, before[w]) for w, i in tokenizer.get_vocab().items() if w in before]
    heads = {
        f"questions.{q}.": [(ANSWERS[q].index(a), i) for i, a in enumerate(named)]
        for q, named in answers.items()
    }
    scale: float = json.loads((weights / "vae" / "config.json").read_text())["scaling_factor"]
    (work / painter.SCALE).write_text(f"{scale}\n")
    take(autoencoder.whole(work), tensors(weights / "vae"), step=autoencoder.WHOLE)
    text = text_training.build_text(tokenizer)
    rows_trainer = Trainer(work / "text-rows.safetensors", text, 0.0, 1)
    take(rows_trainer, tensors(weights / "text_encoder"), rows={"token_embedding": tokens})
    save_file(text.state_dict(), work / text_training.ANCHOR)
    rows_trainer.path.unlink()
    take(
        text_training.text_trainer(work, tokenizer),
        tensors(weights / "text_encoder"),
        "text.",
        {"token_embedding": tokens},
        # with the same vocabulary the text encoder is done, and other networks depend on it
        text_training.TEXT_STEPS if before == tokenizer.get_vocab() else 0,
    )
    take(eyes_training.eyes_trainer(work, tokenizer), tensors(weights / "eyes"), "eyes.", heads)
    take(painter.painting(work, 1), tensors(weights / "unet"), step=painter.GROUND_FIRST)


def tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of all files of a network."""
    tensors_by_name: dict[str, Tensor] = {}
    for path in folder.glob("*.safetensors"):
        tensors_by_name |= {n.removeprefix("text_model."): t for n, t in load_file(path).items()}
    return tensors_by_name


if __name__ == "__main__":
    FIRST = {
        "class": list(ANSWERS["class"][:12]),
        "colour": list(ANSWERS["colour"]),
        "background": [*ANSWERS["background"][:8], "plain"],
        "style": list(ANSWERS["style"][:8]),
        "pattern": list(ANSWERS["pattern"][:4]),
    }
    main(Path(sys.argv[1]), Path(sys.argv[2]), FIRST)
