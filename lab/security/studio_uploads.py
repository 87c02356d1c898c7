"""Upload hostile files to a studio: archives and model files, and unusual and damaged images.

`python -m lab.security.studio_uploads [--models N]` prints figures as one line of JSON.
"""

import argparse
import itertools
import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from starlette.testclient import TestClient

from lab.images.odd_images import KINDS
from lab.security.hostile import LAYOUTS, called, gadgets, lies, text, tricks
from pinxit.studio.app import MAX_BODY_BYTES, create_app
from pinxit.studio.worker import Worker
from pinxit.studio.workspace import Workspace

# Generators with many files yield only every N-th one: a few hundred files of all kinds remain.
_EVERY = 40
_NAMES = ("../../escape.pt", "..\\..\\escape.pt", "/tmp/escape.pt", "a\0b.pt", "con.pt", "x" * 300)


def bombs(canary: Path) -> Iterator[tuple[str, bytes]]:
    """Model files that make the file `canary` when they are loaded without care."""
    command = f"touch {canary}"
    code = f"open({str(canary)!r}, 'w').close()"
    calls = {
        "os.system": called("os", "system", text(command)),
        "posix.system": called("posix", "system", text(command)),
        "subprocess.getoutput": called("subprocess", "getoutput", text(command)),
        "builtins.exec": called("builtins", "exec", text(code)),
        "builtins.eval": called("builtins", "eval", text(code)),
        "pathlib.Path.touch": called("pathlib", "Path.touch", text(str(canary))),
    }
    for name, body in calls.items():
        for layout in LAYOUTS:
            yield f"{name} as {layout.__name__}", layout(b"\x80\x02" + body + b".")


def model_files(canary: Path, count: int) -> list[tuple[str, bytes]]:
    """At least the bombs; then tricks, wrong sizes, and calls of the modules of exploits."""
    every = itertools.chain(bombs(canary), tricks(), lies(), gadgets(_EVERY))
    return list(itertools.islice(every, count))


def upload_all(folder: Path, models: int, images: int) -> Counter[str]:
    """Upload the files, let a worker inspect them, and count what happened."""
    workspace, canary, counts = Workspace(folder / "studio"), folder / "canary", Counter[str]()
    workspace.create()
    headers = {"authorization": f"Bearer {workspace.token_for('api')}"}
    app = create_app(workspace, 1)
    client = TestClient(app, "http://127.0.0.1:1", headers=headers, follow_redirects=False)
    for number, (_, content) in enumerate(model_files(canary, models)):
        name = _NAMES[number % 20] if number % 20 < len(_NAMES) else "concept.pt"
        answer = client.post("/files", files={"file": (name, content)})
        counts[f"model upload {answer.status_code}"] += 1
    Worker(workspace, "cpu", lambda _: None).run(until_empty=True)
    for job in workspace.queue.all():
        result = job.result or {}
        is_bug = "this is a bug" in result.get("hint", "")
        counts["crashes" if is_bug else f"inspection {job.state}"] += 1
    _upload_images(client, folder / "made", images, counts)
    too_large = client.post("/api/train", content=bytes(MAX_BODY_BYTES + 1))
    counts[f"oversize {too_large.status_code}"] += 1
    counts["code run"] = int(canary.exists())
    outside = {path.name for path in folder.iterdir()} - {"studio", "made", "canary"}
    counts["files outside"] = len(outside) + sum(path.exists() for path in _escapes(folder))
    return counts


def _upload_images(client: TestClient, folder: Path, count: int, counts: Counter[str]) -> None:
    """Upload each unusual image in a set of its own, with its mask and caption."""
    for number, kind in enumerate(itertools.islice(KINDS.values(), count)):
        made = folder / str(number)
        made.mkdir(parents=True)
        kind.make(made)
        regular = [path for path in made.iterdir() if path.is_file() and not path.is_symlink()]
        names = [path.name.encode("utf-8", "replace").decode() for path in regular]
        files = [
            ("files", (f"../../{name}", path.read_bytes()))
            for name, path in zip(names, regular, strict=True)
        ]
        if not files:  # a pipe, a link or a folder cannot be uploaded
            continue
        answer = client.post("/api/images", files=files)
        counts[f"image upload {answer.status_code}"] += 1
        if answer.status_code == 201:
            content = answer.json()
            counts["images used"] += len(content["images"])
            counts["images refused"] += len(content["rejected"])


def _escapes(folder: Path) -> list[Path]:
    return [folder / "escape.pt", folder.parent / "escape.pt", Path("/tmp/escape.pt")]


def main() -> None:
    """Print the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=300)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        print(json.dumps(upload_all(Path(name), arguments.models, len(KINDS))))


if __name__ == "__main__":
    main()
