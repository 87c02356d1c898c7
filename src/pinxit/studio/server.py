"""Run the studio: the local server, and a worker that is started again if it dies."""

import asyncio
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from pinxit.errors import RequestError, RunError
from pinxit.files.atomic_write import (
    append,
    defer_signals,
    exclusive_lock,
    is_locked,
    make_folder,
    write_text,
)
from pinxit.studio.app import create_app
from pinxit.studio.guard import ENTRY, LOCAL_NAMES
from pinxit.studio.uploads import take_in, unfinished_sets
from pinxit.studio.workspace import Workspace

_MAX_CONNECTIONS = 256
_LOOK_EVERY, _RESTART_AFTER = 0.5, 2.0


def entry_link(workspace: Workspace, address: str) -> str:
    """A link that opens the studio once."""
    return f"http://{address}{ENTRY}?key={workspace.new_key()}"


def address_file(workspace: Workspace) -> Path:
    """The file with host and port of the running studio."""
    return workspace.folder / "address"


def serve(
    workspace: Workspace,
    port: int,
    device: str,
    say: Callable[[str], None],
    host: str = "127.0.0.1",
) -> None:
    """Serve a workspace until a signal ends the process; an empty `device` starts no worker.

    RequestError for a host that other machines can reach; RunError if a studio serves it already.
    """
    import uvicorn

    if host not in LOCAL_NAMES:
        raise RequestError(
            f"the studio does not listen on {host}: everyone there could use this machine",
            f"keep 127.0.0.1, and on the other machine: ssh -L {port}:127.0.0.1:{port} HOST",
        )
    workspace.create()
    with (
        exclusive_lock(workspace.folder),
        _listening_socket(host, port) as listener,
        _worker(workspace, device, say) if device else nullcontext(),
    ):
        for images in unfinished_sets(workspace):
            asyncio.run(take_in(images, workspace.resolution))
        workspace.drop_keys()
        port = listener.getsockname()[1]  # it was 0 for any free one
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        write_text(address_file(workspace), address)
        config = uvicorn.Config(
            create_app(workspace, port),
            workers=1,
            proxy_headers=False,
            server_header=False,
            access_log=False,
            log_level="warning",
            limit_concurrency=_MAX_CONNECTIONS,
            timeout_graceful_shutdown=1,
        )
        server = uvicorn.Server(config)
        # Before it takes signals itself, the exception of one could get lost in an import.
        with defer_signals(lambda: setattr(server, "should_exit", True)):
            say(f"the studio is at {entry_link(workspace, address)}")
            server.run([listener])


def _listening_socket(host: str, port: int) -> socket.socket:
    """A socket that listens at a port; RunError if another program uses it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise RunError(
            f"port {port} cannot be used: {error.strerror}", "choose another one with --port"
        ) from error


@contextmanager
def _worker(workspace: Workspace, device: str, say: Callable[[str], None]) -> Generator[None]:
    """Keep a worker running, unless another one uses the device; stop it at the end."""
    ended, supervisor = threading.Event(), _Supervisor(workspace, device)
    thread = threading.Thread(target=supervisor.run, args=(ended,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        say("the worker saves its job and ends")
        supervisor.stop()


class _Supervisor:
    """Starts a worker process, and again when it dies."""

    def __init__(self, workspace: Workspace, device: str) -> None:
        self.workspace = workspace
        self.device = device
        self.process: subprocess.Popen[bytes] | None = None
        self.folder = workspace.worker_folder(device)
        self._pid_file, self._log_file = self.folder / "pid", self.folder / "worker.log"

    def run(self, ended: threading.Event) -> None:
        """Look after the worker until the event is set. The first page comes before its start."""
        next_start = 0.0
        while not ended.wait(_LOOK_EVERY):
            is_dead = self.process is None or self.process.poll() is not None
            runs = self._device_has_worker()
            if is_dead and self.process:
                if not runs:  # otherwise it has found the other worker, and ended
                    self._keep_last_words()
                self.process = None
            if is_dead and not runs and time.monotonic() >= next_start:
                self._start()
                next_start = time.monotonic() + _RESTART_AFTER

    def stop(self) -> None:
        """Ask the worker to save and to end, and wait for it."""
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait()
        elif self.process is None and self._device_has_worker():
            self._stop_earlier_worker()

    def _device_has_worker(self) -> bool:
        return is_locked(self.workspace.worker_folder(self.workspace.device_of(self.device)))

    def _stop_earlier_worker(self) -> None:
        """Stop the worker of a studio that was killed; not one that was started by hand."""
        import psutil

        text = self._pid_file.read_text() if self._pid_file.is_file() else ""
        try:
            worker = psutil.Process(int(text))
            if str(self.workspace.folder) in worker.cmdline():
                worker.terminate()
                worker.wait()
        except (ValueError, psutil.Error):
            return

    def _start(self) -> None:
        make_folder(self.folder)
        command = [sys.executable, "-m", "pinxit", "worker", str(self.workspace.folder)]
        write_text(self._log_file, "")  # a link is replaced, not followed
        with self._log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--device", self.device],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # it survives the death of the studio
            )
        write_text(self._pid_file, str(self.process.pid))

    def _keep_last_words(self) -> None:
        if self.process and self.process.returncode:
            line = f"\nthe worker ended with status {self.process.returncode}\n"
            append(self._log_file, line)
            self._log_file.replace(self.folder / "last.log")
