"""The checkout stays small: fails when the tracked files are together above 45 MiB."""

import subprocess
import sys
from pathlib import Path

LIMIT_MIB = 45.0


def main() -> int:
    """0 if the files that git tracks, or would take, fit; else 1, with the largest ones named."""
    root = Path(__file__).resolve().parent.parent
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    answer = subprocess.run(listing, cwd=root, check=True, capture_output=True, text=True)
    paths = {root / name for name in answer.stdout.split("\0") if name}
    sizes = {path: path.stat().st_size for path in paths if path.is_file()}
    total = sum(sizes.values()) / 2**20
    print(f"tracked files: {len(sizes)}, {total:.1f} MiB of {LIMIT_MIB:.0f} MiB")
    if total <= LIMIT_MIB:
        return 0
    for path in sorted(sizes, key=lambda path: -sizes[path])[:10]:
        print(f"  {sizes[path] / 2**20:6.1f} MiB  {path.relative_to(root)}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
