"""A run trained again from its own recipe: the same bits, scores within the intervals, or neither."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tl_nlp.environment import changes
from tl_nlp.errors import RunError
from tl_nlp.pretrained import file_hash
from tl_nlp.run import Run
from tl_nlp.studies import train


@dataclass(frozen=True)
class Pair:
    """A metric of a split in the run and in its repetition, each with its 95 % interval where it has one."""

    split: str
    metric: str
    before: dict[str, float]
    again: dict[str, float]

    @property
    def is_equal(self) -> bool:
        return self.before["value"] == self.again["value"]

    @property
    def agrees(self) -> bool:
        """Whether each value lies in the other's interval; without intervals whether they are equal."""
        sides = ((self.before, self.again), (self.again, self.before))
        return self.is_equal or all(
            "low" in one and one["low"] <= other["value"] <= one["high"] for one, other in sides
        )

    def __str__(self) -> str:
        told = "equal" if self.is_equal else "within the intervals" if self.agrees else "differs"
        return f"{self.split}  {self.metric}  {_shown(self.before)}  {_shown(self.again)}  {told}"


def _shown(one: dict[str, float]) -> str:
    return f"{one['value']:.4g}" + (f" [{one['low']:.4g}, {one['high']:.4g}]" if "low" in one else "")


@dataclass(frozen=True)
class Reproduction:
    """What came of training a run's recipe again. `unlike` is what computes differently from the first time."""

    run: Run
    again: Run
    main_metric: str
    pairs: list[Pair]
    has_same_weights: bool
    unlike: list[str]

    @property
    def agrees(self) -> bool:
        """Whether the main metric of every test split does; of many others one in twenty may be off by chance."""
        return all(pair.agrees for pair in self.pairs if pair.metric == self.main_metric)

    def verdict(self) -> str:
        if self.has_same_weights:
            return "bit for bit: the weights are the same"
        off = [pair for pair in self.pairs if not pair.agrees]
        is_main = [pair for pair in off if pair.metric == self.main_metric]
        if is_main:
            pair = is_main[0]
            return f"{pair.metric} on {pair.split} was {_shown(pair.before)} and is {_shown(pair.again)}"
        others = f"; of {len(self.pairs)} metrics {len(off)} are outside, {off[0].metric} among them" if off else ""
        return f"within the intervals, with other weights{others}"

    def lines(self) -> list[str]:
        """A line for each metric, what computes differently, and the verdict."""
        told = [f"made differently: {one}" for one in self.unlike]
        return [*map(str, self.pairs), *told, f"{'reproduced' if self.agrees else 'not reproduced'} {self.verdict()}"]


def reproduce(run: Run, *, root: Path | None = None) -> Reproduction:
    """Trains the recipe of a finished run into a new run under `root` (default: $TL_NLP_RUNS, else ./runs), and
    compares the two.

    Raises RunError where the run is not finished, or was made with other rows than its recipe reads now.
    """
    results = run.results()
    again = train(run.recipe(), root=root)
    splits = [{name: split["fingerprint"] for name, split in one.data()["splits"].items()} for one in (run, again)]
    if splits[0] != splits[1]:
        changed = min(name for name in {**splits[0], **splits[1]} if splits[0].get(name) != splits[1].get(name))
        raise RunError(f"the {changed} rows are not those {run.folder} was made with, so nothing can be compared")
    now = again.results()
    pairs = [
        Pair(split, metric, before, now["splits"][split]["metrics"][metric])
        for split, scores in results["splits"].items()
        for metric, before in scores["metrics"].items()
        if metric in now["splits"].get(split, {}).get("metrics", {})
    ]
    unlike = changes(run.environment(), again.environment())
    return Reproduction(run, again, results["main_metric"], pairs, _weights(run) == _weights(again), unlike)


def _weights(run: Run) -> dict[str, str]:
    return {path.name: file_hash(path) for path in sorted(run.artifact.glob("*.safetensors"))}
