"""Trainings over HTTP: POST /v1/runs queues one, and the rest tells how it goes."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, File, Form, UploadFile
from fastapi import Path as InPath
from fastapi.responses import JSONResponse, StreamingResponse

from tl_nlp.demo.api import REFUSALS
from tl_nlp.errors import DataError, RecipeError
from tl_nlp.hub import is_id
from tl_nlp.jobs import Job, Jobs, Progress
from tl_nlp.recipe import Recipe, load_recipe, recipe_files
from tl_nlp.run import Run
from tl_nlp.serving import Service
from tl_nlp.tables import READERS

_EVERY = 1.0  # seconds between two events
_ENDED = ("finished", "failed", "cancelled")
_PLACES = ("data", "data.kind", "data.path", "data.train", "data.validation", "data.test", "data.tests")
JobId = Annotated[str, InPath(max_length=100, description="of POST /v1/runs")]


def add_trainings(app: FastAPI, service: Service, jobs: Jobs) -> None:
    """The routes of trainings."""
    v1 = APIRouter(prefix="/v1/runs", tags=["trainings"], responses={**REFUSALS, 409: {"description": "not now"}})

    @v1.post("", status_code=202)
    def begin(
        recipe: Annotated[str, Form(max_length=200, description="a name of GET /v1/recipes")],
        overrides: Annotated[list[str] | None, Form(max_length=100, description="KEY=VALUE, as method=lora")] = None,
        file: Annotated[UploadFile | None, File(description="a table to train on: csv, tsv, jsonl, parquet")] = None,
    ) -> JSONResponse:
        """Queues the training of a recipe, on the table where one comes along."""
        chosen = allowed(recipe, overrides or [])
        with tempfile.TemporaryDirectory(prefix="tl_nlp-upload-") as folder:
            job = jobs.add(chosen, None if file is None else _saved(file, Path(folder)))
        return JSONResponse(_told(jobs, job), 202)

    @v1.get("")
    def listed() -> dict[str, Any]:
        """All trainings, the newest last."""
        return {"runs": [_told(jobs, job) for job in jobs.all()]}

    @v1.get("/{job}")
    def one(job: JobId) -> dict[str, Any]:
        """How far a training is: stage, share done, seconds left, losses and scores."""
        return as_json(jobs.progress(job), jobs)

    @v1.get("/{job}/events", response_class=StreamingResponse)
    def events(job: JobId) -> StreamingResponse:
        """The same as server-sent events, about one a second, until it has ended."""
        jobs.get(job)

        async def told() -> AsyncIterator[str]:
            before = None
            while True:
                progress = await asyncio.to_thread(jobs.progress, job)
                line = json.dumps(as_json(progress, jobs))
                yield f"data: {line}\n\n" if line != before else ": still there\n\n"
                before = line
                if progress.job.status in _ENDED:
                    return
                await asyncio.sleep(_EVERY)

        return StreamingResponse(told(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    @v1.post("/{job}/cancel")
    def cancel(job: JobId) -> dict[str, Any]:
        """Takes it out of the queue, or stops it once its step is saved."""
        return _told(jobs, jobs.cancel(job))

    @v1.post("/{job}/resume")
    def resume(job: JobId) -> dict[str, Any]:
        """Goes on with a cancelled or failed one where it stopped."""
        return _told(jobs, jobs.resume(job))

    @v1.get("/{job}/result")
    def result(job: JobId) -> dict[str, Any]:
        """results.json: scores with intervals, baselines and the verdict."""
        return Run.open(jobs.get(job).folder).results()

    @v1.post("/{job}/serve")
    def serve(job: JobId) -> dict[str, str]:
        """Lets it answer /v1/predict, under the name that comes back."""
        run = Run.open(jobs.get(job).folder)
        run.results()  # it is finished, or this says so
        return {"run": service.add(run.folder).name}

    app.include_router(v1)

    @app.get("/v1/recipes", tags=["trainings"])
    def recipes() -> dict[str, Any]:
        """The recipes that can be trained."""
        return {"recipes": list(recipe_files())}


def allowed(name: str, overrides: list[str]) -> Recipe:
    """The recipe of that name in ./recipes; what a client says of it reaches no file of this machine.

    Raises RecipeError.
    """
    if name not in recipe_files():
        raise RecipeError(f"no recipe {name!r}; there are: {', '.join(recipe_files()) or 'none'}")
    for one in overrides:
        key, _, value = one.partition("=")
        if key in _PLACES:
            raise RecipeError("comes with the recipe or is the uploaded file", key)
        if key in ("checkpoint", "checkpoint.name") and not is_id(value):
            raise RecipeError(f"{value!r} is no name of the Hub, as owner/name", key)
    return load_recipe(name, *overrides)


def _saved(file: UploadFile, folder: Path) -> Path:
    """The uploaded table in a file whose name is ours. Raises DataError for a kind that is not read."""
    suffix = Path(file.filename or "").suffix.lower()
    if suffix not in READERS:
        raise DataError(f"a table ends in {', '.join(READERS)}, not {suffix or 'nothing'!r}")
    path = folder / f"table{suffix}"
    with path.open("wb") as target:
        shutil.copyfileobj(file.file, target)
    return path


def _told(jobs: Jobs, job: Job) -> dict[str, Any]:
    """A job as JSON; of its run no more than its place under the root of the runs."""
    values = {name: value for name, value in asdict(job).items() if name != "folder"}
    return {**values, "run": str(job.folder.relative_to(jobs.root))}


def as_json(progress: Progress, jobs: Jobs) -> dict[str, Any]:
    """How far a training is."""
    values = {name: value for name, value in vars(progress).items() if name != "job"}
    return {**_told(jobs, progress.job), **values}
