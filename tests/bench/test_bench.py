"""The benchmark on very small towers. The tests check its claims, not its times."""

import io
import json
import math
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest
import tiny
import torch
from commands import Command, refused
from raising import raises
from rich.console import Console
from transformers import CLIPConfig, CLIPModel

from fedpgp.bench import costs, machine, naive, recipe, report, rounds, scaling, stages, suite, variants
from fedpgp.bench import step as bench_step
from fedpgp.bench.names import BASE_NAMES, IMAGENET_TOKENS, NOVEL_NAMES, CountingTokenizer, imagenet_like
from fedpgp.bench.options import Bench, Options
from fedpgp.bench.shapes import PUBLISHED, Scene, caltech_like, published_config, random_backbone
from fedpgp.config import load_config
from fedpgp.errors import TrainingError
from fedpgp.runs.choices import HEADLINE

SIDE = 8


@pytest.fixture(scope="module", autouse=True)
def measured_once() -> Iterator[None]:
    """Call measured work only once, even if it is short, because no test reads the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine.seconds, "__defaults__", (0.0,))
        yield


def tiny_config(layers=3) -> CLIPConfig:
    text = {"hidden_size": 16, "intermediate_size": 48, "num_attention_heads": 2, "num_hidden_layers": layers}
    vision = {"hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 3, "num_hidden_layers": 2}
    return CLIPConfig(
        text_config={**text, "projection_dim": 12, "max_position_embeddings": 32, "vocab_size": 49408},
        vision_config={**vision, "projection_dim": 12, "patch_size": 4, "image_size": SIDE},
        projection_dim=12,
        logit_scale_init_value=math.log(100),
    )


@pytest.fixture(scope="module")
def scene() -> Scene:
    """Three clients with random pixels of all images, so that the naive round is run."""
    task = tiny.task()
    rng = torch.Generator().manual_seed(0)
    splits = {"train": task.train, "test": task.tests["base"].dataset, "validation": task.validation.dataset}
    pixels = {
        name: torch.randn(len(split), 3, SIDE, SIDE, generator=rng, dtype=torch.float64)
        for name, split in splits.items()
    }
    return Scene(random_backbone(tiny_config(), "float64", seed=0), task, pixels, made_up=False)


@pytest.fixture(scope="module")
def made_up(scene: Scene) -> Scene:
    """The task of the published shapes, with the pixels of only one batch."""
    return replace(scene, task=caltech_like(0), pixels={"train": scene.pixels["train"][:8]}, made_up=True)


@pytest.fixture
def step(made_up: Scene) -> bench_step.Step:
    return bench_step.first_step(made_up, seed=0)


def bench_of(scene: Scene, **changes) -> Bench:
    """Return the input of a part, with one repetition of every timing."""
    options = Options("vit-b-16", (), repeat=1, threads=1, seed=0, precision="float64", classes=60)
    return Bench(replace(options, **changes), bench_step.first_step(scene, seed=0))


@pytest.mark.slow  # takes seconds
class TestStages:
    def test_every_stage_computes_the_loss_and_the_gradients_of_naive(self, result):
        measured = result["step"]["stages"]
        assert [stage["name"] for stage in measured] == list(stages.STAGES)
        for stage in measured:
            assert max(stage["loss_difference"], stage["gradient_difference"]) <= 1e-9, stage["name"]
            assert len(stage["seconds"]) == 1 and stage["seconds"][0] > 0

    def test_the_general_encoder_computes_the_loss_and_the_gradients_of_naive(self, result):
        names = [row["name"] for row in result["general"]]
        assert names == ["naive", "general", "cut", "batched clients", "fast"]
        for row in result["general"]:
            assert max(row["loss_difference"], row["gradient_difference"]) <= 1e-9, row["name"]

    def test_no_gradient_is_zero(self, step):
        for name, gradient in stages.naive(step).gradients.items():
            assert gradient.abs().max() > 1e-6, name

    def test_the_benchmark_stops_if_a_stage_computes_something_else(self, made_up, monkeypatch):
        def wrong(step):
            return stages.packed(replace(step, job=replace(step.job, labels=step.job.labels + 1)))

        monkeypatch.setitem(stages.STAGES, "packed", stages.Stage("", wrong))
        with raises(stages.DifferentWorkError, where="'packed'", problem="'naive'", remedy="Report"):
            stages.measure_stages(bench_of(made_up))

    def test_the_benchmark_stops_at_a_loss_that_is_not_a_number(self, step):
        found = stages.naive(step)
        broken = replace(found, loss=found.loss * float("nan"))
        with raises(stages.DifferentWorkError, where="broken"):
            stages.check("broken", broken, found, 1e-9)

    def test_the_clients_of_a_batch_differ(self, step):
        jobs = [job for group in stages.client_groups(step) for job in group]
        assert len({job.params.private["U"].sum().item() for job in jobs}) == len(jobs) == 10
        assert len({job.images.pooled[0, 0].item() for job in jobs}) == 10


class TestRounds:
    def test_a_whole_round_ends_as_the_naive_one(self, scene):
        figures = rounds.measure_round(bench_of(scene))
        assert figures["naive_measured"]
        assert figures["parameters_differ"] <= 1e-9
        assert figures["answers_differ"] == 0
        assert figures["bytes_up"] == figures["bytes_down"] == 3 * 16 * 16 * 8  # clients, M, d, bytes

    def test_the_benchmark_stops_if_a_round_has_other_results(self, scene, monkeypatch):
        settings = rounds.SETTINGS
        monkeypatch.setattr(
            rounds,
            "naive_round",
            lambda scene, _, seed: naive.naive_round(scene, replace(settings, local_epochs=1), seed),
        )
        with raises(stages.DifferentWorkError, where="round", remedy="Report"):
            rounds.measure_round(bench_of(scene))

    def test_a_naive_round_makes_the_calls_that_a_computed_round_counts(self, scene, monkeypatch):
        calls = Counter()

        def counting(name, function, size):
            def counted(*arguments):
                calls[name, torch.is_grad_enabled()] += size(*arguments)
                return function(*arguments)

            monkeypatch.setattr(naive, name, counted)

        counting("read", naive.read, lambda *arguments: 1)
        counting("see", naive.see, lambda model, pixels: len(pixels))
        monkeypatch.setattr(naive, "TEST_BATCH", 5)
        naive.naive_round(scene, rounds.SETTINGS, 0)
        counted = naive.count_calls(scene.task)
        assert calls["read", True] == 4 * counted["steps"]
        assert calls["read", False] == counted["text_passes"]
        assert calls["see", False] == counted["images"]
        assert calls["see", True] == 2 * sum(tiny.EXAMPLES)

    def test_a_round_that_takes_hours_is_computed(self, result, made_up):
        figures = result["round"]
        assert figures["calls"] == {"steps": 100, "images": 24_650, "text_passes": 1040}
        units, ratios = figures["units"], figures["ratios"]
        assert not figures["naive_measured"] and [units["step"]] == result["step"]["stages"][0]["seconds"]
        assert figures["naive"] == 100 * units["step"] + 24_650 * units["image"] + 1040 * units["text pass"]
        assert figures["encoding"] == made_up.images * units["image"] and figures["ours_once"] > 0
        assert ratios["cold first round"] < ratios["25 rounds"] < ratios["round"]


def printed(result) -> str:
    """Return the printed tables of some parts."""
    heading = {"options": {"shape": "tiny", "precision": "float64"}, "task": "tiny"}
    machine = {"cpu": "", "instructions": "", "threads": 1, "cores": 1, "torch": "", "transformers": ""}
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(report.tables(result | heading | {"machine": machine}))
    return console.export_text()


class TestOperations:
    @pytest.mark.parametrize("layers, prompts", [(2, 4), (3, 1)])
    def test_a_step_of_the_library_has_only_the_products_that_it_needs(self, layers, prompts):
        """The sum is explained in docs/benchmark.md."""
        config = tiny_config(layers)
        backbone = random_backbone(config, "float64", 0)
        tokens = backbone.class_tokens(BASE_NAMES[:7])  # few enough to be packed without an unused row
        contexts = torch.randn(prompts, 5, 16, dtype=torch.float64, requires_grad=True)
        backbone.text.rows(contexts[0], tokens)  # computes the constants
        _, operations = machine.count_operations(lambda: backbone.text(contexts, tokens).sum().backward())
        K, P, C, S, d, h, D = prompts, 1 + 5, 7, int((tokens.end + 1).sum()), 16, 48, 12
        rows = K * (P + S)
        first, inner = 3 * d * d * K * 5, 3 * d * d * (layers - 2) * rows
        last = 2 * d * d * rows + (2 * d * d + 2 * d * h + d * D) * K * C
        assert operations.linear == 2 * 2 * (first + inner + (d * d + 2 * d * h) * (layers - 1) * rows + last)
        needed = (layers - 1) * (P * P + sum(T * (P + T) for T in (tokens.end + 1).tolist())) + P * C + S
        assert operations.total - operations.linear >= 12 * d * K * needed  # masked products are computed, too

    def test_whole_sequences_with_fused_attention(self, step):
        model, p_G = step.scene.model, step.values["p_G"]
        _, operations = machine.count_operations(lambda: naive.read(model, step.naive.prompt, p_G).sum().backward())
        C, L, d, h, D, layers = 50, 32, 16, 48, 12, 3
        assert operations.linear == 2 * 2 * (layers * C * L * (4 * d * d + 2 * d * h) + C * d * D)
        assert operations.total - operations.linear == 12 * d * C * L * L * layers

    @pytest.mark.parametrize("attention", ["eager", "sdpa"])
    def test_an_image(self, step, attention):
        model = step.scene.model
        model.set_attn_implementation(attention)
        try:
            _, operations = machine.count_operations(lambda: step.scene.backbone.image.encode(step.pixels))
        finally:
            model.set_attn_implementation("sdpa")
        B, patches, w, h, D, layers = 8, 4, 24, 40, 12, 2
        rows = 1 + patches
        per_layer = 2 * rows * (4 * w * w + 2 * w * h) + 4 * w * rows * rows
        assert operations.total == B * (layers * per_layer + 2 * patches * 3 * 4 * 4 * w + 2 * w * D)

    def test_an_image_of_vit_b_16_as_published(self):
        with torch.device("meta"):
            model = CLIPModel(published_config("vit-b-16"))
            _, operations = machine.count_operations(lambda: naive.see(model, torch.empty(1, 3, 224, 224)))
        assert operations.total == pytest.approx(35.1e9, rel=0.01)  # 17.6 GMAC


class TestNames:
    def test_caltech101_has_50_base_and_50_novel_names(self):
        assert (len(BASE_NAMES), len(NOVEL_NAMES)) == (50, 50)
        assert len({*BASE_NAMES, *NOVEL_NAMES}) == 100

    def test_names_have_as_many_tokens_as_with_clip(self):
        count = CountingTokenizer()
        lengths = [len(count(name.replace("_", " "), add_special_tokens=False)["input_ids"]) for name in BASE_NAMES]
        assert Counter(lengths) == {1: 32, 2: 15, 3: 3}
        assert len(count("a photo of a brontosaurus.", add_special_tokens=False)["input_ids"]) == 4 + 3 + 1

    def test_a_word_has_the_same_ids_in_every_text(self):
        count = CountingTokenizer()
        alone = count("cougar", add_special_tokens=False)["input_ids"]
        assert count("cougar face.", add_special_tokens=False)["input_ids"][:1] == alone

    def test_imagenet_like_names_end_in_eos(self):
        assert sum(IMAGENET_TOKENS.values()) == 1000
        tokens = imagenet_like(200, 1000, seed=0)
        behind = torch.arange(tokens.ids.shape[1]) >= tokens.end[:, None]
        assert ((tokens.ids == 999) == behind).all()
        assert tokens.end.min() >= 2 and tokens.end.float().mean() == pytest.approx(3.2, abs=0.3)


class TestMachine:
    @pytest.mark.skipif(not machine.STATUS.exists(), reason="this system does not report peak memory")
    def test_the_peak_includes_memory_that_has_been_freed(self):
        def work():
            return float(torch.ones(16 * 2**20).sum())

        result, peak = machine.peak_memory(work)
        assert result == 16 * 2**20
        assert 60 * 2**20 < peak < 100 * 2**20
        assert machine.peak_memory(lambda: None)[1] < 8 * 2**20

    def test_short_work_is_repeated_until_its_time_can_be_measured(self, monkeypatch):
        calls, times = [], iter([10.0, 10.1, 10.2, 10.4])
        monkeypatch.setattr(machine.time, "perf_counter", lambda: next(times))
        assert machine.seconds(lambda: calls.append(1), 0.3) == pytest.approx(0.4 / 3)
        assert len(calls) == 3

    def test_the_speed_of_a_product_counts_by_its_operations(self, monkeypatch):
        seconds = {(1, 10, 10): 2.0, (1, 10, 20): 1.0}
        monkeypatch.setattr(machine, "_product_seconds", lambda *shape: seconds[shape[:3]])
        products = {(1, 10, 10): 3, (1, 10, 20): 1}
        assert machine.gemm_speed(products, torch.float32, 1) == (3 * 200 + 400) / (3 * 2.0 + 1.0)


def killed(clients: int, seed: int) -> None:
    """End the process, as the system does if it uses too much memory."""
    os._exit(1)


class TestScaling:
    def test_neighbours_share_classes(self):
        task = scaling.shared_classes(60)
        assert len(task.clients) == 60 and task.clients[0].classes == task.clients[50].classes
        assert set(task.clients[0].classes) & set(task.clients[1].classes)
        assert {len(client.train) for client in task.clients} == {40}

    @pytest.mark.by_hand
    def test_a_new_process_for_each_number(self, scene, monkeypatch):
        monkeypatch.setattr(scaling, "CLIENTS", (10, 20))
        first, second = scaling.measure_scaling(bench_of(scene))
        assert (first["clients"], second["clients"]) == (10, 20)
        assert first["seconds"] > 0

    @pytest.mark.slow
    def test_the_error_of_a_killed_process_has_the_number_of_clients(self, scene, monkeypatch):
        monkeypatch.setattr(scaling, "measure_clients", killed)
        with raises(TrainingError, where="scaling", got=10, remedy="--parts"):
            scaling.measure_scaling(bench_of(scene))


@pytest.fixture(scope="module")
def recipe_figures(small_source, backbone, cache, scene) -> dict:
    changes = ["task.clients=3", "task.shots=2", "federation.rounds=2", "federation.local_epochs=1"]
    config = load_config(changes=[*changes, "federation.path_points=1"])
    with pytest.MonkeyPatch.context() as patch:
        tiny.use_small_source(patch, small_source, backbone)
        patch.setattr(recipe, "MULTIPLYING", 0.01)
        patch.setattr(recipe, "SEEDS", 1)
        patch.setattr(recipe, "load_config", lambda: config)
        patch.setattr(recipe, "cores", lambda: 1)
        patch.setenv("XDG_CACHE_HOME", str(cache))
        return recipe.measure_recipe(bench_of(scene))


class TestRecipe:
    def test_operations_follow_the_contexts_that_each_method_reads(self, recipe_figures):
        assert set(recipe_figures["methods"]) == set(HEADLINE)
        training, evaluation = (
            [recipe_figures["methods"][name][f"{kind}_flops"] for name in HEADLINE]
            for kind in ("training", "evaluation")
        )
        none, local, promptfl, fedpgp = training
        assert none == 0 < local == promptfl
        assert fedpgp > 2 * local * 0.99  # p_G and p_i
        none, local, promptfl, fedpgp = evaluation
        assert none == 0 < local == 3 * promptfl  # a context for each client, or one for all
        assert fedpgp > local

    def test_torch_mm_is_measured_after_every_round_and_not_part_of_any_time(self, recipe_figures):
        assert len(recipe_figures["gemm"]) >= 1 + 3 * 2  # zero-shot, and three methods with two rounds
        elapsed = sum(cost["training"] + cost["evaluation"] for cost in recipe_figures["methods"].values())
        assert 0 < elapsed < recipe_figures["total"]

    def test_shares_are_of_the_mean_speed(self):
        keys = ("training", "evaluation", "training_flops", "evaluation_flops")
        methods = {
            name: dict(zip(keys, cost, strict=True))
            for name, cost in {"a": (3, 1, 600, 40), "b": (1, 0, 200, 0)}.items()
        }
        shares = recipe.shares(methods, 10.0, [300.0, 500.0])
        assert shares == {"training": 800 / 4 / 400, "rounds": 840 / 5 / 400, "everything": 840 / 10 / 400}
        figures = {"workers": 2, "total": 10.0, "methods": methods, "gemm": [300.0, 500.0], "shares": shares}
        assert "training 50%, rounds 42%, everything 21%" in " ".join(printed({"recipe": figures}).split())


def test_bf16_is_compared_with_the_same_step_in_float32(made_up):
    backbone = random_backbone(tiny_config(), "float32", seed=0)
    single = replace(made_up, backbone=backbone, pixels={"train": made_up.pixels["train"].float()})
    figures = variants.measure_bf16(bench_of(single, repeat=2, precision="float32"))
    assert len(figures["single"]) == len(figures["coarse"]) == 2
    assert 1e-6 < figures["gradient_difference"] < 1  # eight bits of mantissa, and not float32 twice
    shown = printed({"bf16": figures | {"single": [3.0, 4.0], "coarse": [2.0, 2.0]}})
    assert "1.75× as fast as in float32" in shown


def test_the_shares_of_a_profile_add_up_to_one(result):
    shares = result["profile"]["shares"]
    assert sum(shares.values()) == pytest.approx(1)
    assert min(shares.values()) >= 0 and shares["matrix multiplies"] > 0 and shares["Python and dispatch"] > 0


@pytest.fixture(scope="module")
def result(made_up):
    """Results of the parts that need no further processes."""
    options = Options("vit-b-16", ("step", "round", "classes", "general", "profile"), 1, 1, 0, "float64", classes=60)
    said = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(suite, "scene", lambda *_: made_up)
        patched.setattr(suite, "gemm_speed", lambda *_: 1e9)
        patched.setattr(stages, "gemm_speed", lambda *_: 1e9)
        found = suite.run_suite(options, said.append)
    assert said[0].startswith("about ") and "step: shared prefix, 1 of 1" in said
    return found


class TestSuite:
    def test_ratios(self, result):
        stages = {stage["name"]: stage for stage in result["step"]["stages"]}
        slow, fast = (stages[name]["seconds"][0] for name in ("naive", "packed"))
        assert stages["naive"]["to_naive"] == stages["naive"]["to_previous"] == 1
        assert stages["packed"]["to_naive"] == pytest.approx(slow / fast)
        assert stages["packed"]["to_previous"] == pytest.approx(stages["shared prefix"]["seconds"][0] / fast)

    def test_the_share_of_the_speed_is_counted_operations_over_time(self, result):
        speed, packed = result["step"]["speed"], result["step"]["stages"][-2]
        assert speed["share"] == pytest.approx(speed["flops_linear"] / packed["seconds"][0] / 1e9)
        assert speed["flops"] == speed["flops_linear"] + speed["flops_attention"]
        assert speed["naive_flops"] > 10 * speed["flops"]

    def test_the_result_has_the_machine_and_options_and_the_number_of_threads_is_restored(self, result):
        assert result["machine"]["torch"] == torch.__version__
        assert result["options"]["shape"] == "vit-b-16" and result["options"]["classes"] == 60
        assert torch.get_num_threads() == 1


class TestCommand:
    def test_json(self, result, command: Command, monkeypatch):
        monkeypatch.setattr(suite, "run_suite", lambda options, say: result | {"repeat": options.repeat})
        done = command("bench", "--repeat", "7", "--json")
        assert done.code == 0, done.err
        assert json.loads(done.out) == json.loads(json.dumps(result)) | {"repeat": 7}

    def test_tables(self, result, command: Command, monkeypatch):
        sizes = [
            {"clients": 10, "seconds": 2.0, "evaluation": 1.0, "peak": 2**20},
            {"clients": 1000, "seconds": 3.0, "evaluation": 4.0, "peak": None},
        ]
        monkeypatch.setattr(suite, "run_suite", lambda options, say: say("hello") or result | {"scaling": sizes})
        done = command("bench")
        assert done.code == 0 and "bench: hello" in done.err
        for text in ("shared prefix", "computed from units measured in this run", "ImageNet-like", "1,000 ", "1.50×"):
            assert text in done.out
        assert command("bench", "--quiet").err == ""

    @pytest.mark.parametrize(
        "arguments, expected",
        [
            (["--shape", "vit-b-17"], ["shape", "'vit-b-17'", "'vit-b-16'"]),
            (["--parts", "step,scale"], ["parts", "'scale'", "'scaling'"]),
            (["--precision", "float16"], ["precision", "'float16'", "'float64'"]),
            (["--parts", "bf16", "--precision", "float64"], ["precision", "'float64'", "--precision float32"]),
            (["--repeat", "0"], ["repeat", "got 0", "--repeat 1"]),
            (["--threads", "-1"], ["threads", "got -1", "--threads 1"]),
            (["--seed", "-1"], ["seed", "got -1", "--seed 0"]),
        ],
    )
    def test_bad_options(self, arguments, expected, command: Command):
        refused(command("bench", *arguments), *expected)


class TestDepth:
    def test_a_deeper_state_leaves_less_work(self, scene):
        first, second = variants.measure_depths(bench_of(scene))
        assert (first["layer"], second["layer"]) == (0, 1)
        assert first["flops"] > second["flops"] and 0 < first["below"] < second["below"] < 1
        assert all(min(*depth["pixels"], *depth["state"], *depth["frozen"]) > 0 for depth in (first, second))

    def test_operations_of_text_for_each_image_grow_with_classes_and_images(self, scene, monkeypatch):
        monkeypatch.setattr(variants, "CLASSES", (2, 4))
        monkeypatch.setattr(variants, "BATCHES", (1, 3))
        rows = {(row["classes"], row["batch"]): row for row in variants.measure_conditional(bench_of(scene))}
        assert rows[2, 3]["flops"] == 3 * rows[2, 1]["flops"] < rows[4, 3]["flops"]
        assert all(min(row["seconds"]) > 0 for row in rows.values())

    def test_the_tables(self):
        depth = {"layer": 2, "pixels": [0.3], "state": [0.1], "frozen": [0.4], "below": 0.4, "flops": 7e9, "saved": 0.5}
        conditional = {"classes": 2, "batch": 3, "seconds": [0.5, 0.7, 0.6], "memory": None, "flops": 4e9}
        shown = printed({"depth": [depth], "conditional": [conditional]})
        assert "50%" in shown and "40%" in shown and "0.6 s" in shown and "100000 µs" in shown


@pytest.mark.parametrize("shape", PUBLISHED)
def test_published_shapes_have_the_published_sizes(shape):
    config = published_config(shape)
    patches = {"vit-b-16": 196, "vit-b-32": 49, "vit-l-14": 256}[shape]
    assert (config.vision_config.image_size // config.vision_config.patch_size) ** 2 == patches
    heads = config.text_config.hidden_size / config.text_config.num_attention_heads
    assert heads == config.vision_config.hidden_size / config.vision_config.num_attention_heads == 64


@pytest.mark.by_hand
def test_pictoclip_on_the_command_line(command: Command):
    done = command("bench", "--shape", "pictoclip", "--parts", "step,round", "--repeat", "1", "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert result["round"]["naive_measured"] and result["round"]["ratios"]["round"] > 10


@pytest.fixture(scope="module")
def measured_costs(scene) -> dict[str, dict]:
    """Costs of some methods, on a tower of three layers with three clients in every round."""
    methods = ("zero-shot", "fedpgp", "fedprograd", "fedclip", "fedproda", "local")
    return {cost["name"]: cost for cost in costs.measure_costs(bench_of(scene, methods=methods))}


class TestCosts:
    def test_promptfl_is_first_and_methods_that_train_nothing_are_left_out(self, measured_costs):
        assert list(measured_costs) == ["promptfl", "fedpgp", "fedprograd", "fedclip", "fedproda", "local"]

    def test_operations_follow_the_contexts_and_the_backward_passes(self, measured_costs):
        ratios = {name: cost["flops"] / measured_costs["promptfl"]["flops"] for name, cost in measured_costs.items()}
        assert ratios["fedpgp"] == pytest.approx(2, rel=0.01) and ratios["local"] == 1
        assert 1.4 < ratios["fedprograd"] < 2  # one pass forward, two backward
        assert ratios["fedclip"] < 0.01
        assert 4 < ratios["fedproda"] < 4.5  # four of its prompts, also without a class name

    def test_steps_and_bytes_are_counted(self, measured_costs, scene):
        size = 16 * scene.backbone.token_width * 8
        for cost in measured_costs.values():
            assert cost["steps"] == len(tiny.EXAMPLES) and cost["step"] > 0 and cost["ratio"] > 0
        sizes = {name: (cost["bytes_up"], cost["bytes_down"]) for name, cost in measured_costs.items()}
        assert sizes["promptfl"] == (size, size)
        assert (sizes["fedpgp"][0], sizes["local"][0]) == (size, 0)
        assert sizes["fedproda"] == (32 * size, 32 * size)

    def test_the_table_names_every_method(self, measured_costs):
        text = printed({"methods": list(measured_costs.values())})
        assert all(name in text for name in measured_costs) and "to promptfl" in text
