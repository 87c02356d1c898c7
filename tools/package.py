"""Build the sdist, the wheel from the sdist, and use the wheel in a clean environment.

The environment borrows the libraries of this one, so that nothing is downloaded; pinxit itself
comes from the wheel, and runs in an empty folder outside the repository.
"""

import os
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MAX_WHEEL_MB = 40
# A path in each archive, without the folder of the release in the sdist.
IN_WHEEL = (
    "pinxit/py.typed",
    "pinxit/gallery/subject/1.png",
    "pinxit/pocket/weights/model_index.json",
)
IN_SDIST = ("src/pinxit/py.typed", "notebooks/personalize.ipynb", "README.md", "Dockerfile")
COMMANDS = (
    "-m pinxit.pocket.gallery images",
    "-m pinxit train textual-inversion images/subject --token <t> --class-noun dog --steps 1 "
    "--preview-every 0 --out run",
    "-m pinxit generate <t> --concept run --steps 1 --num-images 1",
)


def main() -> int:
    """0 if the archives are complete, render on a package index, and work."""
    dist = ROOT / "dist"
    for old in dist.glob("pinxit-*"):
        old.unlink()
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(dist), str(ROOT))
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    run(sys.executable, "-m", "twine", "check", "--strict", str(wheel), str(sdist))
    problems = [*missing_files(wheel, sdist), *relative_links(wheel)]
    size = wheel.stat().st_size / 1e6
    if size > MAX_WHEEL_MB:
        problems.append(f"{wheel.name} has {size:.1f} MB, {MAX_WHEEL_MB} allowed")
    if not problems:
        use(wheel)
        print(f"package: {wheel.name} ({size:.1f} MB) works in a clean environment")
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def missing_files(wheel: Path, sdist: Path) -> list[str]:
    """Files that must be in the archives and are not."""
    wheel_names = set(zipfile.ZipFile(wheel).namelist())
    with tarfile.open(sdist) as archive:
        sdist_names = {name.partition("/")[2] for name in archive.getnames()}
    missing = [f"{wheel.name} has no {name}" for name in IN_WHEEL if name not in wheel_names]
    return missing + [f"{sdist.name} has no {name}" for name in IN_SDIST if name not in sdist_names]


def relative_links(wheel: Path) -> list[str]:
    """Links and images of the description that a package index could not follow."""
    from readme_renderer.markdown import render

    archive = zipfile.ZipFile(wheel)
    name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    headers, _, description = archive.read(name).decode().partition("\n\n")
    page = render(description)
    if not page:
        return ["the description cannot be rendered"]
    targets = [
        part.partition('"')[0] for key in ("href", "src") for part in page.split(f'{key}="')[1:]
    ]
    wrong = [target for target in targets if not target.startswith(("https://", "http://", "#"))]
    needed = [f"Project-URL: {name}," for name in ("Repository", "Documentation", "Changelog")]
    absent = [f"the metadata has no {line}" for line in needed if line not in headers]
    return [f"a relative link in the description: {target}" for target in wrong] + absent


def use(wheel: Path) -> None:
    """Install the wheel in a new environment and run commands in an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        environment = Path(folder) / "environment"
        venv.create(environment, with_pip=False)
        python = environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        paths = {"base": str(environment), "platbase": str(environment)}
        packages = Path(sysconfig.get_path("purelib", "venv", paths))
        target = ["--target", str(packages), "--no-deps", "--quiet"]
        run(sys.executable, "-m", "pip", "install", *target, str(wheel))
        # Lines of a .pth file come after the environment's own packages.
        (packages / "libraries.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
        work = Path(folder) / "work"
        work.mkdir()
        code = "import pinxit; print(pinxit.__file__, pinxit.__version__)"
        used = run(str(python), "-c", code, cwd=work)
        if str(packages.resolve()) not in str(Path(used.split()[0]).resolve()):
            raise SystemExit(f"not the installed package was used: {used}")
        for command in COMMANDS:
            run(str(python), *command.split(), cwd=work)
        if not list(work.glob("generated/*.png")):
            raise SystemExit("no image was generated")


def run(*command: str, cwd: Path | None = None) -> str:
    """The output of a command that must succeed, without this process's import paths."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{result.stdout}{result.stderr}")
    return result.stdout


if __name__ == "__main__":
    sys.exit(main())
