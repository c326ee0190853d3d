"""What of a run is published: its artifact, its scores without rows, a card, and no path of this machine."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tl_nlp import hub
from tl_nlp.card import Made, card, data_card
from tl_nlp.errors import HubError, RunError
from tl_nlp.licences import Ruling, rule
from tl_nlp.provenance import base_on_hub, licences
from tl_nlp.recipe import Recipe
from tl_nlp.run import RECIPE, Run, artifact_folder, is_export, read_recipe, results_of

RESULTS = "results.json"
_OF_RESULTS = ("format", "main_metric", "task", "baselines", "verdict", "negative_transfer", "seeds", "folds", "train")
_OF_SPLIT = ("rows", "metrics", "caution", "slices", "groups", "baselines", "verdict", "negative_transfer")
_OF_FINDING = ("name", "severity", "count", "message", "mend")
_OF_TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt")  # any words may be in them
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{30,}\b")


def push(
    path: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    merge: bool = False,
    revision: str | None = None,
    space: bool = False,
    dry_run: bool = False,
    licence: tuple[str, ...] = (),
) -> list[str]:
    """Publishes a run, or an artifact alone, and answers where it is; with `dry_run` which files would go instead.

    `licence` are overrides of the recipe (`licence.data=own`). With `space` a page that serves it goes to the Space of
    the same name. Raises HubError where the licences of what it was made from do not allow what is asked, RunError
    where it cannot be published so.
    """
    earlier = None if dry_run else hub.readme(repo_id, revision=revision)
    with tempfile.TemporaryDirectory(prefix="tl_nlp-push-") as made:
        model, page = Path(made) / "model", Path(made) / "space"
        published = prepare(path, repo_id, model, merge=merge, licence=licence, earlier=earlier)
        refuse_public(published.ruling, private)
        if space:
            from tl_nlp.space import write_space

            write_space(page, published)
        if dry_run:
            return _listed(Path(made))
        message = f"{published.recipe.name}, made with tl_nlp"
        sent = [hub.send(model, repo_id, private=private, revision=revision, message=message)]
        if space:
            sent.append(hub.send(page, repo_id, "space", owned=["*"], private=private, message=message))
        return sent


def push_data(recipe: Recipe, repo_id: str, *, private: bool = False, dry_run: bool = False) -> list[str]:
    """Publishes a cleaned copy of a recipe's rows and a card; answers where it is, or with `dry_run` what would go.

    Raises HubError where the licence of the rows does not allow what is asked.
    """
    from tl_nlp.cleaning import write_cleaned
    from tl_nlp.rows import fingerprint, resolved

    # whatever a model learned beside them
    parts = [one for one in licences(recipe.override("training.distillation=null")) if one.part == "data"]
    ruling = rule(parts)
    refuse_public(ruling, private)
    earlier = None if dry_run else hub.readme(repo_id, "dataset")
    with tempfile.TemporaryDirectory(prefix="tl_nlp-push-") as made:
        folder = Path(made)
        task, rows = resolved(recipe)
        sizes = write_cleaned(rows, task, folder / "data")
        given = {split: (len(theirs), fingerprint(theirs)) for split, theirs in rows.items()}
        (folder / "README.md").write_text(data_card(recipe, repo_id, sizes, given, parts, ruling, earlier), "utf-8")
        if dry_run:
            return _listed(folder)
        message = f"the rows of {recipe.name}, cleaned with tl_nlp"
        return [hub.send(folder, repo_id, "dataset", owned=["data/*"], private=private, message=message)]


def _listed(folder: Path) -> list[str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [f"{path.relative_to(folder).as_posix()}  {path.stat().st_size:,} bytes" for path in files]


def refuse_public(ruling: Ruling, private: bool) -> None:
    """Raises HubError where licences keep something from being public, and it shall be."""
    if ruling.obstacles and not private:
        raise HubError(
            f"it may not be public: {'; '.join(ruling.obstacles)}. --private keeps it to you; licence.data or "
            "licence.base, with licence.source, says what you know (push: --licence data=NAME), own that it is yours"
        )


def prepare(
    path: str | Path,
    repo_id: str,
    folder: Path,
    *,
    merge: bool = False,
    licence: tuple[str, ...] = (),
    earlier: str | None = None,
) -> Made:
    """Writes all that would be published into a new `folder`; of an `earlier` card it keeps what people wrote."""
    artifact = artifact_folder(path)
    if is_export(artifact):
        raise RunError(f"{artifact} is an export, which is for serving; push the run that it was made from")
    recipe = read_recipe(artifact).override(*licence)
    folder.mkdir(parents=True)
    if merge:
        recipe = _merged(recipe, artifact, folder)
    else:
        _refuse_unreachable(recipe)
        for file in sorted(artifact.iterdir()):
            if any(fnmatch.fnmatch(file.name, pattern) for pattern in hub.ARTIFACT):
                shutil.copy2(file, folder / file.name)
    base, parts = base_on_hub(recipe.checkpoint), licences(recipe)
    published = _without_paths(recipe)
    _write(folder / RECIPE, published.model_dump(mode="json"))
    for name in ("config.json", "adapter_config.json", "tokenizer_config.json", "generation_config.json"):
        if (folder / name).is_file():
            values = _nameless(json.loads((folder / name).read_text("utf-8")))
            if name == "adapter_config.json":
                values["base_model_name_or_path"] = base
            _write(folder / name, values)
    run = Run.find(Path(path))
    results = _results(run, artifact)
    if results:
        _write(folder / RESULTS, results)
    environment = run.environment() if run is not None and run.is_finished else {}
    made = Made(published, repo_id, base, results, environment, parts, rule(parts))
    printed = (folder / "README.md").read_text("utf-8")
    code = _loading(printed, repo_id, base)
    (folder / "README.md").write_text(card(made, code, earlier or (artifact / "README.md").read_text("utf-8")), "utf-8")
    _refuse_private(folder)
    return made


def _merged(recipe: Recipe, artifact: Path, folder: Path) -> Recipe:
    if not recipe.method.is_adapter:
        raise RunError(f"{artifact} holds whole weights already, and nothing to merge; push it without --merge")
    from tl_nlp.artifact import save_merged

    return save_merged(artifact, folder).model_copy(update={"licence": recipe.licence})


def _refuse_unreachable(recipe: Recipe) -> None:
    """An adapter is of use to those who have its checkpoint."""
    name = recipe.checkpoint.name
    if recipe.method.is_adapter and not name.startswith("package:") and not hub.is_id(name):
        mend = "--merge sends whole weights" if recipe.method.is_mergeable else "push that checkpoint, and train on it"
        raise RunError(f"it is an adapter for {Path(name).name}, a checkpoint that only this machine has; {mend}")


def _without_paths(recipe: Recipe) -> Recipe:
    """The recipe with the names of files and folders in the place of the paths to them."""
    checkpoint, data = recipe.checkpoint, recipe.data
    if Path(checkpoint.name).is_dir():
        checkpoint = checkpoint.model_copy(update={"name": Path(checkpoint.name).resolve().name})
    changed: dict[str, Any] = {}
    for name in type(data).model_fields:
        value = getattr(data, name)
        if isinstance(value, Path):
            changed[name] = Path(value.name)
        elif isinstance(value, dict) and any(isinstance(one, Path) for one in value.values()):
            changed[name] = {key: Path(one.name) for key, one in value.items()}
        elif name == "name" and Path(value).is_dir():
            changed[name] = Path(value).name
    training, teaching = recipe.training, recipe.training.distillation
    if teaching is not None and not hub.is_id(teaching.teacher):
        named = teaching.model_copy(update={"teacher": Path(teaching.teacher).resolve().name})
        training = training.model_copy(update={"distillation": named})
    return recipe.model_copy(
        update={"checkpoint": checkpoint, "data": data.model_copy(update=changed), "training": training}
    )


def _nameless(values: dict[str, Any]) -> dict[str, Any]:
    """A configuration without the path that it was loaded from."""
    return {key: value for key, value in values.items() if key not in ("_name_or_path", "name_or_path")}


def _results(run: Run | None, artifact: Path) -> dict[str, Any]:
    """Scores and what stands behind them, and nothing that quotes a row; {} where an artifact comes without."""
    if run is None:
        return results_of(artifact)
    if not run.is_finished:
        return {}
    results, data = run.results(), run.data()
    kept = {key: results[key] for key in _OF_RESULTS if key in results}
    kept["splits"] = {
        split: {key: scores[key] for key in _OF_SPLIT if key in scores} for split, scores in results["splits"].items()
    }
    findings = [{key: one[key] for key in _OF_FINDING if key in one} for one in data.get("findings", [])]
    return {**kept, "data": {"splits": data.get("splits", {}), "findings": findings}}


def _loading(readme: str, repo_id: str, base: str | None) -> str:
    """The lines that load the artifact from the repository; its README has them, where it is now in double quotes."""
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    named = re.sub('"[^"]*"', f'"{repo_id}"', code).strip()
    return named.replace("CHECKPOINT", base) if base else named


def _refuse_private(folder: Path) -> None:
    """Raises RunError for a token or a path of this machine in what is written in words."""
    from huggingface_hub import get_token

    secrets = {get_token(), *(os.environ.get(name) for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"))} - {None, ""}
    places = {str(path) for path in (Path.home(), Path.cwd()) if len(path.parts) > 1}
    for file in _in_words(folder):
        text = file.read_text("utf-8", "replace")
        if _TOKEN.search(text) or any(str(secret) in text for secret in secrets):
            raise RunError(f"{file.name} would hold a token of the Hub; take it out of the recipe, and end that token")
        if found := [place for place in places if f"{place}/" in text]:
            raise RunError(
                f"{file.name} would hold a path of this machine, under {found[0]}; take it out of the recipe"
            )


def _in_words(folder: Path) -> Iterator[Path]:
    for file in sorted(folder.iterdir()):
        if file.suffix in (".json", ".md", ".jinja", ".txt") and file.name not in _OF_TOKENIZERS:
            yield file


def _write(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", "utf-8")
