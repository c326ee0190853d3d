"""The queue of trainings: each in a process of its own, one at a time, in an order that outlives the server.

Under the root of the runs, where no run is looked for:

.jobs/queue.sqlite    the jobs
.jobs/server.lock     held by the one server that begins trainings
.jobs/logs/ID.log     what a job's training has printed since it was last begun
.jobs/files/ID/       the table that was uploaded with it
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from tl_nlp.errors import DataError, FullQueueError, JobError, NoJobError, RecipeError, RunError
from tl_nlp.printed import last_bar, tail
from tl_nlp.recipe import Recipe
from tl_nlp.run import Run, runs_root
from tl_nlp.tables import READERS

Status = Literal["queued", "running", "finished", "failed", "cancelled"]

MAX_LOST = 3  # sessions of a job that may end with their server or without a word, before it fails
_POLL = 0.2  # seconds
_PAUSE = 5.0  # seconds, after the queue could not be read or written
_COMPLAINT = "tl-nlp: "
_SAME_START = 1.0  # seconds that two readings of one process's start may differ by
_STOPPED = (128 + signal.SIGTERM, 128 + signal.SIGINT, -signal.SIGTERM, -signal.SIGINT)


@dataclass(frozen=True)
class Job:
    """A training that waits, goes on or has ended. Times are seconds since 1970, UTC."""

    id: str
    folder: Path  # of its run
    name: str  # of its recipe
    status: Status
    queued: float
    started: float | None = None  # when its process was last begun; a queued job that has one goes on from there
    ended: float | None = None
    error: str | None = None  # one sentence, where it failed
    stopping: bool = False  # it is asked to stop, and does once its step is saved


@dataclass(frozen=True)
class Progress:
    """How far a job is. `share` (0 to 1) and `seconds_left` are of the stage, None where it does not tell them."""

    job: Job
    stage: str
    share: float | None
    seconds_left: float | None
    losses: list[tuple[int, float]]  # step, loss on training rows
    scores: list[dict[str, float]]  # of validation: epoch and metrics
    main_metric: str  # which of the metrics picks the model


class Jobs:
    """The queue under a root of runs (default: $TL_NLP_RUNS, else ./runs). Any number of servers may add, list and
    cancel; the first that starts begins the trainings, and another takes over once it has closed."""

    def __init__(self, root: Path | None = None, *, max_waiting: int = 20, grace: float = 60.0):
        """`grace`: seconds that a training has to save its step, after which it is killed. Raises RunError."""
        self.root = (runs_root() if root is None else root).absolute()
        self.folder = self.root / ".jobs"
        self.max_waiting, self.grace = max_waiting, grace
        try:
            (self.folder / "logs").mkdir(parents=True, exist_ok=True)
            self.folder.chmod(0o700)  # uploaded tables are nobody else's
        except OSError as error:
            raise RunError(f"the queue of trainings cannot be kept in {self.folder}: {error.strerror}") from None
        with self._opened() as db:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute(_TABLE)
        self._closing = threading.Event()
        self._lock: int | None = None
        self._thread: threading.Thread | None = None

    # ---- what clients ask

    def add(self, recipe: Recipe, uploaded: Path | None = None) -> Job:
        """Makes a run of the recipe and queues it; the table `uploaded` is copied and becomes its `data.path`.

        Raises FullQueueError, RecipeError and DataError.
        """
        job = secrets.token_hex(6)
        with self._changing() as db:
            self._refuse_many(db)
            if uploaded is not None:
                recipe = _reading(recipe, uploaded, self.folder / "files" / job)
            folder = str(Run.create(recipe, self.root).folder.relative_to(self.root))
            values = (job, folder, recipe.name, "queued", _last(db), time.time())
            db.execute("INSERT INTO jobs (id, folder, name, status, place, queued) VALUES (?, ?, ?, ?, ?, ?)", values)
        return self.get(job)

    def all(self) -> list[Job]:
        """The jobs, the newest last."""
        with self._opened() as db:
            return [self._job(row) for row in db.execute("SELECT * FROM jobs ORDER BY queued, rowid")]

    def get(self, job: str) -> Job:
        """The job of that id. Raises NoJobError."""
        with self._opened() as db:
            return self._job(_row(db, job))

    def cancel(self, job: str) -> Job:
        """Takes a job out of the queue, or asks its training to stop: that saves its step, and `resume` goes on.

        Raises JobError where it has ended.
        """
        with self._changing() as db:
            row = _row(db, job)
            if row["status"] == "queued":
                _set(db, job, status="cancelled", ended=time.time())
            elif row["status"] == "running":
                _set(db, job, wanted="cancelled")
            else:
                raise JobError(f"job {job} is {row['status']}; those that wait or run can be cancelled")
        return self.get(job)

    def resume(self, job: str) -> Job:
        """Puts a cancelled or failed job at the end of the queue; it goes on from its last checkpoint.

        Raises JobError for others, and FullQueueError.
        """
        with self._changing() as db:
            row = _row(db, job)
            if row["status"] not in ("cancelled", "failed"):
                raise JobError(f"job {job} is {row['status']}; those that are cancelled or failed can be resumed")
            self._refuse_many(db)
            _set(db, job, status="queued", place=_last(db), ended=None, error=None, n_lost=0)
        return self.get(job)

    def progress(self, job: str) -> Progress:
        """How far a job is. Raises NoJobError, and RunError where its run is gone."""
        with self._opened() as db:
            row = _row(db, job)
            others = db.execute(
                "SELECT * FROM jobs WHERE status='running' OR status='queued' AND place<?", (row["place"],)
            )
            ahead = len(others.fetchall())
        found, run = self._job(row), Run.open(self.root / row["folder"])
        recipe, parts = run.recipe(), run.inside()
        stage, share, seconds_left = str(found.status), None, None
        if found.status == "finished":
            share, seconds_left = 1.0, 0.0
        elif found.status == "queued":
            stage = f"waiting for {ahead} before it" if ahead else "waiting, next in line"
        elif found.stopping:
            stage = "stopping, once its step is saved"
        elif found.status == "running":
            stage, share, seconds_left = last_bar(tail(self._log(found.id)))
            n_parts = (recipe.data.folds if recipe.data.fold is None else None) or recipe.training.seeds
            stage += f", run {len(parts)} of {n_parts}" if parts and n_parts > 1 else ""
        losses, scores = (parts[-1] if parts and not run.history() else run).curves()
        return Progress(found, stage, share, seconds_left, losses, scores, recipe.task.main_metric)

    # ---- the server

    def start(self) -> bool:
        """Begins to work the queue beside the caller, first going on with what was interrupted. Returns False where
        another server works it: this one then waits to take over."""
        if self._thread is None:
            self._closing.clear()
            self._take_lock()
            self._thread = threading.Thread(target=self._work, name="jobs", daemon=True)
            self._thread.start()
        return self.is_working

    @property
    def is_working(self) -> bool:
        """Whether this server is the one that begins trainings."""
        return self._lock is not None

    def close(self) -> None:
        """Interrupts the training that goes on, which saves its step and goes on at the next start; waits for that, at
        most `grace` seconds. A server that is killed leaves it running, and the next one takes it over."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _work(self) -> None:
        while not self._closing.is_set():
            try:
                if not (self._take_lock() and self._work_once()):
                    self._closing.wait(_POLL)
            except Exception as error:  # a full disk may have room again
                print(f"the queue of trainings stands still: {error}", file=sys.stderr)
                self._closing.wait(_PAUSE)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _take_lock(self) -> bool:
        """Whether this server holds the lock, which the system takes back when the server dies, however it does."""
        if self._lock is None:
            lock = os.open(self.folder / "server.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._lock = lock
            except BlockingIOError:
                os.close(lock)
        return self._lock is not None

    def _work_once(self) -> bool:
        """Sees one training through; returns whether there was one."""
        with self._opened() as db:
            row = db.execute("SELECT * FROM jobs WHERE status='running'").fetchone()
        if row is not None:  # begun by a server that is gone
            process = self._process(row)
        else:
            with self._changing() as db:
                row = db.execute("SELECT * FROM jobs WHERE status='queued' ORDER BY place LIMIT 1").fetchone()
                if row is None:
                    return False
                _set(db, row["id"], status="running", started=time.time())
            process = self._begun(row)
        self._settle(row["id"], None if process is None else self._watched(row["id"], process))
        return True

    def _begun(self, row: sqlite3.Row) -> psutil.Process:
        with self._log(row["id"]).open("wb") as log:
            process = psutil.Popen(
                [sys.executable, "-m", "tl_nlp", "train", str(self.root / row["folder"])],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={"TQDM_MININTERVAL": "0.5", **os.environ},
                start_new_session=True,  # what interrupts the server's terminal is not for it
            )
        with self._changing() as db:
            _set(db, row["id"], pid=process.pid, born=process.create_time())
        return process

    def _process(self, row: sqlite3.Row) -> psutil.Process | None:
        """The process of a running job, if it lives: by its number and start; where the server was killed before it
        wrote these down, by its command."""
        command = ["train", str(self.root / row["folder"])]
        try:
            if row["pid"] is None:
                found = (one for one in psutil.process_iter(["cmdline"]) if (one.info["cmdline"] or [])[-2:] == command)
                return next(found, None)
            process = psutil.Process(row["pid"])
            is_same = abs(process.create_time() - row["born"]) < _SAME_START
            return process if is_same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return None

    def _watched(self, job: str, process: psutil.Process) -> int | None:
        """Waits for a training's end, and stops it where that is asked; its exit status, None where only its parent,
        a server that is gone, was told it."""
        while True:
            with suppress(psutil.TimeoutExpired):
                return process.wait(timeout=_POLL)
            with suppress(psutil.NoSuchProcess):
                if not isinstance(process, psutil.Popen) and process.status() == psutil.STATUS_ZOMBIE:
                    return None
            with self._opened() as db:
                row = _row(db, job)
            is_over = row["wanted"] is not None or self._closing.is_set()
            if is_over and row["signalled"] is None:  # once: a second signal would not wait for the checkpoint
                with self._changing() as db:
                    _set(db, job, signalled=time.time(), wanted=_row(db, job)["wanted"] or "queued")
                with suppress(psutil.NoSuchProcess):
                    process.terminate()
            elif is_over and time.time() - row["signalled"] > self.grace:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)

    def _settle(self, job: str, exit_status: int | None) -> None:
        """Writes down how a session of a job has ended."""
        with self._changing() as db:
            row = _row(db, job)
            complaints = [line for line in tail(self._log(job)) if line.startswith(_COMPLAINT)]
            said = complaints[-1].removeprefix(_COMPLAINT) if complaints else None
            is_lost = exit_status in _STOPPED
            if exit_status is None:
                is_lost = said is None or said.startswith("stopped ")
            is_lost &= row["wanted"] is None
            n_lost = row["n_lost"] + is_lost
            status = "failed"
            error: str | None = said or f"it ended with status {exit_status} and said nothing"
            if Run(self.root / row["folder"]).is_finished:
                status, error = "finished", None
            elif row["wanted"] is not None or (is_lost and n_lost <= MAX_LOST):
                status, error = row["wanted"] or "queued", None
            elif is_lost:  # it may be what brings the server down
                error = f"it was cut off {n_lost} times; resumed, it goes on from its last step"
            elif exit_status == -signal.SIGKILL:
                error = "the system killed it, most often for memory; training.device_batch_size=auto takes less"
            ended = None if status == "queued" else time.time()
            _set(db, job, status=status, error=error, ended=ended, n_lost=n_lost, **_NO_PROCESS)

    # ---- the database

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        """A connection for the block: threads and processes share none. Raises RunError for the database's errors."""
        path = self.folder / "queue.sqlite"
        try:
            with closing(sqlite3.connect(path, timeout=30, isolation_level=None)) as db:
                db.row_factory = sqlite3.Row
                yield db
        except sqlite3.Error as error:
            raise RunError(f"the queue {path} cannot be used: {error}") from None

    @contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that nobody else writes beside."""
        with self._opened() as db, db:  # commits where the block ends well, else takes all back
            db.execute("BEGIN IMMEDIATE")
            yield db

    def _refuse_many(self, db: sqlite3.Connection) -> None:
        n_waiting = db.execute("SELECT count(*) FROM jobs WHERE status='queued'").fetchone()[0]
        if n_waiting >= self.max_waiting:
            raise FullQueueError(f"{n_waiting} trainings wait, which is the most that may; cancel one, or wait")

    def _log(self, job: str) -> Path:
        return self.folder / "logs" / f"{job}.log"

    def _job(self, row: sqlite3.Row) -> Job:
        same = {name: row[name] for name in ("id", "name", "status", "queued", "started", "ended", "error")}
        return Job(folder=self.root / row["folder"], stopping=row["wanted"] is not None, **same)


_TABLE = """CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY, folder TEXT NOT NULL, name TEXT NOT NULL, status TEXT NOT NULL, place INTEGER NOT NULL,
    queued REAL NOT NULL, started REAL, ended REAL, error TEXT,
    pid INTEGER, born REAL, wanted TEXT, signalled REAL, n_lost INTEGER NOT NULL DEFAULT 0
)"""
_NO_PROCESS = {"pid": None, "born": None, "wanted": None, "signalled": None}


def _set(db: sqlite3.Connection, job: str, **values: Any) -> None:
    names = ", ".join(f"{name}=?" for name in values)  # names of columns, which no client sends
    db.execute(f"UPDATE jobs SET {names} WHERE id=?", (*values.values(), job))


def _last(db: sqlite3.Connection) -> int:
    """The place behind all others."""
    return db.execute("SELECT coalesce(max(place), 0) + 1 FROM jobs").fetchone()[0]


def _row(db: sqlite3.Connection, job: str) -> Any:
    row = db.execute("SELECT * FROM jobs WHERE id=?", (str(job),)).fetchone()
    if row is None:
        raise NoJobError(f"no job {str(job)[:40]!r}; jobs are named by the ids that the list of them shows")
    return row


def _reading(recipe: Recipe, uploaded: Path, folder: Path) -> Recipe:
    """The recipe on a copy of the table in `folder`, of whose own name only the kind of file is kept."""
    if recipe.data.kind != "files":
        raise RecipeError(f"{recipe.data.kind} has no path, which an uploaded table takes the place of", "data")
    packed = ".gz" if uploaded.suffix.lower() == ".gz" else ""
    suffix = (Path(uploaded.stem) if packed else uploaded).suffix.lower()
    if suffix not in READERS:
        raise DataError(f"files of rows end in {', '.join(READERS)}, not {suffix or 'nothing'!r}")
    if not uploaded.is_file():
        raise DataError("the uploaded table is no longer there; send it again")
    folder.mkdir(parents=True)
    copy = folder / f"table{suffix}{packed}"
    shutil.copyfile(uploaded, copy)
    data = {**recipe.data.model_dump(mode="json"), "path": str(copy), "train": None, "validation": None, "test": None}
    return Recipe(**{**recipe.model_dump(mode="json"), "data": {**data, "tests": {}}})
