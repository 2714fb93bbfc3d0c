"""Serve a model over HTTP until a signal ends it (`distill serve`)."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import uvicorn

from distill.errors import FolderError, Interrupted, UserError
from distill.inference.cascade import Cascade
from distill.inference.classifier import Classifier, device_of_step, fastest_export, load
from distill.inference.runtimes import can_run, gpu_of
from distill.inference.text_classifier import TextClassifier
from distill.serving.app import create_app
from distill.serving.hub_api import Limits
from distill.storage.exports import EXPORT_PROOFS, read_proofs
from distill.storage.run_folder import RunFolder

log = logging.getLogger("distill")

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
# Their activations are scaled by the largest of a batch ("onnx": any graph, so perhaps one of these).
SCALED_BY_BATCH = ("onnx-int8", "onnx")
GRACE = 30  # seconds for requests that have begun when a signal comes; Kubernetes kills after as many


def serve(
    model: Path | str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    device: str = "auto",
    all_formats: bool = False,
    limits: Limits = Limits(texts=64, characters=200_000),  # noqa: B008 - immutable
) -> None:
    """Answer requests at `host` and `port` (0: a free one) until SIGINT, SIGTERM or SIGHUP.

    The signal is raised as `Interrupted` when the requests that had begun are answered. With `all_formats`, all formats
    of a run folder or of a folder of exports are served that run here. Raises `UserError` before the model is loaded if
    the port cannot be had.
    """
    with _listening(host, port) as listener:
        address, number = listener.getsockname()[:2]
        shown = f"[{address}]" if ":" in address else address
        if not ipaddress.ip_address(address.split("%")[0]).is_loopback:
            log.warning("serve: --host %s: anybody who reaches port %d of this machine can ask", host, number)
        places = _formats(Path(model), device) if all_formats else {str(model): device}
        classifiers = {one.format: one for one in (load(place, on) for place, on in places.items())}
        for one in classifiers.values():
            _keep_apart(one)
            one.warm_up()
        parts = Path(model).parts  # a client need not learn where the folder lies
        name = "/".join(parts[-2:] if RunFolder(Path()).export.name in parts[-2:] else parts[-1:])
        for one in classifiers.values():
            log.info("serve: %s on %s", one.format, one.device)
        log.info("serve: http://%s:%d (Ctrl-C ends it)", shown, number)
        _run(create_app(classifiers, limits, name=name), listener)


def _formats(folder: Path, device: str) -> dict[str, str]:
    """Return each format that runs here, with its device: of a run folder the model itself first, else the fastest."""
    exports = folder if (folder / EXPORT_PROOFS).is_file() else RunFolder(folder).export
    if not (exports / EXPORT_PROOFS).is_file():
        raise FolderError(f"--all: {folder}: holds no formats ({EXPORT_PROOFS})", hint="leave out --all")
    found = [folder if exports != folder else fastest_export(folder, device)[0]]
    for name, proof in read_proofs(exports).items():
        if not proof["passed"] or not (exports / name).is_dir():
            continue
        # With "auto", what does not run on the GPU runs on the CPU.
        if can_run(name, gpu_of(device_of_step(exports / name, device))) or (device == "auto" and can_run(name, "cpu")):
            found.append(exports / name)
        else:
            log.info("serve: --all: %s left out: its runtime is not installed", name)
    return {str(place): device_of_step(place, device) for place in found}


def _keep_apart(classifier: TextClassifier) -> None:
    """Compute each text by itself where others in its batch would change its score, and now and then its label.

    In a server these are texts of other people. Several still run at once, one on each core.
    """
    if isinstance(classifier, Cascade):
        for one in classifier.classifiers:
            _keep_apart(one)
    elif isinstance(classifier, Classifier) and classifier.format in SCALED_BY_BATCH:
        classifier.session.batch_tokens = 1


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """Yield a socket that listens at host and port; clients that come before the model is loaded wait."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(address[:2], family=family)
    except (OSError, UnicodeError) as error:
        number = getattr(error, "errno", None) or 0  # below 0 for names that are not found
        reason = os.strerror(number) if number > 0 else error
        raise UserError(
            f"--host {host} --port {port}: cannot be had: {reason}", hint="name another; --port 0 takes a free one"
        ) from None
    with listener:
        yield listener


class _Server(uvicorn.Server):
    """uvicorn, which here notes the signal that ends it instead of raising it again, and ends at SIGHUP too."""

    stopped_by: int | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        ignored = [number for number in SIGNALS if signal.getsignal(number) == signal.SIG_IGN]  # nohup ignores SIGHUP
        before = {number: signal.signal(number, self.handle_exit) for number in SIGNALS if number not in ignored}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit  # a second signal waits for nobody
        self.should_exit, self.stopped_by = True, sig


def _run(app: object, listener: socket.socket) -> None:
    # Its own log stays silent: what it says of a failure may quote a request. `app` logs failures itself.
    config = uvicorn.Config(
        app, log_config=None, log_level="critical", access_log=False, ws="none", lifespan="off", server_header=False,
        timeout_graceful_shutdown=GRACE,
    )  # fmt: skip
    server = _Server(config)
    server.run(sockets=[listener])
    if server.stopped_by is not None:
        waited = "some requests may not be answered" if server.force_exit else "requests that had begun are answered"
        raise Interrupted(server.stopped_by, waited)
