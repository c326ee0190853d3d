"""Predictions over HTTP, beside the page: POST /v1/predict and /v1/batch, health, readiness and metrics."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from tl_nlp.demo.guard import MOST_BYTES
from tl_nlp.errors import BusyError, DataError, FullQueueError, JobError, NoJobError, NoRunError, RunError, TLError
from tl_nlp.serving import MAX_CHARACTERS, Row, Service
from tl_nlp.types import as_json

MOST_ROWS = 1000
"""Of one batch."""


class Asked(BaseModel):
    """A text to predict from. `pair` is what goes with it (a question, a prompt, an aspect), `group` its scale."""

    model_config = ConfigDict(extra="forbid", strict=True)

    text: str = Field(max_length=MAX_CHARACTERS, description="the text", examples=["a gorgeous , witty film"])
    pair: str | None = Field(None, max_length=MAX_CHARACTERS, description="a question, a prompt or an aspect")
    group: str | None = Field(None, max_length=1000, description="the prompt or domain, where each has its scale")
    id: str = Field("0", max_length=1000, description="comes back with the answer")

    def row(self) -> Row:
        return Row(self.text, self.pair, self.group)


class Question(Asked):
    """One text, and which run is asked."""

    run: str | None = Field(None, max_length=1000, description="a name of GET /v1/served; default: the first")


class Batch(BaseModel):
    """Many texts for one run."""

    model_config = ConfigDict(extra="forbid", strict=True)

    rows: list[Asked] = Field(min_length=1, max_length=MOST_ROWS)
    run: str | None = Field(None, max_length=1000, description="a name of GET /v1/served; default: the first")


class Failure(BaseModel):
    """What every refusal answers."""

    error: str


REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": Failure, "description": text}
    for status, text in {
        400: "the text or the run does not go",
        401: "no key, or a wrong one",
        403: "asked through another site's page",
        404: "no such run",
        413: "too much at once",
        422: "not the shape that is asked for",
        429: "too many requests of one client",
        503: "too many wait already; the header Retry-After says for how long",
    }.items()
}


class Meters:
    """What /metrics tells, for Prometheus."""

    def __init__(self, service: Service):
        self.registry = CollectorRegistry()
        self.requests = Counter("tl_nlp_requests_total", "Requests", ["path", "status"], registry=self.registry)
        self.seconds = Histogram("tl_nlp_request_seconds", "Time of a request", ["path"], registry=self.registry)
        worker = service.worker
        for name, text, value in (
            ("rows", "Rows that were answered", lambda: worker.counts.rows),
            ("passes", "Passes they were answered in", lambda: worker.counts.passes),
            ("refused", "Rows that were refused for want of room", lambda: worker.counts.refused),
            ("waiting", "Rows that wait", lambda: worker.n_waiting),
            ("weights_megabytes", "Memory of the weights", lambda: service.megabytes),
        ):
            Gauge(f"tl_nlp_{name}", text, registry=self.registry).set_function(value)


class Metered:
    """Counts what is asked of the API, and times it. ASGI middleware."""

    def __init__(self, app: Any, meters: Meters):
        self._app, self._meters = app, meters

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def watched(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            path = getattr(scope.get("route"), "path", "other")
            self._meters.requests.labels(path, status).inc()
            self._meters.seconds.labels(path).observe(time.perf_counter() - started)


def add_predictions(app: FastAPI, service: Service) -> None:
    """The routes of predictions and of the server's own state."""
    meters = Meters(service)
    v1 = APIRouter(prefix="/v1", tags=["predictions"], responses=REFUSALS)

    @v1.post("/predict", max_body_size=MOST_BYTES["/v1/predict"])
    async def predict(question: Question) -> Response:
        """One line of `tl-nlp predict`: a label with probabilities, labels, scores by trait, or a text."""
        asked = service.worker.predict(service[question.run].predictor, [question.row()])
        (answer,) = await asyncio.wrap_future(asked)
        return _json(as_json(answer, question.id))

    @v1.post("/batch")
    def batch(batch: Batch) -> Response:
        """`predictions`, one for each row, in their order."""
        served = service[batch.run]
        rows = [_named(number, one) for number, one in enumerate(batch.rows)]
        answers = service.worker.stream(served.predictor, rows)
        lines = [as_json(answer, asked.id) for answer, asked in zip(answers, batch.rows, strict=True)]
        return _json({"predictions": lines})

    @v1.get("/served")
    def served() -> dict[str, Any]:
        """The runs that answer here: their names, tasks, methods and checkpoints."""
        return {
            "runs": [
                {"run": name, "task": one.recipe.task.kind, "method": one.recipe.method.kind,
                 "checkpoint": one.recipe.checkpoint.name, "outputs": one.recipe.task.outputs()}
                for name, one in service.served.items()
            ]
        }  # fmt: skip

    app.include_router(v1)
    app.add_middleware(Metered, meters=meters)

    @app.get("/health", tags=["server"])
    async def health() -> dict[str, str]:
        """Whether the server lives."""
        return {"status": "ok"}

    @app.get("/ready", tags=["server"], responses={503: REFUSALS[503]})
    async def ready() -> Response:
        """Whether it has room for another text."""
        worker = service.worker
        is_ready = worker.n_waiting < worker.most_waiting
        return _json({"status": "ready" if is_ready else "busy", "waiting": worker.n_waiting}, 200 if is_ready else 503)

    @app.get("/metrics", tags=["server"], responses={401: REFUSALS[401]})
    def metrics() -> Response:
        """Counts and times, in the text format of Prometheus."""
        return Response(generate_latest(meters.registry), media_type=CONTENT_TYPE_LATEST)


_STATUSES = {BusyError: 503, FullQueueError: 503, NoRunError: 404, NoJobError: 404, JobError: 409, RunError: 409}
"""By the kind of error, the narrow ones first."""


def _named(number: int, asked: Asked) -> Row:
    try:
        return asked.row()
    except DataError as error:
        raise DataError(f"row {number}: {error}") from None


def _json(values: Any, status: int = 200) -> Response:
    body = json.dumps(values, ensure_ascii=False).encode("utf-8", "replace")
    return Response(body, status, media_type="application/json")


def add_refusals(app: FastAPI) -> None:
    """Every refusal is `{"error": one sentence}`; no traceback leaves the server."""

    @app.exception_handler(TLError)
    async def refuse(request: Request, error: TLError) -> Response:
        status = next((code for kind, code in _STATUSES.items() if isinstance(error, kind)), 400)
        return JSONResponse({"error": str(error)}, status, {"Retry-After": "1"} if status == 503 else None)

    @app.exception_handler(RequestValidationError)
    async def explain(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][1:])
        return JSONResponse({"error": f"{place}: {first['msg']}" if place else first["msg"]}, 422)

    @app.exception_handler(HTTPException)
    async def tell(request: Request, error: HTTPException) -> Response:
        told = "the request is larger than this server takes" if error.status_code == 413 else error.detail
        return JSONResponse({"error": told}, error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def fail(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": f"a fault of tl-nlp: {type(error).__name__}"}, 500)
