"""Runs and comparisons from Python: their content, and the same bytes from the same config."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import SHORT_RUN

import fedpgp
from fedpgp.federation.state import ClientState
from fedpgp.results.summary import named

pytestmark = pytest.mark.usefixtures("small")

TIMES = {"seconds", "seconds_training", "seconds_evaluation"}


def run(method: str, cache: Path, *changes: str, seed: int = 0, output: Path | None = None) -> fedpgp.Run:
    return fedpgp.run(method, seed, changes=[*SHORT_RUN, *changes], cache=cache, output=output)


def timeless(content: object) -> object:
    """Return the content without times."""
    if isinstance(content, dict):
        return {key: timeless(value) for key, value in content.items() if key not in TIMES}
    return [timeless(value) for value in content] if isinstance(content, list) else content


@pytest.mark.parametrize("method", ["fedpgp", "pfedmoap", "dp-fpl"])  # a private part, a server of its own, noise
def test_same_seed_gives_the_same_bytes(method: str, cache: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        run(method, cache, output=tmp_path / name)
    for file in ("config.toml", "prompts.safetensors", "outcomes.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    read = [timeless(json.loads((tmp_path / name / "results.json").read_text())) for name in ("a", "b")]
    assert read[0] == read[1]


def test_another_seed_or_setting_gives_other_prompts(cache: Path) -> None:
    first = run("fedpgp", cache)
    for other in (run("fedpgp", cache, seed=1), run("fedpgp", cache, "fedpgp.mu=2.0")):
        assert not torch.equal(first.prompts["shared/p_G"], other.prompts["shared/p_G"])


def test_saved_run_is_the_returned_one(cache: Path, tmp_path: Path) -> None:
    made = run("fedpgp", cache, output=tmp_path / "out")
    read = fedpgp.load_run(tmp_path / "out")
    assert read.results == made.results
    assert list(read.rounds) == list(made.rounds)
    assert read.provenance == made.provenance
    assert read.prompts.keys() == made.prompts.keys()
    assert all(torch.equal(read.prompts[name], tensor) for name, tensor in made.prompts.items())
    assert read.config.methods["fedpgp"] == made.config.methods["fedpgp"]
    assert read.config.federation == made.config.federation


def test_saved_config_makes_the_same_run_again(cache: Path, tmp_path: Path) -> None:
    made = run("fedpgp", cache, "fedpgp.tau=0.7", output=tmp_path / "out")
    again = fedpgp.run("fedpgp", 0, config=tmp_path / "out/config.toml", cache=cache)
    assert torch.equal(made.prompts["shared/p_G"], again.prompts["shared/p_G"])


def test_records_of_the_rounds(cache: Path) -> None:
    made = run("fedpgp", cache, "federation.participation=0.5")
    assert [record["round"] for record in made.rounds] == [1, 2]
    for record in made.rounds:
        assert len(record["participants"]) == 2
        assert record["bytes_up"] == record["bytes_down"] == 16 * 128 * 4
        assert record["loss_task"] > 0
        assert record["loss_contrastive"] > 0
        assert -1 <= record["cosine_guidance_global"] <= 1
        assert -1 <= record["cosine_global_personal"] <= 1
        assert record["seconds_training"] > 0
        assert {"local", "base", "novel", "unseen", "hm", "cm", "validation_local", "validation_base"} <= record.keys()


def test_headline_is_the_last_round_and_the_others_stand_beside_it(cache: Path) -> None:
    made = run("promptfl", cache, "federation.rounds=7")
    results, rounds = made.results, made.rounds
    assert results["final"]["local"] == rounds[-1]["local"]
    assert results["last_five"]["novel"] == pytest.approx(sum(record["novel"] for record in rounds[2:]) / 5)
    chosen = rounds[results["best_on_validation"]["round"] - 1]
    assert results["best_on_validation"]["base"] == chosen["base"]
    assert chosen["validation_base"] == max(record["validation_base"] for record in rounds)


def test_results_name_every_client(cache: Path) -> None:
    made = run("local", cache)
    clients = made.results["clients"]
    assert [client["client"] for client in clients] == [0, 1, 2]
    assert sorted(name for client in clients for name in client["classes"]) == sorted(
        ["alarm clock", "ambulance", "ant", "automobile", "bear", "bee"]
    )
    assert {client["examples"] for client in clients} == {8}
    mean = sum(client["local"] for client in clients) / 3
    assert made.results["final"]["local"] == pytest.approx(mean)


def test_zero_shot_trains_and_sends_nothing(cache: Path) -> None:
    made = run("zero-shot", cache)
    assert made.prompts == {}
    assert made.results["rounds"] == 0
    assert made.results["bytes_up_per_client_round"] == made.results["bytes_down_per_client_round"] == 0
    assert made.results["shared"]["novel"] == pytest.approx(made.results["final"]["novel"])


def test_local_sends_nothing_and_has_no_shared_model(cache: Path) -> None:
    made = run("local", cache)
    assert made.results["bytes_up_per_client_round"] == 0
    assert made.results["shared"] is None
    assert {name.split("/")[0] for name in made.prompts} == {"private"}


def test_prompts_file_keeps_the_personal_part_of_every_client(cache: Path) -> None:
    prompts = run("fedpgp", cache).prompts
    assert set(prompts) == {"shared/p_G", *(f"private/{client}/{name}" for client in range(3) for name in "UV")}
    assert prompts["private/2/U"].shape == (16, 4)
    assert prompts["private/2/V"].shape == (4, 128)
    assert not torch.equal(prompts["private/0/U"], prompts["private/1/U"])


def test_prompts_are_on_the_cpu() -> None:
    """Whatever device the parts of a run are on."""

    class Elsewhere:
        def cpu(self) -> str:
            return "on the CPU"

    part: Any = {"p": Elsewhere()}
    clients = [ClientState(part), ClientState({}, part, part)]  # tensors that the aggregator keeps are not prompts
    assert named(part, clients) == dict.fromkeys(("shared/p", "private/0/p", "kept/1/p"), "on the CPU")


def test_comparison_holds_every_method_and_seed_on_the_same_tasks(cache: Path) -> None:
    comparison = fedpgp.compare(["promptfl", "fedpgp"], [3, 5], changes=SHORT_RUN, cache=cache)
    assert [(row["method"], row["seed"]) for row in comparison.rows] == [
        ("promptfl", 3), ("fedpgp", 3), ("promptfl", 5), ("fedpgp", 5),
    ]  # fmt: skip
    dealt = {(run.method, run.seed): [c["classes"] for c in run.results["clients"]] for run in comparison.runs}
    assert dealt["promptfl", 3] == dealt["fedpgp", 3] != dealt["fedpgp", 5]
    mean, deviation = comparison.mean("fedpgp")["local"]
    locals_ = [run.results["final"]["local"] for run in comparison.of("fedpgp")]
    assert mean == pytest.approx(sum(locals_) / 2)
    assert deviation == pytest.approx(abs(locals_[0] - locals_[1]) / 2**0.5)


def test_run_alone_equals_its_cell_of_a_comparison(cache: Path) -> None:
    cell = fedpgp.compare(["local", "promptfl", "fedpgp"], 1, changes=SHORT_RUN, cache=cache).of("fedpgp")[0]
    assert timeless(run("fedpgp", cache).results) == timeless(cell.results)


def test_provenance_says_what_made_the_run(cache: Path) -> None:
    provenance = run("promptfl", cache).provenance
    assert provenance["fedpgp"] == fedpgp.__version__
    assert provenance["packages"]["torch"] == version("torch")
    assert len(provenance["checkpoint"]) == 64
    assert provenance["seed"] == 0


def test_public_names_are_importable() -> None:
    assert {name for name in fedpgp.__all__ if getattr(fedpgp, name) is None} == set()
    with pytest.raises(AttributeError, match="no attribute 'compares'"):
        fedpgp.compares  # noqa: B018
