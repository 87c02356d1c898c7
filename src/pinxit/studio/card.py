"""The card of a concept: what it is, how it was trained, how good it is, and how to use it."""

from pinxit.studio.jobs import Job
from pinxit.studio.workspace import Workspace

_TITLES = {"class_noun": "what it shows", "kind": "kind", "base": "base model"}


def concept_card(workspace: Workspace, job: Job, file_name: str) -> str:
    """The card as Markdown, from the recipe and the log; no model file is opened."""
    token = workspace.token(job) or file_name
    lines = [f"# `{token}`", ""]
    recipe = job.options.get("recipe", {})
    if recipe:
        lines += [f"- {title}: {recipe[name]}" for name, title in _TITLES.items()]
        lines.append(f"- method: {recipe['method']['name']}")
    run = workspace.run(job) if job.kind == "train" else None
    if run:
        lines.append(f"- trained steps: {run.saved_step or 0}")
        lines += [f"- best step: {run.best_step}"] if run.best_step else []
        lines += [f"- {run.best.text}"] if run.best else []
    is_style = recipe.get("kind") == "style"
    prompt = f"a house in the style of {token}" if is_style else f"a photo of {token}"
    lines += [
        "",
        "## Use",
        "",
        f"`{file_name}` is the concept. With pinxit:",
        "",
        f'    pinxit generate "{prompt}" --concept {file_name}',
        "",
        "For other programs, convert it: `pinxit convert --help` lists the formats.",
        "",
        "Check that you have the rights to the training images before you share it.",
    ]
    return "\n".join(lines) + "\n"
