"""Checkpoints, adapters and runs of strangers: what can execute or lead elsewhere is refused or never opened."""

import json
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Answer, ask, running, tiny_recipe, tl_nlp
from interruptions import stopped_at
from loopback_hub import WRITES, LoopbackHub
from safetensors.torch import load_file, save_file

from tl_nlp import Predictor, Run, evaluate, train
from tl_nlp.errors import CheckpointError, DataError
from tl_nlp.serving import Service
from tl_nlp.tables import read_table

PICKLES = (
    "pytorch_model.bin", "adapter_model.bin", "optimizer.pt", "rng_state.pth", "training_args.bin",
    "custom_checkpoint_0.pkl", "random_states_0.pkl", "scheduler.pt", "optimizer.bin", "model.pt", "pytorch_model.pt",
)  # fmt: skip


class Trap:
    """What makes a file when it is unpickled."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.canary), "w")


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """A file that must not appear."""
    path = tmp_path / "canary"
    with closing(pickle.loads(pickle.dumps(Trap(path)))):
        pass
    assert path.exists()  # the trap works
    path.unlink()
    yield path
    assert not path.exists(), "a pickle was executed"


def plant(folder: Path, canary: Path) -> None:
    """Pickles under all names that libraries look for, half of them in torch's own format."""
    for number, name in enumerate(PICKLES):
        if number % 2:
            torch.save(Trap(canary), folder / name)
        else:
            (folder / name).write_bytes(pickle.dumps(Trap(canary)))


@pytest.mark.parametrize(
    ("method", "served"),
    [("full", False), *(pytest.param(kind, True, marks=pytest.mark.slow) for kind in ("full", "lora"))],
)
def test_fault_18_no_pickle_is_ever_opened(
    method: str,
    served: bool,
    tiny_bert: Path,
    reviews: Path,
    tmp_path: Path,
    canary: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: Callable[..., Answer],
) -> None:
    """Beside weights, in a run and in its checkpoints: through train, resume, evaluate, predict and the page."""
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(tiny_bert, checkpoint)
    plant(checkpoint, canary)
    recipe = tiny_recipe(checkpoint, reviews, method=method).override("training.epochs=2")
    run = stopped_at(recipe, 8, monkeypatch)
    for folder in (run.folder, run.folder / "checkpoints", *map(run.checkpoint_dir, run.checkpoint_steps())):
        plant(folder, canary)
    assert train(run).is_finished
    plant(run.model_dir, canary)
    for words in (["evaluate", run.folder], ["predict", run.folder, "a good film"], ["predict", run.model_dir, "good"]):
        assert command(*words).status == 0
    if not served:
        return
    with running(Service([run.folder])) as url:
        assert ask(f"{url}/v1/predict", {"text": "a good film"}).status == 200
    assert train(tiny_recipe(run.folder, reviews)).is_finished  # a run as the checkpoint of another


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model.pt", "model.pt"])
def test_fault_18_weights_as_pickles_alone_are_refused(
    name: str, tiny_bert: Path, reviews: Path, lora: Run, tmp_path: Path, canary: Path
) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(tiny_bert, checkpoint)
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / name).write_bytes(pickle.dumps(Trap(canary)))
    with pytest.raises(CheckpointError, match=r"holds no \*\.safetensors; other weight formats can execute code"):
        train(tiny_recipe(checkpoint, reviews))
    run = copied(lora, tmp_path)
    (run.model_dir / "adapter_model.safetensors").unlink()
    plant(run.model_dir, canary)
    with pytest.raises(CheckpointError, match=r"holds no adapter_model.safetensors, the only adapter format"):
        Predictor.load(run)
    (run.model_dir / "adapter_model.safetensors").write_bytes(pickle.dumps(Trap(canary)))
    with pytest.raises(CheckpointError, match=r"adapter_model.safetensors cannot be loaded: it is no whole"):
        Predictor.load(run)


def test_fault_18_pickles_of_a_repository_are_not_fetched(
    tiny_bert: Path, reviews: Path, tmp_path: Path, canary: Path
) -> None:
    with LoopbackHub().serving() as hub:
        run = train(tiny_recipe(tiny_bert, reviews))
        folder = tmp_path / "repository"
        shutil.copytree(run.model_dir, folder)
        plant(folder, canary)
        hub.add("alice/traps", folder)
        done = tl_nlp(
            "pull", "alice/traps", HF_ENDPOINT=hub.address, HF_HUB_DISABLE_XET="1", HF_HUB_OFFLINE="0",
            HF_HOME=str(tmp_path / "home"), HF_TOKEN=WRITES,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not {path.name for path in Path(done.stdout.strip()).iterdir()} & set(PICKLES)


def test_a_run_directory_holds_no_pickle(tiny_bert: Path, reviews: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny_recipe(tiny_bert, reviews).override("training.ema=0.9", "training.epochs=2")
    run = train(stopped_at(recipe, 8, monkeypatch))
    kinds = {path.suffix for path in run.folder.rglob("*") if path.is_file()}
    assert kinds <= {".json", ".jsonl", ".safetensors", ".parquet", ".html", ".md", ".png", ".txt"}
    for path in run.folder.rglob("*"):
        assert path.is_dir() or not (zipfile.is_zipfile(path) or path.read_bytes().startswith(b"\x80"))


# ---- configurations

CONFIGS = {
    "config.json: 'auto_map' asks for code": ("config.json", {"auto_map": {"AutoModel": "evil.Model"}}),
    "config.json: '_attn_implementation' names a kernel": ("config.json", {"_attn_implementation": "evil/kernel"}),
    "config.json: 'attn_implementation' names a kernel": ("config.json", {"part": {"attn_implementation": "evil/k"}}),
    "config.json: 'use_kernels' names a kernel": ("config.json", {"use_kernels": True}),
    "config.json: 'transformers_weights' names '../x.safetensors'": (
        "config.json", {"transformers_weights": "../x.safetensors"}
    ),
    "config.json: 'vocab_size' is 1e+15": ("config.json", {"vocab_size": 10**15}),
    "config.json: 'num_hidden_layers' is 1e+06": ("config.json", {"num_hidden_layers": 10**6}),
    "config.json tells of ": ("config.json", {"hidden_size": 2 * 10**6, "intermediate_size": 9 * 10**7}),
    "tokenizer_config.json: 'auto_map' asks for code": ("tokenizer_config.json", {"auto_map": {"a": "e.T"}}),
    "tokenizer_config.json: 'vocab_file' names '../.env'": ("tokenizer_config.json", {"vocab_file": "../.env"}),
    "tokenizer_config.json: 'fast_tokenizer_files' names '/etc/passwd'": (
        "tokenizer_config.json", {"fast_tokenizer_files": ["/etc/passwd"]}
    ),
    "generation_config.json: 'auto_map' asks for code": ("generation_config.json", {"auto_map": {"a": "b"}}),
    "weight_map names '../secret.safetensors' for a": (
        "model.safetensors.index.json", {"weight_map": {"a": "../secret.safetensors"}}
    ),
    "weight_map names 'pytorch_model.bin' for a; weights are read from safetensors only": (
        "model.safetensors.index.json", {"weight_map": {"a": "pytorch_model.bin"}}
    ),
    "weight_map names 'gone.safetensors' for a, and there is no such file": (
        "model.safetensors.index.json", {"weight_map": {"a": "gone.safetensors"}}
    ),
    "holds no weight_map": ("model.safetensors.index.json", {"weight_map": ["a"]}),
}  # fmt: skip


@pytest.mark.parametrize("message", CONFIGS)
def test_fault_19_what_a_configuration_must_not_say_is_named(
    message: str, tiny_bert: Path, reviews: Path, tmp_path: Path
) -> None:
    name, values = CONFIGS[message]
    folder = tmp_path / "stranger"
    shutil.copytree(tiny_bert, folder)
    there = json.loads((folder / name).read_text()) if (folder / name).is_file() else {}
    (folder / name).write_text(json.dumps(there | values))
    with pytest.raises(CheckpointError) as caught:
        train(tiny_recipe(folder, reviews))
    assert message in str(caught.value) and str(folder) in str(caught.value)


@pytest.mark.parametrize("content", [b"[]", b"\xff\xfe", b"[" * 100_000, b"", b'{"model_type": ["bert"]}'])
def test_fault_19_a_configuration_that_is_none_is_named(
    content: bytes, tiny_bert: Path, reviews: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "stranger"
    shutil.copytree(tiny_bert, folder)
    (folder / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"stranger/config\.json "):
        train(tiny_recipe(folder, reviews))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"auto_map": {"AutoModel": "evil.Model"}}, r"adapter_config\.json: 'auto_map' asks for code"),
        (
            {"megatron_config": {"a": 1}},
            r"adapter_config\.json: 'megatron_config' asks for the code of another package",
        ),
        ({"r": 10**9}, r"adapter_config\.json: 'r' is 1e\+09"),
        ({"peft_type": "EVIL"}, "does not fit its checkpoint: it lacks 'EVIL'"),
    ],
)
def test_fault_19_adapters_are_refused_by_their_configuration(
    values: dict[str, Any], message: str, lora: Run, tmp_path: Path
) -> None:
    run = copied(lora, tmp_path)
    path = run.model_dir / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    with pytest.raises(CheckpointError, match=message):
        Predictor.load(run)


# ---- weights


@pytest.fixture(scope="module")
def lora(tiny_bert: Path, reviews: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(tiny_recipe(tiny_bert, reviews, method="lora"), root=tmp_path_factory.mktemp("lora"))


@pytest.fixture(scope="module")
def full(tiny_bert: Path, reviews: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(tiny_recipe(tiny_bert, reviews), root=tmp_path_factory.mktemp("full"))


def copied(run: Run, folder: Path) -> Run:
    shutil.copytree(run.folder, folder / "copy")
    return Run(folder / "copy")


def test_fault_20_weights_that_are_no_numbers_are_named(full: Run, lora: Run, tmp_path: Path, reviews: Path) -> None:
    for run, name in ((full, "bert.encoder.layer.1.output.dense.weight"), (lora, "lora_B.weight")):
        changed = copied(run, tmp_path / run.folder.name / name)
        (file,) = changed.model_dir.glob("*.safetensors")
        tensors = load_file(file)
        name = next(one for one in tensors if name in one)
        tensors[name].view(-1)[5] = float("nan")
        save_file(tensors, file, metadata={"format": "pt"})
        for load in (Predictor.load, evaluate):
            with pytest.raises(CheckpointError) as caught:
                load(changed)
            assert f"{file}: {name} holds NaN or infinity" in str(caught.value)
        if run is full:
            with pytest.raises(CheckpointError, match="holds NaN or infinity"):
                train(tiny_recipe(changed.folder, reviews))


def header(**tensors: Any) -> bytes:
    told = json.dumps(tensors).encode()
    return struct.pack("<Q", len(told)) + told


MALFORMED = {
    "empty": b"",
    "a header of 2**60 bytes": struct.pack("<Q", 2**60) + b"{}",
    "no JSON": struct.pack("<Q", 4) + b"nope",
    "offsets beyond the file": header(a={"dtype": "F32", "shape": [10**6], "data_offsets": [0, 4 * 10**6]}),
    "offsets that overlap": header(
        a={"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        b={"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
    )
    + b"\0" * 12,
    "a shape of 2**63": header(a={"dtype": "F32", "shape": [2**31, 2**32], "data_offsets": [0, 8]}) + b"\0" * 8,
    "a shape below nothing": header(a={"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}) + b"\0" * 4,
    "an unknown number format": header(a={"dtype": "PICKLE", "shape": [1], "data_offsets": [0, 4]}) + b"\0" * 4,
}


@pytest.mark.parametrize("fault", MALFORMED)
def test_fault_20_malformed_safetensors_are_named(fault: str, full: Run, lora: Run, tmp_path: Path) -> None:
    for run in (full, lora):
        changed = copied(run, tmp_path / run.recipe().method.kind)
        (file,) = changed.model_dir.glob("*.safetensors")
        file.write_bytes(MALFORMED[fault])
        with pytest.raises(CheckpointError) as caught:
            Predictor.load(changed)
        assert f"{file} cannot be loaded: it is no whole safetensors file" in str(caught.value)


def test_fault_20_an_adapter_for_a_deeper_checkpoint_is_refused(
    lora: Run, tiny_bert: Path, reviews: Path, tmp_path: Path
) -> None:
    shallow = train(tiny_recipe(tiny_bert, reviews, method="lora").override("checkpoint.blocks=1"))
    changed = copied(shallow, tmp_path)
    shutil.copy(lora.model_dir / "adapter_model.safetensors", changed.model_dir)
    with pytest.raises(CheckpointError, match=r"does not fit its checkpoint: it lacks 0 weights and has 4 too many"):
        Predictor.load(changed)


def test_fault_20_a_missing_head_is_refused(full: Run, lora: Run, tmp_path: Path) -> None:
    for run, told in (
        (full, "lacks 1 weights"),
        (lora, "does not fit its checkpoint: it lacks 'base_model.model.classifier.weight'"),
    ):
        changed = copied(run, tmp_path / run.recipe().method.kind)
        (file,) = changed.model_dir.glob("*.safetensors")
        tensors = {name: tensor for name, tensor in load_file(file).items() if not name.endswith("classifier.weight")}
        save_file(tensors, file, metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match=told):
            Predictor.load(changed)


# ---- archives


@pytest.mark.parametrize("name", ["rows.zip", "rows.tar.gz", "rows.csv.zip", "rows.csv.bz2", "rows.pkl"])
def test_fault_17_archives_with_members_are_not_read(name: str, tmp_path: Path) -> None:
    """So no member `../x` and no link is ever followed."""
    with zipfile.ZipFile(tmp_path / name, "w") as archive:
        archive.writestr("../escaped.csv", "text,target\na,b\n")
    with pytest.raises(DataError, match=r"files of rows end in \.csv, \.tsv, \.jsonl, \.parquet"):
        read_table(tmp_path / name)
    assert not (tmp_path.parent / "escaped.csv").exists()
