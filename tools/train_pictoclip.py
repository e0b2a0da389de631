"""Train pictoclip, the embedded CLIP, on icon sets that are not in pictograms.

Needs build/drawings.parquet (tools/drawings.py) and a checkpoint folder with the tokenizer. A run has a seed and a
fixed number of steps, and uses the CPU: 8,000 steps take about an hour on two idle cores. The state is saved every few
minutes and on Ctrl-C, and the same command resumes the run. When the run is complete, the command writes the
checkpoint: plain transformers files with averaged weights in half precision. --out src/fedpgp/assets/pictoclip ships
it.

Set OMP_WAIT_POLICY=PASSIVE if other programs use the processor: threads that spin at barriers are then up to ten times
slower.

Choose settings with --validation-set (a pretraining set that is then not trained on), never with the six styles of
pictograms, whose results in the log are only for information.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer
from torch import Generator, Tensor, nn
from torch.nn import functional
from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessor, CLIPModel

from camera import capture, on_white
from captions import CONTEXT, VOCABULARY, tokens_for, words_for
from checksum_assets import write_checksums
from common import ASSETS, BUILD, add_running_options, replacing, stop_on_signals
from drawings import COLOURED_SETS, EMOJI_SETS, ONE_COLOUR_SETS, PRETRAINING_PIXELS, PRETRAINING_SETS
from evaluate_pictoclip import ZeroShot, accuracies, percent, read_classes, read_split
from style_changes import change_style

IMAGE_PIXELS = 48
PATCH_PIXELS = 8
VISION = {"hidden_size": 160, "intermediate_size": 640, "num_hidden_layers": 5, "num_attention_heads": 5}
TEXT = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 4}
PROJECTION = 128
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)  # mean of red, green and blue in CLIP
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)

TURNS = 64  # entries of the table of drawings of a name
PATCH_SAMPLE = 3000  # number of drawings for the whitening of patches
LARGEST_SCALE = 100.0  # largest scale of the logits, as in CLIP
PROTOTYPE_SCALE = 16.0  # scale of the logits of the classification over names
LEAST_SEVERITY = 0.02
SMALLEST_RATE = 1e-6
COPIED_FILES = ("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Settings:
    """Settings of a run. The log contains all of them."""

    seed: int = 0
    steps: int = 8_000
    names: int = 64  # names in a batch, each with two images and one caption
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.1
    warm_up: int = 500  # steps of the warm-up
    averaging: float = 0.998  # factor of the exponential mean of the weights
    image_loss: float = 0.5  # weight of the image–image loss relative to the image–text loss
    prototypes_until: float = 0.65  # share of the run in which the classification over names fades out
    severity_at_start: float = 0.1  # highest severity of captures at the start
    severity_full_at: float = 0.5  # share of the run after which captures have severities up to 1
    nearly_clean: float = 0.2  # share of the first images that are always nearly clean
    emoji_weight: float = 1.0  # weight of a name with two or more drawings, one of which is an emoji
    pair_weight: float = 0.25  # weight of another name with two or more drawings
    single_weight: float = 0.02  # weight of a name with one drawing
    validation_set: str = ""  # a pretraining set to hold out


@dataclass(frozen=True)
class Drawings:
    """All pretraining drawings.

    Attributes
    ----------
    pixels
        RGBA, uint8 [n, 4, 64, 64].
    one_colour
        bool [n].
    names, sets
        Numbers of name and set, int64 [n].
    """

    pixels: Tensor
    one_colour: Tensor
    names: np.ndarray
    sets: np.ndarray


@dataclass(frozen=True)
class Pool:
    """Source of batches.

    Attributes
    ----------
    weights
        float [names].
    table
        Drawings of each name in the proportion of their shares, int64 [names, 64].
    captions
        int64 [names, 16, 40].
    """

    drawings: Drawings
    weights: Tensor
    table: Tensor
    captions: Tensor


@dataclass(frozen=True)
class Batch:
    """Images [2n, 3, 48, 48] (first images, then second images), captions [n, length] and names [n]."""

    images: Tensor
    captions: Tensor
    names: Tensor


@dataclass
class Run:
    """State of a run, which is saved to resume it."""

    model: CLIPModel
    average: CLIPModel
    prototypes: nn.Parameter
    optimizer: torch.optim.Optimizer
    generator: Generator
    step: int
    seconds: float
    log: list[dict[str, float]]


# ---------------------------------------------------------------------------------------------------------- the data


def read_drawings(path: Path) -> tuple[Drawings, list[str], list[list[str]]]:
    """Return the drawings of tools/drawings.py with the name and the captions of each."""
    table = pq.read_table(path)
    side = PRETRAINING_PIXELS
    rows = np.frombuffer(b"".join(table["pixels"].to_pylist()), np.uint8).reshape(-1, side, side, 4)
    pixels = torch.from_numpy(rows.copy()).permute(0, 3, 1, 2).contiguous()
    names = table["name"].to_pylist()
    sets = table["set"].to_pylist()
    number_of = {name: number for number, name in enumerate(sorted(set(names)))}
    drawings = Drawings(
        pixels,
        torch.tensor([icon_set in ONE_COLOUR_SETS for icon_set in sets]),
        np.array([number_of[name] for name in names]),
        np.array([PRETRAINING_SETS.index(icon_set) for icon_set in sets]),
    )
    return drawings, names, table["captions"].to_pylist()


def share_of_set(icon_set: str) -> float:
    """Return the share of a drawing of this set relative to the other drawings of its name."""
    if icon_set in ONE_COLOUR_SETS:
        return 1.0
    return 4.0 if icon_set in EMOJI_SETS else 2.0


def turns_of(members: np.ndarray, shares: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return 64 drawings of one name in the proportion of their shares, shuffled."""
    counts = np.maximum(1, np.round(shares / shares.sum() * TURNS)).astype(int)
    turns = np.repeat(members, counts)
    rng.shuffle(turns)
    return np.resize(turns, TURNS)


def make_pool(drawings: Drawings, captions: np.ndarray, settings: Settings) -> Pool:
    """Return tables and weights for batches, without drawings of the validation set."""
    rng = np.random.default_rng(settings.seed)
    emoji = {PRETRAINING_SETS.index(icon_set) for icon_set in EMOJI_SETS}
    share = np.array([share_of_set(icon_set) for icon_set in PRETRAINING_SETS])[drawings.sets]
    used = ~held_out(drawings, settings)
    members: list[list[int]] = [[] for _ in range(len(captions))]
    for drawing in np.flatnonzero(used):
        members[drawings.names[drawing]].append(drawing)
    table = np.zeros((len(captions), TURNS), np.int64)
    weights = np.zeros(len(captions), np.float32)
    for name, of_name in enumerate(members):
        if not of_name:
            continue
        mine = np.array(of_name)
        table[name] = turns_of(mine, share[mine], rng)
        if len(mine) == 1:
            weights[name] = settings.single_weight
        elif emoji.isdisjoint(drawings.sets[mine]):
            weights[name] = settings.pair_weight
        else:
            weights[name] = settings.emoji_weight
    tokens = torch.from_numpy(captions.astype(np.int64))
    return Pool(drawings, torch.from_numpy(weights), torch.from_numpy(table), tokens)


def held_out(drawings: Drawings, settings: Settings) -> np.ndarray:
    """Return the drawings that belong to the validation set: bool [n]."""
    if not settings.validation_set:
        return np.zeros(len(drawings.sets), bool)
    return drawings.sets == PRETRAINING_SETS.index(settings.validation_set)


def coloured(drawings: Drawings, chosen: Tensor, generator: Generator) -> Tensor:
    """Return drawings as float [n, 4, 64, 64] in 0..1; one-colour pictograms get a random, mostly dark colour."""
    n = len(chosen)
    images = drawings.pixels[chosen].float() / 255
    ink = torch.rand(n, 3, 1, 1, generator=generator)
    dark = torch.rand(n, 1, 1, 1, generator=generator) < 0.6
    ink = torch.where(dark, ink * 0.35, ink)
    images[:, :3] = torch.where(drawings.one_colour[chosen].view(-1, 1, 1, 1), ink, images[:, :3])
    return images


def severities(done: float, settings: Settings, generator: Generator) -> list[float]:
    """Return the severities of the quarters of a batch (two of first, two of second images) at a share of the run."""
    grown = settings.severity_at_start + done / settings.severity_full_at * (1 - settings.severity_at_start)
    draws = torch.rand(4, generator=generator).tolist()
    chosen = [draw * min(1.0, grown) for draw in draws]
    if draws[0] < 2 * settings.nearly_clean:  # the first quarter is half of the first images
        chosen[0] = 0.0
    return [max(severity, LEAST_SEVERITY) for severity in chosen]


def draw_batch(pool: Pool, settings: Settings, done: float, generator: Generator) -> Batch:
    """Return a batch of names by weight, with two captured drawings, the second one redrawn, and a caption for each.

    `done` is the finished share of the run, which determines the severity of captures.
    """
    n = settings.names
    names = torch.multinomial(pool.weights, n, generator=generator)
    first = torch.randint(0, TURNS, (n,), generator=generator)
    second = (first + 1 + torch.randint(0, TURNS - 1, (n,), generator=generator)) % TURNS
    first_images = coloured(pool.drawings, pool.table[names, first], generator)
    second_images = change_style(coloured(pool.drawings, pool.table[names, second], generator), generator)
    quarters = [*first_images.chunk(2), *second_images.chunk(2)]
    images = [
        capture(quarter, IMAGE_PIXELS, severity, generator)
        for quarter, severity in zip(quarters, severities(done, settings, generator), strict=True)
    ]
    which = torch.randint(0, pool.captions.shape[1], (n,), generator=generator)
    captions = pool.captions[names, which]
    longest = int((captions != VOCABULARY - 1).sum(1).max()) + 1  # causal attention ignores tokens after the end
    return Batch(torch.cat(images), captions[:, :longest], names)


# --------------------------------------------------------------------------------------------------------- the model


def configuration() -> CLIPConfig:
    """Return the architecture; the end of the text has the highest id."""
    end = VOCABULARY - 1
    text = {
        **TEXT,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": CONTEXT,
        "projection_dim": PROJECTION,
        "bos_token_id": end - 1,
        "eos_token_id": end,
        "pad_token_id": end,
    }
    vision = {**VISION, "image_size": IMAGE_PIXELS, "patch_size": PATCH_PIXELS, "projection_dim": PROJECTION}
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=PROJECTION)


def normalised(images: Tensor) -> Tensor:
    """Return images in 0..1, normalized with the mean and standard deviation of CLIP."""
    return (images - torch.tensor(PIXEL_MEAN).view(1, 3, 1, 1)) / torch.tensor(PIXEL_STD).view(1, 3, 1, 1)


def wave_positions(side: int, width: int) -> Tensor:
    """Return sines and cosines of row and column at width/4 frequencies each: [side², width]."""
    line = torch.arange(side)
    row, column = torch.meshgrid(line, line, indexing="ij")
    frequencies = 1 / 10000 ** (torch.arange(width // 4) / (width / 4))
    waves = [wave(axis.reshape(-1, 1) * frequencies) for axis in (row, column) for wave in (torch.sin, torch.cos)]
    return torch.cat(waves, 1)


def whitening_filters(drawings: Drawings, generator: Generator) -> Tensor:
    """Return initial weights [width, 3, 8, 8] of the patch embedding, which whiten patches of clean drawings."""
    chosen = torch.randint(0, len(drawings.pixels), (PATCH_SAMPLE,), generator=generator)
    images = normalised(on_white(coloured(drawings, chosen, generator), IMAGE_PIXELS))
    size = 3 * PATCH_PIXELS**2
    width = VISION["hidden_size"]
    patches = functional.unfold(images, PATCH_PIXELS, stride=PATCH_PIXELS).transpose(1, 2).reshape(-1, size)
    patches = patches[patches.std(1) > 0.05]  # empty patches have no information
    patches = patches - patches.mean(0)
    variances, directions = torch.linalg.eigh(patches.T @ patches / len(patches))
    variances, directions = variances.flip(0)[:width], directions.flip(1)[:, :width]
    white = (directions / (variances + 0.002 * variances[0]).sqrt()).T * 0.5  # 0.002 limits weak directions
    rotation, _ = torch.linalg.qr(torch.randn(width, width, generator=generator))
    return (rotation @ white).view(width, 3, PATCH_PIXELS, PATCH_PIXELS)


def new_model(drawings: Drawings, settings: Settings) -> CLIPModel:
    """Return an untrained CLIP with whitened patches and sine–cosine positions."""
    torch.manual_seed(settings.seed)  # transformers draws the initial weights from the global generator
    config = configuration()
    config._attn_implementation = "eager"  # plain products and softmax are the fastest on a CPU at these sizes
    model = CLIPModel(config)
    generator = Generator().manual_seed(settings.seed + 5)
    embeddings = model.vision_model.embeddings
    with torch.no_grad():
        embeddings.patch_embedding.weight.copy_(whitening_filters(drawings, generator))
        waves = wave_positions(IMAGE_PIXELS // PATCH_PIXELS, VISION["hidden_size"])
        embeddings.position_embedding.weight[1:] = waves * 0.3
        model.logit_scale.fill_(math.log(10.0))
    return model


def image_features(model: CLIPModel, images: Tensor) -> Tensor:
    """Return features [n, 128] of unit length of images [n, 3, 48, 48] in 0..1."""
    pooled = model.vision_model(pixel_values=normalised(images)).pooler_output
    return functional.normalize(model.visual_projection(pooled).float(), dim=-1)


def text_features(model: CLIPModel, tokens: Tensor) -> Tensor:
    """Return features [n, 128] of unit length of tokens [n, length]."""
    pooled = model.text_model(input_ids=tokens).pooler_output
    return functional.normalize(model.text_projection(pooled).float(), dim=-1)


# ------------------------------------------------------------------------------------------------------ the training


def new_run(drawings: Drawings, names: int, settings: Settings) -> Run:
    """Return a run before its first step."""
    model = new_model(drawings, settings)
    generator = Generator().manual_seed(settings.seed + 1)
    prototypes = nn.Parameter(torch.randn(names, PROJECTION, generator=generator) * PROJECTION**-0.5)
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = [prototypes]
    for name, parameter in model.named_parameters():
        (decayed if parameter.ndim > 1 and "embedding" not in name else others).append(parameter)
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.98), eps=1e-6, fused=True)
    average = copy.deepcopy(model).eval().requires_grad_(False)
    return Run(model, average, prototypes, optimizer, generator, 0, 0.0, [])


def both_ways(logits: Tensor) -> Tensor:
    """Return the mean of the cross-entropies over rows and over columns; the diagonal is correct."""
    own = torch.arange(len(logits))
    return (functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)) / 2


def loss_of(run: Run, batch: Batch, settings: Settings, done: float) -> Tensor:
    """Return the image–text and image–image contrastive loss, and the classification over names that fades out."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        images = image_features(run.model, batch.images)
        texts = text_features(run.model, batch.captions)
    scale = run.model.logit_scale.exp().clamp(max=LARGEST_SCALE)
    first, second = images.chunk(2)
    loss = (both_ways(scale * first @ texts.T) + both_ways(scale * second @ texts.T)) / 2
    loss = loss + settings.image_loss * both_ways(scale * first @ second.T)
    weight = 1 - done / settings.prototypes_until
    if weight > 0:  # images and texts share the prototypes, which aligns them early
        prototypes = functional.normalize(run.prototypes, dim=-1)
        of_images = functional.cross_entropy(PROTOTYPE_SCALE * images @ prototypes.T, batch.names.repeat(2))
        of_texts = functional.cross_entropy(PROTOTYPE_SCALE * texts @ prototypes.T, batch.names)
        loss = loss + weight * (of_images + of_texts) / 2
    return loss


def learning_rate(step: int, settings: Settings) -> float:
    """Return the factor of the learning rate: linear warm-up times a cosine that ends near zero."""
    warm = min(1.0, (step + 1) / settings.warm_up)
    return settings.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / settings.steps)) + SMALLEST_RATE


def take_step(run: Run, pool: Pool, settings: Settings) -> float:
    """Take one step of the optimizer and of the averaged weights, and return the loss."""
    done = run.step / settings.steps
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(run.step, settings)
    batch = draw_batch(pool, settings, done, run.generator)
    loss = loss_of(run, batch, settings, done)
    run.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
    run.optimizer.step()
    run.step += 1
    kept = min(settings.averaging, 1 - 1 / (run.step + 10))  # the initial weights soon have no effect
    with torch.no_grad():
        torch._foreach_lerp_(list(run.average.parameters()), list(run.model.parameters()), 1 - kept)
    return loss.item()


# ------------------------------------------------------------------------------------------- checking, saving, running


class Checks:
    """Zero-shot accuracies of a run on pictograms, without test captures, and on the validation set, if any."""

    def __init__(self, tokenizer_folder: Path, data: Path, pool: Pool, settings: Settings) -> None:
        self.names, self.unseen = read_classes(data)
        self.tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
        processor = CLIPImageProcessor.from_pretrained(tokenizer_folder)
        self.splits = {split: read_split(data, split, processor) for split in ("clean", "validation")}
        self.pool = pool
        others = np.bincount(pool.drawings.names[~held_out(pool.drawings, settings)], minlength=len(pool.captions))
        drawn_elsewhere = others[pool.drawings.names] >= 2
        self.held = np.flatnonzero(held_out(pool.drawings, settings) & drawn_elsewhere)

    def validation_accuracy(self, model: CLIPModel) -> dict[str, float]:
        """Return the accuracy in percent on clean drawings and captures of the held-out set, among its names."""
        if not len(self.held):
            return {}
        drawings = self.pool.drawings
        names, labels = np.unique(drawings.names[self.held], return_inverse=True)
        images = drawings.pixels[torch.from_numpy(self.held)].float() / 255
        generator = Generator().manual_seed(98)
        kinds = {
            "held_out_clean": on_white(images, IMAGE_PIXELS),
            "held_out_captures": capture(images, IMAGE_PIXELS, 0.6, generator),
        }
        with torch.inference_mode():
            texts = text_features(model, self.pool.captions[torch.from_numpy(names), 0])
            answers = {kind: (image_features(model, seen) @ texts.T).argmax(1) for kind, seen in kinds.items()}
        return {kind: percent(answer.numpy() == labels) for kind, answer in answers.items()}

    def __call__(self, model: CLIPModel) -> dict[str, float]:
        """Return all accuracies in percent, as means over the six styles."""
        classifier = ZeroShot(model, self.tokenizer, self.names)
        result = {}
        for split, images in self.splits.items():
            groups = accuracies(classifier, images, self.unseen)
            result.update({f"{split}_{group}": by_style["mean"] for group, by_style in groups.items()})
        return {**result, **self.validation_accuracy(model)}


def save_state(run: Run, settings: Settings, path: Path) -> None:
    """Save everything that is needed to resume the run exactly."""
    state = {
        "settings": asdict(settings),
        "model": run.model.state_dict(),
        "average": run.average.state_dict(),
        "prototypes": run.prototypes.detach(),
        "optimizer": run.optimizer.state_dict(),
        "generator": run.generator.get_state(),
        "step": run.step,
        "seconds": run.seconds,
        "log": run.log,
    }
    with replacing(path) as temporary:
        torch.save(state, temporary)


def load_state(run: Run, settings: Settings, path: Path) -> None:
    """Load a saved run, which must have the same settings."""
    state = torch.load(path, weights_only=True)
    if state["settings"] != asdict(settings):
        raise SystemExit(f"{path} has a run with other settings. Remove it, or name another file with --state.")
    run.model.load_state_dict(state["model"])
    run.average.load_state_dict(state["average"])
    run.optimizer.load_state_dict(state["optimizer"])
    run.generator.set_state(state["generator"])
    run.prototypes.data.copy_(state["prototypes"])
    run.step, run.seconds, run.log = state["step"], state["seconds"], state["log"]


def write_checkpoint(run: Run, settings: Settings, files_from: Path, output: Path) -> None:
    """Write the averaged weights and the log into a folder that plain transformers loads, replacing its files."""
    temporary = output.with_name(f".{output.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    model = copy.deepcopy(run.average).half()
    model.config.architectures = ["CLIPModel"]
    model.save_pretrained(temporary)
    for name in COPIED_FILES:
        shutil.copyfile(files_from / name, temporary / name)
    log = {
        "made_by": "tools/train_pictoclip.py",
        "settings": asdict(settings),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "seconds": round(run.seconds),
        "log": run.log,
    }
    (temporary / "training.json").write_text(json.dumps(log, indent=1) + "\n", encoding="utf-8")
    output.mkdir(parents=True, exist_ok=True)
    for file in sorted(temporary.iterdir()):
        file.replace(output / file.name)
    temporary.rmdir()


def train(run: Run, pool: Pool, settings: Settings, checks: Checks, arguments: argparse.Namespace) -> bool:
    """Train until the last step or a signal, and return whether the run is complete."""
    stopping = stop_on_signals()
    since, first = time.monotonic() - run.seconds, run.step
    began = time.monotonic()
    while run.step < settings.steps and not stopping:
        loss = take_step(run, pool, settings)
        run.seconds = time.monotonic() - since
        if run.step % arguments.print_every == 0:
            pace = (time.monotonic() - began) / (run.step - first)
            left = pace * (settings.steps - run.step) / 60
            print(f"step {run.step} loss {loss:.3f} {pace:.3f} s/step {left:.1f} min left", flush=True)
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
    paths.add_argument("--drawings", type=Path, default=BUILD / "drawings.parquet", help="default: %(default)s")
    paths.add_argument(
        "--files-from", type=Path, default=ASSETS / "pictoclip", help="folder of the tokenizer (default: %(default)s)"
    )
    paths.add_argument(
        "--data", type=Path, default=ASSETS / "pictograms", help="data of the checks (default: %(default)s)"
    )
    paths.add_argument("--state", type=Path, default=BUILD / "pictoclip.state", help="default: %(default)s")
    paths.add_argument(
        "--out",
        type=Path,
        default=BUILD / "pictoclip",
        help="folder for the checkpoint (default: %(default)s); src/fedpgp/assets/pictoclip ships it",
    )
    recipe = parser.add_argument_group("recipe")
    recipe.add_argument("--seed", type=int, default=Settings.seed, help="default: %(default)s")
    recipe.add_argument("--steps", type=int, default=Settings.steps, help="default: %(default)s")
    recipe.add_argument(
        "--validation-set", default="", choices=["", *EMOJI_SETS, *COLOURED_SETS], help="hold this pretraining set out"
    )
    add_running_options(parser, threads=2, check_every=1000, save_every=500)
    return parser.parse_args()


def main() -> None:
    """Read the data, start or resume the run, and write the checkpoint."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    settings = Settings(seed=arguments.seed, steps=arguments.steps, validation_set=arguments.validation_set)
    print("reading drawings and writing captions: about 15 s", flush=True)
    drawings, names, captions = read_drawings(arguments.drawings)
    tokenizer = Tokenizer.from_file(str(arguments.files_from / "tokenizer.json"))
    tokens = tokens_for(words_for(names, captions), tokenizer, settings.seed)
    pool = make_pool(drawings, tokens, settings)
    checks = Checks(arguments.files_from, arguments.data, pool, settings)
    run = new_run(drawings, len(tokens), settings)
    if arguments.state.exists():
        load_state(run, settings, arguments.state)
        print(f"resumed at step {run.step}", flush=True)
    if not train(run, pool, settings, checks, arguments):
        print(f"stopped at step {run.step}; the same command resumes the run", flush=True)
        return
    write_checkpoint(run, settings, arguments.files_from, arguments.out)
    if arguments.out.resolve().parent == ASSETS:
        write_checksums(ASSETS)
    print(f"checkpoint written to {arguments.out}", flush=True)


if __name__ == "__main__":
    main()
