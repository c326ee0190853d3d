"""The queue of trainings, with real processes, signals and the real database."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest
import torch
from conftest import artifact, review_rows, tiny_recipe, write_jsonl

from tl_nlp import Recipe, Run, train
from tl_nlp.errors import DataError, FullQueueError, JobError, NoJobError, RecipeError, RunError
from tl_nlp.jobs import Job, Jobs
from tl_nlp.run import all_runs

SERVER = """
import sys, time
from pathlib import Path
from tl_nlp.jobs import Jobs

jobs = Jobs(Path(sys.argv[1]))
assert jobs.start()
print("started", flush=True)
time.sleep(600)
"""


def until(is_so: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.time() + seconds
    while not is_so():
        assert time.time() < deadline, "it did not happen"
        time.sleep(0.02)


def ended(jobs: Jobs, job: Job) -> Job:
    until(lambda: jobs.get(job.id).status not in ("queued", "running"))
    return jobs.get(job.id)


def trainings(job: Job) -> list[psutil.Process]:
    """The living processes that train a job's run."""
    command = ["train", str(job.folder)]
    found = [one for one in psutil.process_iter(["cmdline", "status"]) if (one.info["cmdline"] or [])[-2:] == command]
    return [one for one in found if one.info["status"] != psutil.STATUS_ZOMBIE]


@pytest.fixture
def server(own_runs: Path) -> Iterator[subprocess.Popen[str]]:
    """A server of a process of its own, which works the queue."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(own_runs)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TQDM_MININTERVAL": "0.01"},  # the bar of a short training moves
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        yield process
        process.kill()


@pytest.fixture
def recipe(reviews: Path, tiny_bert: Path) -> Recipe:
    return tiny_recipe(tiny_bert, reviews)


def test_jobs_are_trained_one_after_the_other(recipe: Recipe, tmp_path: Path) -> None:
    """A table that was uploaded, a column that is not there, one that is taken out of the queue."""
    client = tmp_path / "Müller, private.CSV"
    client.write_text("text,target\n" + "".join(f"{row['text']},{row['target']}\n" for row in review_rows(120)))
    jobs = Jobs(max_waiting=3)
    with closing(jobs):
        uploaded = jobs.add(recipe, client)
        bad = jobs.add(recipe.override("data.target=stars"))
        cancelled = jobs.add(recipe)
        with pytest.raises(FullQueueError, match="3 trainings wait"):
            jobs.add(recipe)
        assert [job.status for job in jobs.all()] == ["queued"] * 3
        assert jobs.progress(bad.id).stage == "waiting for 1 before it"
        assert jobs.cancel(cancelled.id).status == "cancelled"
        with pytest.raises(JobError, match="is cancelled; those that wait or run can be cancelled"):
            jobs.cancel(cancelled.id)
        assert jobs.start()

        done, failed = ended(jobs, uploaded), ended(jobs, bad)
    assert done.status == "finished", done.error
    assert done.queued <= done.started <= done.ended <= failed.started
    assert Run.open(done.folder).is_finished
    progress = jobs.progress(done.id)
    assert (progress.stage, progress.share, progress.seconds_left) == ("finished", 1.0, 0.0)
    assert [step for step, _ in progress.losses] == list(range(1, 7))
    assert progress.scores[0]["epoch"] == 1.0 and progress.main_metric in progress.scores[0]
    assert failed.status == "failed"
    assert failed.error == "data.target: no column 'stars' in split train; there are: text, target"
    assert jobs.get(cancelled.id).status == "cancelled" and jobs.get(cancelled.id).started is None

    (table,) = (jobs.folder / "files").rglob("*.*")
    assert table == jobs.folder / "files" / done.id / "table.csv"
    assert table.read_bytes() == client.read_bytes()
    assert all(b"ller" not in path.read_bytes() for path in jobs.folder.rglob("*") if path.is_file())
    assert {run.folder for run in all_runs()} == {job.folder for job in jobs.all()}


@pytest.mark.slow
def test_a_training_survives_its_servers(tiny_bert: Path, own_runs: Path, server: subprocess.Popen[str]) -> None:
    """kill -9 of the server, taken over by the next one, closed, begun again, cancelled, resumed: the same weights."""
    rows = write_jsonl(own_runs.parent / "rows.jsonl", review_rows(600))
    recipe = tiny_recipe(tiny_bert, rows).override(
        "training.epochs=8", "training.dropout=0.1", "training.device_batch_size=8"
    )
    jobs = Jobs()
    job = jobs.add(recipe)
    behind = jobs.add(recipe)

    def steps() -> int:
        return max((step for step, _ in jobs.progress(job.id).losses), default=0)

    def trains_beyond(step: int) -> None:
        until(lambda: steps() > step or jobs.get(job.id).status == "failed")
        assert jobs.get(job.id).status == "running", jobs.get(job.id).error

    trains_beyond(0)
    with closing(Jobs()) as other:
        assert not other.start()  # two servers run no two trainings
        (process,) = trainings(job)
        assert jobs.get(behind.id).status == "queued"
        server.kill()
        server.wait()
        assert process.is_running()
        until(lambda: other.is_working)
        trains_beyond(steps())
        assert trainings(job) == [process]
        until(lambda: jobs.progress(job.id).share)
        progress = jobs.progress(job.id)
        assert progress.stage == "training" and 0 < progress.share < 1, progress
        assert progress.seconds_left is not None
    assert not trainings(job)
    assert jobs.get(job.id).status == "queued"
    assert jobs.progress(job.id).stage == "waiting, next in line"
    assert Run.open(job.folder).checkpoint_steps()

    seen = steps()
    with closing(jobs):
        assert jobs.start()
        trains_beyond(seen)
        assert jobs.cancel(job.id).stopping
        jobs.cancel(behind.id)
        assert ended(jobs, job).status == "cancelled"
        assert Run.open(job.folder).checkpoint_steps()[-1] > seen
        assert jobs.resume(job.id).status == "queued"
        assert ended(jobs, job).status == "finished", jobs.get(job.id).error
        with pytest.raises(JobError, match="is finished; those that are cancelled or failed can be resumed"):
            jobs.resume(job.id)
    whole = artifact(train(recipe, root=own_runs.parent / "whole"))
    assert all(torch.equal(artifact(Run.open(job.folder))[name], tensor) for name, tensor in whole.items())


def test_what_ended_with_its_server_is_begun_again_first(
    recipe: Recipe, own_runs: Path, server: subprocess.Popen[str]
) -> None:
    jobs = Jobs()
    job, behind = jobs.add(recipe), jobs.add(recipe)
    until(lambda: trainings(job))
    begun = jobs.get(job.id).started
    server.kill()
    server.wait()
    for process in trainings(job):
        process.kill()
    with closing(jobs):
        assert jobs.start()
        until(lambda: jobs.get(job.id).started != begun and trainings(job))
    assert [jobs.get(one.id).status for one in (job, behind)] == ["queued", "queued"]
    assert not trainings(job)


def test_a_training_that_is_cut_off_again_and_again_fails(recipe: Recipe) -> None:
    with closing(Jobs()) as jobs:
        job = jobs.add(recipe)
        assert jobs.start()
        known: set[int] = set()
        for _ in range(4):
            until(lambda: {one.pid for one in trainings(job)} - known)
            for process in trainings(job):
                known.add(process.pid)
                process.terminate()
        assert ended(jobs, job).error == "it was cut off 4 times; resumed, it goes on from its last step"


def test_a_training_that_does_not_stop_is_killed(recipe: Recipe) -> None:
    with closing(Jobs(grace=0.5)) as jobs:
        job = jobs.add(recipe)
        assert jobs.start()
        until(lambda: trainings(job))
        trainings(job)[0].suspend()
        jobs.cancel(job.id)
        assert ended(jobs, job).status == "cancelled"
        assert not trainings(job)


def test_what_the_system_kills_says_so(recipe: Recipe) -> None:
    with closing(Jobs()) as jobs:
        job = jobs.add(recipe)
        assert jobs.start()
        until(lambda: trainings(job))
        os.kill(trainings(job)[0].pid, signal.SIGKILL)
        assert ended(jobs, job).error.startswith("the system killed it, most often for memory")


@pytest.mark.parametrize("job", ["nothing", "../../etc/passwd", "' OR 1=1 --", "", "*"])
def test_an_id_is_looked_up_and_no_path(job: str) -> None:
    jobs = Jobs()
    for ask in (jobs.get, jobs.cancel, jobs.resume, jobs.progress):
        with pytest.raises(NoJobError, match="jobs are named by the ids"):
            ask(job)


def test_tables_that_no_recipe_reads_are_refused(recipe: Recipe, tmp_path: Path) -> None:
    jobs = Jobs()
    script = tmp_path / "table.py"
    script.write_text("print()")
    with pytest.raises(DataError, match=r"files of rows end in \.csv, \.tsv, \.jsonl, \.parquet, not '\.py'"):
        jobs.add(recipe, script)
    with pytest.raises(DataError, match="is no longer there; send it again"):
        jobs.add(recipe, tmp_path / "gone.csv")
    with pytest.raises(RecipeError, match="data: aclsum has no path"):
        jobs.add(recipe.override("data=aclsum"), script)
    assert jobs.all() == [] and all_runs() == []


def test_a_queue_that_cannot_be_read_is_told(own_runs: Path) -> None:
    Jobs()
    (own_runs / ".jobs" / "queue.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(RunError, match=r"queue\.sqlite cannot be used: file is not a database"):
        Jobs()
    with pytest.raises(RunError, match="the queue of trainings cannot be kept in"):
        Jobs(own_runs / ".jobs" / "queue.sqlite")


def test_the_end_of_a_large_log_is_read(recipe: Recipe) -> None:
    """Of a running job; the bars are those of tqdm."""
    from tqdm import tqdm

    jobs = Jobs()
    job = jobs.add(recipe)
    with jobs._changing() as db:
        db.execute("UPDATE jobs SET status='running'")
    assert jobs.progress(job.id).stage == "starting"
    log = jobs.folder / "logs" / f"{job.id}.log"
    with log.open("w", encoding="utf-8") as file:
        bar = tqdm.format_meter(30, 60, 3700.0, prefix="training", unit="step", postfix="loss=0.693, lr=1.0e-05")
        file.write((bar.replace("30/60", "29/60") + "\r") * 100_000)
        file.write(
            bar + "\r                  \repoch 1.00, validation: accuracy 0.5\nLoading weights: 100%|█| 1/1 [00:00<?]"
        )
    progress = jobs.progress(job.id)
    assert (progress.stage, progress.share, progress.seconds_left) == ("training", 0.5, 3700.0)
    with log.open("a", encoding="utf-8") as file:
        file.write("\n" + tqdm.format_meter(0, 60, 0.0, prefix="features of train"))
    progress = jobs.progress(job.id)
    assert (progress.stage, progress.share, progress.seconds_left) == ("looking at the data", 0.0, None)


def test_a_run_of_several_tells_which_one_it_is_at(recipe: Recipe) -> None:
    jobs = Jobs()
    job = jobs.add(recipe.override("training.seeds=3"))
    run = Run.open(job.folder)
    for seed in range(2):
        run.within(f"seeds/{seed}", recipe).log(1, 1.0, "train", {"loss": 0.5 + seed})
    with jobs._changing() as db:
        db.execute("UPDATE jobs SET status='running'")
    progress = jobs.progress(job.id)
    assert progress.stage == "starting, run 2 of 3" and progress.losses == [(1, 1.5)]
