"""The interactive page's frame (`scripts/app.py`): a local server, its limits, and mistakes told as words in the page.

Its tabs are made by `gan.page` and `pointcloud.page`. The page asks no other server for anything, nor does the browser
that shows it; what users upload and get lies in a folder of its own, which goes when the server does.
"""

from __future__ import annotations

import html
import importlib.metadata
import importlib.util
import os
import re
import signal
import socket
import sys
import tempfile
import threading
import traceback
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from shared_attn.runtime.extras import command
from shared_attn.runtime.messages import one_line

INSTALL = command("app")
OLDEST = 6  # the first whose launch() takes theme and style
WAITING = 32  # calls that may wait for their turn; later ones are turned away in words
KEPT, SWEPT = 3600, 600  # seconds that files are kept, and between looks for older ones
UPLOADS = "GRADIO_TEMP_DIR"
STYLE = """
.gradio-container { max-width: 1180px !important; margin: 0 auto !important; }
.gradio-container, .gradio-container > main { width: 100%; }
.html-container { padding: 0 !important; }
.hint { font-size: 12px; opacity: 0.7; }
.mistake { border-left: 4px solid #dc2626; background: #dc26261a; padding: 10px 14px; border-radius: 4px; }
.shape { width: 100%; height: 500px; border: 1px solid var(--border-color-primary); border-radius: 8px; }
.pixels img { image-rendering: pixelated; }
.pixels .caption-label { left: 0; right: 0; bottom: 0; max-width: none; padding: 1px 6px; font-size: 11px; border: 0; }
.numbers { width: 100%; border-collapse: collapse; }
.numbers th, .numbers td { padding: 6px 10px; text-align: right; border-bottom: 1px solid var(--border-color-primary); }
.numbers th:first-child, .numbers td:first-child { text-align: left; }
.numbers i { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 8px; }
"""
# Nothing from elsewhere, whatever a part of the page may ask for.
POLICY = b"default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; frame-ancestors 'self'; form-action 'self'"

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def check_gradio() -> None:
    """See that gradio is at hand, without the seconds that importing it takes.

    Raises:
        ValueError: it is not installed, or too old; the line has pip's command.
    """
    if importlib.util.find_spec("gradio") is None:
        raise ValueError(f"the page needs gradio, which is not installed: {INSTALL}")
    version = importlib.metadata.version("gradio")
    if int(version.partition(".")[0]) < OLDEST:
        raise ValueError(f"the page needs gradio {OLDEST} or newer, this is {version}: {INSTALL} --upgrade")


def import_gradio() -> Any:
    """gradio, told to keep to itself."""
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", HF_HUB_DISABLE_TELEMETRY="1", HF_HUB_OFFLINE="1")
    os.environ.update(NO_PROXY="*", no_proxy="*")  # it looks whether its own server answers
    import gradio

    return gradio


def check_place(address: str, port: int | None, max_upload: int) -> None:
    """See that the server can be had, before any work.

    Raises:
        ValueError: in one line that names the flag, the value and what was expected.
    """
    if max_upload < 1:
        raise ValueError(f"--max-upload {max_upload}: expected a number of megabytes, 1 or more")
    if port is not None and not 0 < port < 2**16:
        raise ValueError(f"--port {port}: expected a number from 1 to 65535")
    try:
        family = socket.getaddrinfo(address, port or 0, type=socket.SOCK_STREAM)[0][0]
    except OSError as error:
        raise ValueError(f"--address {address}: no address of this machine ({error.strerror})") from error
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port or 0))
        except OSError as error:
            place = f"--address {address}" if port is None else f"--address {address} --port {port}"
            raise ValueError(f"{place}: cannot be served at ({error.strerror})") from error


def is_local(address: str) -> bool:
    """Whether only this machine can reach a server at the address."""
    return address in ("localhost", "::1") or address.startswith("127.")


def tell(error: Exception) -> str:
    """An error as one line for the page: as the scripts print it, without the folder that the upload lies in.

    What is no mistake of the user's is told as such; its traceback goes to the server's log.
    """
    if not isinstance(error, (ValueError, OSError)):
        traceback.print_exception(error)
        return "This did not work, and not by your mistake: the log of the page's server says what happened."
    words = one_line(error)
    return re.sub(re.escape(str(own_folder())) + r"[/\\](?:files[/\\])?[^/\\]*[/\\]", "", words)


def own_folder() -> Path:
    """Where the page's files lie; in its folder "files" those that gradio keeps."""
    return Path(os.environ[UPLOADS]).parent if UPLOADS in os.environ else Path(tempfile.gettempdir())


def in_words(work: Callable[..., Sequence[Any]], outputs: int) -> Callable[..., Iterator[list[Any]]]:
    """The page's handler of `work(folder, *inputs)`: an update of the message, then the outputs, each None at an error.

    folder: for files that are handed to the page; it goes as soon as gradio has copied them.
    """

    def answer(*inputs: Any) -> Iterator[list[Any]]:
        gradio = import_gradio()
        with tempfile.TemporaryDirectory(dir=own_folder(), prefix="answer-") as folder:
            try:
                yield [gradio.update(value="", visible=False), *work(Path(folder), *inputs)]
            except Exception as error:
                message = f'<div class="mistake" role="alert">{html.escape(tell(error))}</div>'
                yield [gradio.update(value=message, visible=True), *[None] * outputs]

    return answer


def connect(
    events: Sequence[Any],
    work: Callable[..., Sequence[Any]],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    *,
    message: Any,
    name: str,
) -> None:
    """Lets events of the page call `work`, see `in_words`; the networks answer one call at a time, in order."""
    import_gradio().on(
        list(events),
        in_words(work, len(outputs)),
        inputs=list(inputs),
        outputs=[message, *outputs],
        api_name=name,
        concurrency_id="networks",
        concurrency_limit=1,
        show_progress_on=list(outputs[:1]),
    )


def refuse_addresses(component: Any) -> Any:
    """The component, which takes uploads only: gradio would fetch a file that a call names by its address."""
    fetch = component.async_move_resource_to_block_cache

    async def keep(resource: Any) -> Any:
        if re.match(r"[a-z]+://", str(resource), re.IGNORECASE):
            raise import_gradio().Error("an address: expected an uploaded file")
        return await fetch(resource)

    component.async_move_resource_to_block_cache = keep
    return component


def create_page(title: str, introduction: str, tabs: Mapping[str, Callable[[], None]]) -> Any:
    """A gradio page with a tab for each name, filled by its function."""
    gradio = import_gradio()
    with gradio.Blocks(title=title, analytics_enabled=False, delete_cache=(SWEPT, KEPT)) as page:
        gradio.Markdown(f"# {title}\n{introduction}")
        for name, fill in tabs.items():
            with gradio.Tab(name):
                fill()
    return page.queue(max_size=WAITING, default_concurrency_limit=1)


@contextmanager
def own_uploads() -> Iterator[None]:
    """A folder of its own for what a page is given and gives, while the block lasts. A page is made within."""
    before = os.environ.get(UPLOADS)
    with tempfile.TemporaryDirectory(prefix="eagan-eat-page-", ignore_cleanup_errors=True) as folder:
        os.environ[UPLOADS] = os.path.join(os.path.realpath(folder), "files")
        try:
            yield
        finally:
            os.environ.pop(UPLOADS)
            if before is not None:
                os.environ[UPLOADS] = before


@contextmanager
def served(page: Any, *, address: str, port: int | None, max_upload: int) -> Iterator[str]:
    """Serves a page while the block lasts; gives its address.

    Args:
        address, port: where; without a port the first free one from 7860.
        max_upload: megabytes that a file may have.
    """
    gradio = import_gradio()
    from starlette.middleware import Middleware

    theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["system-ui", "sans-serif"])
    _, url, _ = page.launch(
        server_name=address, server_port=port, share=False, max_file_size=f"{max_upload}mb", theme=theme, css=STYLE,
        footer_links=[], quiet=True, ssr_mode=False, pwa=False, mcp_server=False, enable_monitoring=False,
        inbrowser=False, prevent_thread_lock=True, app_kwargs={"middleware": [Middleware(_KeepToItself)]},
    )  # fmt: skip
    try:
        yield url
    finally:
        page.close(verbose=False)


class _KeepToItself:
    """ASGI middleware: tells the browser to ask no other server for anything; takes no films, which would be kept."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].endswith("/process_recording"):
            await send({"type": "http.response.start", "status": 404, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            return

        async def with_policy(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"content-security-policy", POLICY)]
            await send(message)

        await self._app(scope, receive, with_policy if scope["type"] == "http" else send)


def wait_for_the_end() -> None:
    """Until Ctrl-C or SIGTERM: either is how a page ends, no mistake."""

    def end(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)
    with suppress(KeyboardInterrupt):
        threading.Event().wait()
    print("the page is closed", file=sys.stderr)
