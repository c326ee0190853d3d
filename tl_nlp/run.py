"""The run directory: what training leaves behind. The only file that names the files in it."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from tl_nlp import disk
from tl_nlp.errors import NoRunError, RecipeError, RunError
from tl_nlp.recipe import Recipe

RECIPE = "recipe.json"
CERTIFICATE = "certificate.json"
_HASHES = "row_hashes.parquet"
_LINE = {"step", "epoch", "split", "values"}
_CHOICES = ("checkpoint", "data", "task", "method", "training")


class Run:
    """A run directory.

    recipe.json       the resolved recipe, written first
    environment.json  versions, revision, device, command, seeds
    data.json         splits, their sizes and fingerprints, and what the check found
    rejects.jsonl     rows that were left out, and why
    row_hashes.parquet  of every row, so that it is known later what was trained on
    metrics.jsonl     a line for each report: step, epoch, split, values
    checkpoints/      of the best and the last step, each complete or absent
    model/            the artifact: weights or adapter, tokenizer and recipe
    predictions/      of each test split: the rows, reference, prediction; those of baselines in folders of their own
    seeds/K folds/K sizes/N scratch   the runs inside a run of several
    results.json      scores, baselines and verdict, written last: its presence marks a finished run
    report.html       the page a person reads
    """

    def __init__(self, folder: Path):
        self.folder = folder

    # ---- where runs are

    @classmethod
    def create(cls, recipe: Recipe, root: Path | None = None) -> Run:
        """A new directory under `root` (default: $TL_NLP_RUNS, else ./runs) with the recipe in it."""
        home = (runs_root() if root is None else root) / recipe.name
        stamp = datetime.now().strftime("%Y-%m-%dT%H%M%S")
        folder, number = home / stamp, 1
        while True:
            try:
                folder.mkdir(parents=True)
                break
            except FileExistsError:
                number += 1
                folder = home / f"{stamp}-{number}"
        run = cls(folder)
        run._write(RECIPE, recipe.model_dump(mode="json"))
        return run

    def within(self, part: str, recipe: Recipe) -> Run:
        """The run inside this run at `part` (seeds/0, folds/3), made with its recipe where there is none yet.

        Raises RunError where it was begun with another one.
        """
        run = Run(self.folder / part)
        if (run.folder / RECIPE).is_file():
            if changed := differences(run.recipe().model_dump(mode="json"), recipe.model_dump(mode="json")):
                raise RunError(f"{run.folder} was begun with another recipe: {'; '.join(changed)}")
        else:
            run.folder.mkdir(parents=True, exist_ok=True)
            run._write(RECIPE, recipe.model_dump(mode="json"))
        return run

    def scratch(self) -> Run:
        """The run inside this run that learned from random weights."""
        return Run(self.folder / "scratch")

    def inside(self) -> list[Run]:
        """The runs inside this run, in the order they were begun."""
        found = [
            path
            for part in ("seeds/*", "folds/*", "sizes/*", "scratch")
            for path in self.folder.glob(f"{part}/{RECIPE}")
        ]
        return [Run(path.parent) for path in sorted(found, key=lambda path: path.stat().st_mtime_ns)]

    def adopt(self, part: Run) -> None:
        """Takes over everything of a run inside this one but its recipe, checkpoints and results."""
        for path in part.folder.iterdir():
            if path.name.startswith(".") or path.name in (RECIPE, "checkpoints", "results.json", "report.html"):
                continue
            target = self.folder / path.name
            if path.is_dir():
                with disk.writing(target) as folder:
                    shutil.copytree(path, folder, dirs_exist_ok=True)
            else:
                shutil.copy2(path, target)

    @classmethod
    def find(cls, folder: Path) -> Run | None:
        """The run in `folder`, or None where the folder is not one. An artifact or an export alone is not a run."""
        is_run = (folder / RECIPE).is_file() and not any(folder.glob("*.safetensors")) and not is_export(folder)
        return cls(folder) if is_run else None

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """The run at `path`. Raises NoRunError."""
        folder = Path(path)
        if not folder.is_dir():
            raise NoRunError(
                f"no run {str(path)!r}: there is no such directory; tl-nlp runs lists those under {runs_root()}"
            )
        run = cls.find(folder)
        if run is None and (folder / RECIPE).is_file():
            raise NoRunError(f"{path} is an artifact and no run; name the directory of its run")
        if run is None:
            raise NoRunError(f"{path} is no run: it holds no {RECIPE}; tl-nlp runs lists those under {runs_root()}")
        return run

    # ---- what is in one

    @property
    def model_dir(self) -> Path:
        return self.folder / "model"

    @property
    def artifact(self) -> Path:
        """The finished model/. Raises RunError."""
        if not (self.model_dir / RECIPE).is_file():
            raise RunError(f"{self.folder} has no trained model yet; tl-nlp train {self.folder} goes on with it")
        return self.model_dir

    @property
    def is_finished(self) -> bool:
        return (self.folder / "results.json").is_file()

    @property
    def is_begun(self) -> bool:
        """Whether a training has written here."""
        return (self.folder / "environment.json").is_file()

    @property
    def status(self) -> str:
        """finished, running, interrupted (it was begun, and nobody goes on with it) or started (nobody has begun)."""
        if self.is_finished:
            return "finished"
        if disk.is_locked(self.folder):
            return "running"
        begun = disk.was_locked(self.folder) or (self.folder / "checkpoints").is_dir()
        return "interrupted" if begun else "started"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Within the block this process is the only one that writes here. Raises LockedError."""
        with disk.locked(self.folder):
            yield
            if self.is_finished:  # else the lock stays, free, as the mark of an interrupted run
                disk.forget_lock(self.folder)

    def trained_recipe(self) -> Recipe:
        """The recipe of its artifact, which validation has added to: a temperature, thresholds. Raises RunError."""
        return read_recipe(self.artifact)

    @property
    def report_file(self) -> Path:
        return self.folder / "report.html"

    def recipe(self) -> Recipe:
        return read_recipe(self.folder)

    def results(self) -> dict[str, Any]:
        """results.json. Raises RunError while the run is not finished."""
        if not self.is_finished:
            raise RunError(f"{self.folder} is not finished; tl-nlp train {self.folder} goes on with it")
        return _read(self.folder / "results.json")

    def data(self) -> dict[str, Any]:
        """data.json, {} before the data was read."""
        path = self.folder / "data.json"
        return _read(path) if path.is_file() else {}

    def log(self, step: int, epoch: float, split: str, values: Mapping[str, float | str]) -> None:
        """Adds a line to metrics.jsonl: of the splits that are scored, and of what befell ("bad_step", "memory")."""
        line = {"step": step, "epoch": round(epoch, 4), "split": split, "values": values}
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def history(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; one that is being written is left out. Raises RunError for a damaged one."""
        good, bad = self._lines()
        if bad:
            raise RunError(
                f"{self.folder / 'metrics.jsonl'}, line {bad[0]}: it is damaged; without it the rest is read"
            )
        return good

    def _lines(self) -> tuple[list[dict[str, Any]], list[int]]:
        """The lines of metrics.jsonl, and the numbers of those that are none."""
        path = self.folder / "metrics.jsonl"
        good: list[dict[str, Any]] = []
        bad = []
        for number, line in enumerate(path.read_bytes().split(b"\n")[:-1] if path.is_file() else [], 1):
            try:
                told = json.loads(line)
                if not (told.keys() >= _LINE and isinstance(told["step"], int) and isinstance(told["values"], dict)):
                    raise ValueError(line)
                good.append(told)
            except (ValueError, AttributeError, RecursionError):
                bad.append(number)
        return good, bad

    def curves(self) -> tuple[list[tuple[int, float]], list[dict[str, float]]]:
        """Step and loss of the reports on training rows; epoch and metrics of those on validation rows."""
        losses: dict[int, float] = {}  # by step: a training that began again without a checkpoint tells some twice
        scores: dict[int, dict[str, float]] = {}
        for line in self.history():
            if line["split"] == "train":
                losses[line["step"]] = line["values"]["loss"]
            elif line["split"] == "validation":
                scores[line["step"]] = {"epoch": line["epoch"], **line["values"]}
        return sorted(losses.items()), [scores[step] for step in sorted(scores)]

    def forget_after(self, step: int) -> None:
        """Drops the lines of metrics.jsonl beyond `step`, which a resumed training writes again, and damaged ones."""
        good, bad = self._lines()
        if bad:
            print(f"metrics.jsonl, line {bad[0]}: it is damaged and dropped, as {len(bad)} are", file=sys.stderr)
        lines = [json.dumps(line) + "\n" for line in good if line["step"] <= step]
        if (self.folder / "metrics.jsonl").exists():
            disk.write_text(self.folder / "metrics.jsonl", "".join(lines))

    def environment(self) -> dict[str, Any]:
        """environment.json."""
        return _read(self.folder / "environment.json")

    def write_environment(self, values: dict[str, Any]) -> None:
        self._write("environment.json", values)

    def write_data(self, values: dict[str, Any]) -> None:
        self._write("data.json", values)

    def write_rejects(self, rejects: list[dict[str, Any]]) -> None:
        lines = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in rejects)
        (self.folder / "rejects.jsonl").write_text(lines, "utf-8")

    def write_hashes(self, hashes: dict[str, np.ndarray]) -> None:
        """Hashes of the rows of each split."""
        import pyarrow as pa
        import pyarrow.parquet

        splits = np.repeat(list(hashes), [len(theirs) for theirs in hashes.values()])
        table = pa.table({"split": splits, "hash": np.concatenate(list(hashes.values()))})
        pyarrow.parquet.write_table(table, self.folder / _HASHES)

    def trained_hashes(self) -> np.ndarray:
        """Hashes of the rows it learned from or was chosen by; none where the run does not know. Raises RunError."""
        import pyarrow as pa
        import pyarrow.parquet

        path = self.folder / _HASHES
        if not path.is_file():
            return np.empty(0, np.uint64)
        try:
            table = pyarrow.parquet.read_table(path)
            return table["hash"].to_numpy()[np.isin(table["split"].to_pylist(), ["train", "validation"])]
        except (OSError, KeyError, pa.ArrowException) as error:
            raise RunError(f"{path} cannot be read: {error}") from None

    @property
    def growth_file(self) -> Path:
        return self.folder / "learning_curve.png"

    def write_growth(self, values: dict[str, Any]) -> None:
        self._write("learning_curve.json", values)

    def write_results(self, values: dict[str, Any]) -> None:
        self._write("results.json", values)

    def predictions_file(self, split: str, baseline: str | None = None) -> Path:
        """The predictions of the model, or of a baseline, for a split."""
        folder = self.folder / "predictions" / (f"baseline-{baseline}" if baseline else "")
        folder.mkdir(exist_ok=True, parents=True)
        return folder / f"{split}.parquet"

    def baselines(self) -> list[str]:
        """The baselines whose predictions it holds."""
        return [path.name[len("baseline-") :] for path in sorted((self.folder / "predictions").glob("baseline-*"))]

    def checkpoint_dir(self, step: int) -> Path:
        return self.folder / "checkpoints" / f"step-{step:07d}"

    def checkpoint_steps(self) -> list[int]:
        """The steps of the checkpoints, the newest last."""
        return sorted(int(path.name[5:]) for path in (self.folder / "checkpoints").glob("step-[0-9]*"))

    def forget_partial_checkpoints(self) -> list[str]:
        """Removes what a kill has left of checkpoints that were being written or removed; the names of the former."""
        left = sorted((self.folder / "checkpoints").glob(".step-*"))
        for path in left:
            shutil.rmtree(path, ignore_errors=True)
        return [path.name for path in left if path.suffix == ".partial"]

    def _write(self, name: str, values: dict[str, Any]) -> None:
        disk.write_text(self.folder / name, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def runs_root() -> Path:
    return Path(os.environ.get("TL_NLP_RUNS", "runs"))


def all_runs(root: Path | None = None) -> list[Run]:
    """The runs under `root`, the newest last."""
    found = [Run.find(path.parent) for path in (runs_root() if root is None else root).glob(f"*/*/{RECIPE}")]
    return sorted((run for run in found if run is not None), key=lambda run: (run.folder.name, str(run.folder)))


def newest_runs(root: Path | None = None) -> list[Run]:
    """The newest finished run of each recipe under `root`."""
    newest = {run.folder.parent.name: run for run in all_runs(root) if run.is_finished}
    return [newest[name] for name in sorted(newest)]


def is_export(folder: Path) -> bool:
    """Whether the folder is what `tl-nlp export` writes."""
    return (folder / CERTIFICATE).is_file()


def read_certificate(folder: Path) -> dict[str, Any]:
    """What an export was found to be when it was written. Raises RunError where it is damaged."""
    return _read(folder / CERTIFICATE)


def artifact_folder(path: str | Path) -> Path:
    """The artifact of a run, or `path` itself where it is an artifact or an export. Raises RunError."""
    folder = Path(path)
    if (folder / RECIPE).is_file() and Run.find(folder) is None:
        return folder
    return Run.open(path).artifact


def data_of(folder: Path) -> dict[str, Any]:
    """What is known of the data of a run, or of an artifact that was published with its scores; {} where nothing is."""
    run = Run.find(folder)
    return run.data() if run else results_of(folder).get("data", {})


def results_of(folder: Path) -> dict[str, Any]:
    """The scores of a finished run, or those that an artifact was published with; {} where there are none."""
    path = folder / "results.json"
    return _read(path) if path.is_file() else {}


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What two recipes, as JSON, choose differently; names, licences and notes choose nothing."""

    def flat(node: Any, key: str) -> dict[str, Any]:
        if not isinstance(node, dict) or not node:
            return {key: node}
        return {name: value for part in node for name, value in flat(node[part], f"{key}.{part}").items()}

    one, other = ({k: v for part in _CHOICES for k, v in flat(each.get(part), part).items()} for each in (before, now))
    keys = [key for key in {**one, **other} if one.get(key) != other.get(key)]
    return [f"{key} was {json.dumps(one.get(key))} and is {json.dumps(other.get(key))}" for key in keys]


def read_recipe(folder: Path) -> Recipe:
    """The recipe in a run directory or an artifact. Raises RunError where it is damaged."""
    values = _read(folder / RECIPE)
    try:
        return Recipe(**values)
    except (RecipeError, TypeError) as error:  # a key that is no text is no argument
        raise RunError(f"{folder / RECIPE} does not hold a recipe of this version: {error}") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise RunError(f"{path} holds no JSON object")
    return values
