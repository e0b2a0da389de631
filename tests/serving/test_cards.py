"""The model cards of exports: their code runs as it is printed, with the library that the checkpoint comes from."""

import json
import re

import pytest
from families import KINDS, TRANSFORMERS

import fedpgp
from fedpgp.errors import ConfigError
from fedpgp.serving.export import export
from fedpgp.serving.hub import _files as uploaded

SHORT = ["task.clients=1", "task.shots=1", "federation.rounds=1", "federation.local_epochs=1"]
# The others differ from these in nothing that an export depends on; siglip2 is fast, as it has no ONNX file.
LEVELS = {"siglip2": (), **dict.fromkeys(("siglip", "timm-siglip", "mobileclip", "biomedclip"), pytest.mark.slow)}
REFUSED = {
    **{(kind, "hf"): "is one of OpenCLIP's: take safetensors" for kind in KINDS if kind not in TRANSFORMERS},
    ("siglip2", "onnx"): "reads patches of any: take clip-head",
}


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=LEVELS.get(kind, pytest.mark.by_hand)) for kind in KINDS])
def test_the_code_on_a_card_predicts_what_fedpgp_does(
    kind, made, small_source, cache, tmp_path, command, monkeypatch, capsys
):
    checkpoint = str(made(kind).directory)
    monkeypatch.setattr("fedpgp.runs.tasks.load_source", lambda data, splits: small_source)
    changes = [*SHORT, "promptfl.context_length=4", f"backbone.checkpoint={checkpoint}"]
    run = fedpgp.run("promptfl", changes=changes, output=tmp_path / "run", cache=cache)
    small_source.test.image(3).save(tmp_path / "image.png")

    def predicted(*classes):
        done = command("predict", "run", "image.png", "--format", "json", "--quiet", *classes)
        assert done.code == 0, done.err
        return json.loads(done.out)["images"][0]["probabilities"]

    base = run.results["task"]["base_names"]
    some = [name.replace("_", " ") for name in base[:3]]
    of_heads, of_prompts = predicted(), predicted("--classes", ",".join(some))
    assert max(of_prompts.values()) - min(of_prompts.values()) > 1e-3, "equal probabilities would tell nothing"
    for form in ("safetensors", "clip-head", "onnx", "hf"):
        directory = tmp_path / form
        if (kind, form) in REFUSED:
            with pytest.raises(ConfigError, match=REFUSED[kind, form]):
                export(run, directory, form)
            continue
        export(run, directory, form)
        (code,) = re.findall(r"```python\n(.*?)```", (directory / "README.md").read_text(encoding="utf-8"), re.DOTALL)
        assert "fedpgp" not in code and checkpoint not in code
        assert uploaded(directory), "nothing in it may stop an upload"
        (directory / "image.png").write_bytes((tmp_path / "image.png").read_bytes())
        printed = []
        with monkeypatch.context() as patch:
            patch.chdir(directory)
            exec(code, {"print": printed.append})
        (found,) = printed
        if form in ("clip-head", "onnx"):
            assert found == pytest.approx(of_heads, abs=1e-5)
        else:
            assert found[0].tolist() == pytest.approx([of_prompts[name] for name in some], abs=1e-5)
