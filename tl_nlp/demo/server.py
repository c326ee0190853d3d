"""The server: page and API in one process, and who may ask it."""

from __future__ import annotations

import importlib.util
import os
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import gradio as gr
import uvicorn
from fastapi import FastAPI
from fastapi_swagger import patch_fastapi

from tl_nlp.demo.api import add_predictions, add_refusals
from tl_nlp.demo.guard import LOOPBACK, MOST_BYTES, Guard, Rules
from tl_nlp.demo.look import CSS, HEAD, theme
from tl_nlp.demo.page import build
from tl_nlp.demo.trainings import add_trainings
from tl_nlp.errors import HardwareError, RecipeError, RunError
from tl_nlp.jobs import Jobs
from tl_nlp.serving import Service

MAX_FILE = 20 * 10**6  # bytes of an upload
_PORTS = range(7860, 7960)  # of which the first that is free is taken
_RATE = 240  # requests a minute of one client, where others than this machine are served
_MOST_CONNECTIONS = 1000
_GRACE = 5  # seconds for requests at work, when the server ends


def serve(folders: list[Path], is_public: bool = False) -> None:
    """Serves page and API of runs, or of artifacts alone, until interrupted.

    GRADIO_SERVER_NAME and GRADIO_SERVER_PORT are honoured, and TL_NLP_API_KEY and TL_NLP_RATE_LIMIT; a page beyond this
    machine needs TL_NLP_PASSWORD, unless it `is_public`. Raises RecipeError where one is missing or makes no sense,
    HardwareError for a port that is taken.
    """
    host, rules = os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"), _rules(is_public)
    with _bound(host) as listening, tempfile.TemporaryDirectory(prefix="tl_nlp-page-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        app = create_app(Service(folders), rules, None if is_public else _jobs())
        config = uvicorn.Config(
            app,
            access_log=False,  # nothing of a visitor is written down
            log_level="warning",
            timeout_graceful_shutdown=_GRACE,
            limit_concurrency=_MOST_CONNECTIONS,
            forwarded_allow_ips="*" if is_public else None,  # whose rate it is, behind the proxy of a Space
        )
        port = listening.getsockname()[1]
        print(f"http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)
        uvicorn.Server(config).run(sockets=[listening])


def _rules(is_public: bool) -> Rules:
    name, password = os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"), os.environ.get("TL_NLP_PASSWORD") or None
    is_local = name in LOOPBACK
    if not is_local and not password and not is_public:
        raise RecipeError(
            f"GRADIO_SERVER_NAME={name} opens the page to the network; set TL_NLP_PASSWORD, with which "
            "user tl-nlp logs in, or leave the name out to serve this machine alone"
        )
    given = os.environ.get("TL_NLP_RATE_LIMIT", "")
    if given and not given.isdecimal():
        raise RecipeError(f"TL_NLP_RATE_LIMIT={given} is no number of requests a minute; 0 sets no limit")
    rate = int(given) if given else 0 if is_local else _RATE
    return Rules(is_local, is_public, password, os.environ.get("TL_NLP_API_KEY") or None, rate or None)


def _bound(host: str) -> socket.socket:
    """A socket that listens at GRADIO_SERVER_PORT, or at the first free port from 7860 on."""
    given = os.environ.get("GRADIO_SERVER_PORT", "")
    if given and not given.isdecimal():
        raise RecipeError(f"GRADIO_SERVER_PORT={given} is no port")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in [int(given)] if given else _PORTS:
        found = socket.socket(family, socket.SOCK_STREAM)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind((host, port))
        except (OSError, OverflowError) as error:
            found.close()
            failure = error
        else:
            return found
    raise HardwareError(f"port {given or '7860 to 7959'} of {host} cannot be had: {failure}; GRADIO_SERVER_PORT=PORT")


def _jobs() -> Jobs | None:
    """The queue of trainings under the root of the runs, where one can be kept and torch is there to train with."""
    if importlib.util.find_spec("torch") is None:
        print("without trainings: torch is not installed", file=sys.stderr)
        return None
    try:
        return Jobs()
    except RunError as error:
        print(f"without trainings: {error}", file=sys.stderr)
        return None


def create_app(service: Service, rules: Rules, jobs: Jobs | None = None) -> FastAPI:
    """The ASGI application of page and API; with `jobs` trainings can be begun, which go on as long as it lives."""

    @asynccontextmanager
    async def alive(app: FastAPI) -> AsyncIterator[None]:
        if jobs is not None:
            jobs.start()
        yield
        service.worker.close()
        if jobs is not None:
            jobs.close()

    app = FastAPI(
        title="tl_nlp",
        summary="Answers of fine-tuned language models.",
        openapi_url="/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
        max_body_size=MOST_BYTES[""],
        lifespan=alive,
    )
    add_refusals(app)
    add_predictions(app, service)
    if jobs is not None:
        add_trainings(app, service, jobs)
    patch_fastapi(app, docs_url="/v1/docs", redirect_from_root_to_docs=False)  # nothing of it is fetched from outside
    app.add_middleware(Guard, rules=rules)
    page = build(service, jobs).queue(max_size=64, default_concurrency_limit=16)
    return gr.mount_gradio_app(
        app,
        page,
        path="/",
        auth=("tl-nlp", rules.password) if rules.password else None,
        auth_message="User tl-nlp, and the password that TL_NLP_PASSWORD was set to.",
        show_error=False,
        enable_monitoring=False,
        run_history=False,
        ssr_mode=False,
        max_file_size=MAX_FILE,
        allowed_paths=[],
        footer_links=[],
        theme=theme(),
        css=CSS,
        head=HEAD,
    )
