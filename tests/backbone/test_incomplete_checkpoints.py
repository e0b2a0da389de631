"""Typical problems of checkpoints: a file is missing, in another place, or from another model."""

import pytest
import torch
from families import edit
from raising import raises
from safetensors.torch import load_file, save_file

from fedpgp.backbone import load_backbone
from fedpgp.backbone.files import openai_tokenizer
from fedpgp.errors import CheckpointError

TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


@pytest.mark.parametrize("removed", [TOKENIZER, TOKENIZER[:1]], ids=["no tokenizer files", "only its config"])
def test_a_directory_without_a_tokenizer_is_refused(removed, copy):
    for name in removed:
        (copy / name).unlink()
    with raises(CheckpointError, where=str(copy), remedy="the tokenizer's files") as error:
        load_backbone(str(copy))
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_openais_tokenizer_is_used_if_its_vocabulary_fits(copy):
    for name in TOKENIZER:
        (copy / name).unlink()
    weights = load_file(copy / "model.safetensors")
    name = "text_model.embeddings.token_embedding.weight"
    weights[name] = torch.zeros(49408, weights[name].shape[1]).normal_(generator=torch.Generator().manual_seed(0))
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    edit(copy / "config.json", lambda config: config["text_config"].update(vocab_size=49408, eos_token_id=49407))
    backbone = load_backbone(str(copy))
    assert len(backbone.tokenizer) == 49408
    ids = backbone.class_tokens(["red panda"]).ids[0].tolist()
    assert ids == [*openai_tokenizer()("red panda.", add_special_tokens=False)["input_ids"], 49407]


def test_a_processor_for_other_pictures_than_the_tower_reads_is_refused_in_a_line(copy):
    edit(copy / "preprocessor_config.json", lambda content: content["crop_size"].update(height=64, width=64))
    with raises(CheckpointError, where=str(copy), problem="64 × 64 pixels, but the image tower reads 24 × 24") as error:
        load_backbone(str(copy))
    assert "\n" not in str(error.value)


def test_weights_under_another_name_are_reported(copy):
    (copy / "model.safetensors").rename(copy / "open_clip_model.safetensors")
    with raises(CheckpointError, problem="contains config.json, open_clip_model.safetensors, preprocessor"):
        load_backbone(str(copy))
    (copy / "open_clip_config.json").write_text("{}")  # then it is read as a checkpoint of OpenCLIP
    with raises(CheckpointError, where="open_clip_config.json"):
        load_backbone(str(copy))


def test_weights_of_a_compiled_model_are_reported_in_a_directory(copy):
    weights = load_file(copy / "model.safetensors")
    save_file({f"_orig_mod.{k}": v for k, v in weights.items()}, copy / "model.safetensors", metadata={"format": "pt"})
    with raises(CheckpointError, where=str(copy), problem="for example _orig_mod."):
        load_backbone(str(copy))


@pytest.mark.parametrize("wrapped", ["state_dict", "model_state_dict", "model", ""])
@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module._orig_mod."])
def test_a_file_may_wrap_its_weights_as_training_scripts_do(wrapped, prefix, tmp_path):
    from fedpgp.backbone.archive import read_weights

    weights = {"visual.proj": torch.ones(2, 3), "logit_scale": torch.tensor(3.0)}
    named = {f"{prefix}{name}": tensor for name, tensor in weights.items()}
    torch.save({wrapped: named, "epoch": 3} if wrapped else named, tmp_path / "x.pt")
    save_file(named, tmp_path / "x.safetensors")
    for file in ("x.pt", "x.safetensors") if not wrapped else ("x.pt",):
        assert read_weights(tmp_path / file).keys() == weights.keys()


def test_the_content_of_a_file_without_weights_is_reported(tmp_path):
    torch.save({"epoch": 3, "optimizer": {}}, tmp_path / "x.pt")
    with raises(CheckpointError, where="x.pt", problem="a dictionary with the keys epoch, optimizer"):
        load_backbone(str(tmp_path / "x.pt"))
