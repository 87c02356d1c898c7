"""The docs are true: commands are understood or run, Python runs, links and names exist."""

import pydoc
import re
import shlex
from pathlib import Path

import pytest

from lab import doc_tables, reference
from pinxit.cli import app, main
from pinxit.pocket import gallery

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PACKAGE = ROOT / "src" / "pinxit"
MODULES = sorted(PACKAGE.rglob("*.py"))
ARCHITECTURE = ROOT / "docs" / "architecture.md"
GUIDES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("guides/*.md"))]
TERMS = (
    "learning rate, prior preservation, class images, LoRA rank, embedding norm, guidance scale, "
    "sampler, denoising strength, early stopping, checkpoint, gradient checkpointing, offloading, "
    "kohya, diffusers, ControlNet, bf16"
)
# Shell blocks, and rows of tables that end with a command.
_SPANS = re.compile(r"^```(?:sh|console)\n(?:.*?)^```|`pinxit [^`]+` \|$", re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[str]:
    """The pinxit commands of a page, in their order."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    spans = _SPANS.findall(text)
    lines = (line for span in spans for line in span.splitlines())
    lines = (line.strip("`| ").removeprefix("$ ").partition(" #")[0].strip() for line in lines)
    return [line for line in lines if line.startswith(("pinxit ", "python -m pinxit"))]


TYPED = [
    pytest.param(line, id=f"{page.stem}: {line}")
    for page in GUIDES
    for line in commands(page)
    if line.startswith("pinxit ")
]


@pytest.mark.parametrize("line", TYPED)
def test_every_command_of_readme_and_guides_is_understood(line: str) -> None:
    words = shlex.split(line)[1:]
    if "--help" in words:
        return  # test_help.py
    app.parse_args(words, exit_on_error=False, print_error=False)


@pytest.mark.long
def test_the_readme_runs_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All rows in one folder, as written but for one step, one image and no previews each."""
    shorter = {
        "train": ["--steps", "1", "--preview-every", "0"],
        "--recipe": [],
        "train-many": ["--steps", "1", "--preview-every", "0"],
        "dreambooth": ["--class-images", "1"],
        "lora": ["--class-images", "1"],
        "generate": ["--steps", "1"],
        "transfer": ["--steps", "2"],
        "evaluate": ["--steps", "1", "--num-images", "1"],
    }
    (tmp_path / "examples").mkdir()
    for example in filter(Path.is_file, (ROOT / "examples").iterdir()):
        text = re.sub(rb"(steps|class_images) = \d+", rb"\1 = 1", example.read_bytes())
        (tmp_path / "examples" / example.name).write_bytes(text)
    monkeypatch.chdir(tmp_path)
    lines = [line for line in commands(ROOT / "README.md") if line != "pinxit demo"]
    assert len(lines) >= 20
    for line in lines:
        words = shlex.split(line)
        if words[0] == "python":
            gallery.write(Path(words[-1]))
            continue
        if "--resume" in words:
            words[words.index("--steps") + 1] = "2"
        elif "--help" not in words and "--recipe" not in words:
            words += [option for key in words[1:3] for option in shorter.get(key, ())]
        assert main(words[1:]) == 0, line


@pytest.mark.long
@pytest.mark.parametrize("page", ["resume-and-early-stopping", "training-images"])
def test_every_command_of_a_guide_runs(
    page: str, nano: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pictures.rename("my-toy")
    begin = "train textual-inversion my-toy --token <t> --class-noun toy --out runs/toy --steps 1"
    assert main([*begin.split(), "--preview-every", "0", "--base", str(nano)]) == 0
    lines = [
        line.replace("FOLDER", str(nano))
        for line in commands(ROOT / "docs" / "guides" / f"{page}.md")
        if "--resume" in line or not line.startswith("pinxit train ")
    ]
    assert len(lines) >= 2
    for line in lines:
        words = re.sub(r"--steps \d+", "--steps 2", line)
        assert main(shlex.split(words)[1:]) == 0, line


@pytest.mark.parametrize("kind", ["families", "formats"])
def test_tables_of_plug_ins_agree_with_the_plug_ins(kind: str) -> None:
    written = re.search(rf"<!-- figures: {kind} -->\n(.*?)<!-- end -->", README, re.DOTALL)
    assert written
    assert written[1] == doc_tables.BLOCKS[kind](), "run python -m lab.doc_tables"


def test_the_reference_agrees_with_the_options() -> None:
    written = {path.name: path.read_text("utf-8") for path in reference.FOLDER.glob("*.md")}
    assert written == reference.pages(), "run python -m lab.reference"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_make_target_that_is_named_exists(page: Path) -> None:
    known = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = re.findall(r"(?:^|`)make ([a-z]+)", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(named) <= set(known)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_have_existing_targets(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


def test_every_page_is_in_the_index() -> None:
    index = ROOT / "docs" / "README.md"
    links = re.findall(r"\]\(([^)#\s]+)", index.read_text(encoding="utf-8"))
    linked = {(index.parent / link).resolve() for link in links}
    pages = {page for page in (ROOT / "docs").rglob("*.md") if page != index}
    unlisted = {page for page in pages - linked if page.parent.name != "reference"}
    assert unlisted == {ROOT / "docs" / "decisions" / "000-template.md"}


@pytest.mark.long
def test_the_readmes_python_runs(
    nano: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("PIL.Image.Image.show", lambda _: None)
    (tmp_path / "my-images").mkdir()
    pictures.rename(tmp_path / "my-images" / "subject")
    code = code.replace('"pocket"', repr(str(nano)))
    code = code.replace(
        'class_noun="dog"', f'class_noun="toy", base={str(nano)!r}, steps=2, score_previews=False'
    )
    names: dict[str, object] = {}
    exec(code, names)
    assert len(names["results"]) == 1  # pyright: ignore[reportArgumentType]
    assert (tmp_path / "runs" / "from-python" / "concept.safetensors").is_file()


def test_every_name_in_the_architecture_exists() -> None:
    """Paths inside the package or the repository, and dotted names inside the package."""
    names = re.findall(r"`([^`\s]+)`", ARCHITECTURE.read_text("utf-8"))
    assert len(names) > 50
    assert not [name for name in names if not _exists(name)]


def _exists(name: str) -> bool:
    if "/" in name or name.endswith((".py", ".toml")):
        return (PACKAGE / name).exists() or (ROOT / name).exists()
    if "." in name:
        return pydoc.locate(f"pinxit.{name}") is not None
    return any(re.search(rf"def {name}\(", path.read_text("utf-8")) for path in MODULES)


def test_the_architecture_fits_on_a_page() -> None:
    assert len(ARCHITECTURE.read_text("utf-8").splitlines()) <= 120


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_modules_that_are_named_exist(page: Path) -> None:
    """Apart from the commands of measurements, which are those of the measured commit."""
    lines = page.read_text(encoding="utf-8").splitlines()
    text = "\n".join(line for line in lines if not line.startswith("Measured by"))
    paths = re.findall(r"`((?:src|lab|tests|tools|gpu|examples|docs)/[\w./-]+)", text)
    modules = re.findall(r"python -m (lab[\w.]*|pinxit\.pocket[\w.]*)", text)
    missing = [path for path in paths if not (ROOT / path).exists()]
    missing += [module for module in modules if pydoc.locate(module) is None]
    assert not missing


@pytest.mark.parametrize("term", TERMS.split(", "))
def test_the_index_leads_from_a_term_of_the_field_to_a_page(term: str) -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    assert term.lower() in index.lower()
