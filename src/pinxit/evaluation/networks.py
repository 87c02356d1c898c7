"""The networks that score photographs: where they are, and their download, which needs consent."""

from collections.abc import Iterable
from pathlib import Path

from pinxit.errors import ModelError, RequestError
from pinxit.models import hub

# Those that are used unless others are given, and their sizes.
DINO, CLIP = "facebook/dino-vits16", "openai/clip-vit-base-patch32"
_MEGABYTES = {DINO: 87, CLIP: 605}


def network_folder(weights: str) -> Path | None:
    """The folder of a network that is on this machine; the hub is not asked."""
    folder = Path(weights).expanduser()
    return folder if folder.is_dir() else hub.cached_network(weights)


def require_networks(names: Iterable[str]) -> None:
    """Raise RequestError if a network is not on this machine; it says what a download would be."""
    missing = [name for name in dict.fromkeys(names) if network_folder(name) is None]
    if missing:
        sizes = [f"{name} ({_MEGABYTES.get(name, 'unknown number of')} MB)" for name in missing]
        raise RequestError(
            f"images are scored by networks that are not on this machine: {', '.join(sizes)}",
            "download them once with --download or pinxit doctor --fetch-judges, or give folders",
        )


def fetch_networks(names: Iterable[str]) -> None:
    """Download the networks that are not on this machine; RequestError if the hub fails."""
    for name in dict.fromkeys(names):
        if network_folder(name) is None:
            try:
                hub.fetch(name)
            except ModelError as error:
                raise RequestError(
                    f"{name} cannot be downloaded to score images: {error.message}",
                    f"{error.hint}; or download it on another machine, and give its folder",
                ) from error
