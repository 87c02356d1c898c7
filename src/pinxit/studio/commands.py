"""`pinxit studio` and `pinxit worker`: the web page, and the process that does its jobs."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from pinxit.cli.screen import Switch, data, say, stoppable
from pinxit.errors import RequestError, RunError

AUTO_DEVICE = "auto (the accelerator that torch finds, else cpu), or its name in torch"
_FOLDER = Path("pinxit-studio")
_PORT = 7865


def studio(
    folder: Path = _FOLDER,
    *,
    port: int = _PORT,
    host: str = "127.0.0.1",
    device: Annotated[
        str, Parameter(help=f"device of the worker: {AUTO_DEVICE}; none starts no worker")
    ] = "auto",
    base: Annotated[
        tuple[str, ...], Parameter(negative_iterable="", show_default=lambda _: "none")
    ] = (),
    link: Switch = False,
    api_token: Switch = False,
) -> None:
    """Open the studio: train, generate and compare in a web page on this machine.

    Args:
        folder: folder with everything that the studio makes
        port: port of this machine
        host: address of this machine; no other is allowed
        base: base model to offer apart from pocket; may be given several times
        link: print a new link to the running studio, and end
        api_token: print the token for programs, and end
    """
    for name in ("starlette", "uvicorn", "python_multipart"):
        if find_spec(name) is None:
            raise RequestError(f"the studio needs {name}", 'pip install "pinxit[studio]"')
    if not 0 <= port < 2**16:
        raise RequestError(f"--port {port} is no port", "choose one from 1024 to 65535")
    from pinxit.studio.server import address_file, entry_link, serve
    from pinxit.studio.workspace import Workspace

    workspace = Workspace(folder, ("pocket", *base))
    if api_token:
        workspace.create()
        data(workspace.token_for("api"))
    elif link:
        file = address_file(workspace)
        if not file.is_file():
            raise RunError(f"no studio runs in {folder}", f"start one: pinxit studio {folder}")
        data(entry_link(workspace, file.read_text(encoding="utf-8")))
    else:
        with stoppable():
            serve(workspace, port, "" if device == "none" else device, say, host)


def worker(
    folder: Path = _FOLDER,
    *,
    device: Annotated[str, Parameter(help=f"device to compute on: {AUTO_DEVICE}")] = "auto",
    until_empty: Switch = False,
) -> None:
    """Do the jobs of a studio; several devices can have a worker each.

    Args:
        folder: folder with everything that the studio makes
        until_empty: end when the queue is empty
    """
    from pinxit.studio.worker import Worker
    from pinxit.studio.workspace import Workspace

    workspace = Workspace(folder)
    workspace.create()
    with stoppable():
        Worker(workspace, device, say).run(until_empty=until_empty)
