"""What works on this machine: versions, extras, devices, embedded files, cache, disk, and a classification."""

import platform
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from packaging.requirements import Requirement
from rich.filesize import decimal

import fedpgp
from fedpgp.errors import FedPGPError
from fedpgp.runtime.processes import cores

if TYPE_CHECKING:
    from fedpgp.backbone import Backbone

PACKAGES = ("torch", "transformers", "numpy", "pillow", "pyarrow", "datasets", "huggingface-hub", "safetensors")
EXTRAS = {  # what the packages of an extra enable
    "flower": "federations on Flower",
    "privacy": "dp-fpl, and epsilon of a run",
    "report": "fedpgp report",
    "tracking": "MLflow, TensorBoard, Weights & Biases",
    "onnx": "fedpgp export --format onnx",
    "demo": "fedpgp demo",
    "open-clip": "checkpoints of OpenCLIP that are not CLIP's own shape",
    "sentencepiece": "tokenizers of SigLIP",
    "tune": "fedpgp tune",
    "heic": "HEIC images, as phones take them",
}
TIMEOUT = 3.0  # seconds
STEP_CLASSES = 20  # of the training step that is tried
ROOM = 1_000_000_000  # bytes of free disk below which there is a note


@dataclass(frozen=True)
class CheckResult:
    """What a check says. state: "ok"; "note", nothing that a run needs; "wrong", a run would fail. advice: what to do.

    group: which check it is.
    """

    name: str
    state: Literal["ok", "note", "wrong"]
    value: str
    advice: str = ""
    group: str = ""


Results = Iterator[CheckResult]


def examine(cache: Path | None = None, network: bool = False) -> Results:
    """Make one check after the other. A fault of one is a result, and the next is made all the same."""
    checks: dict[str, Callable[[], Results]] = {
        "versions": _versions,
        "extras": _extras,
        "devices": _devices,
        "files": _files,
        "disk": lambda: _disk(cache),
        "self-test": _self_test,
    }
    if network:
        checks["network"] = _network
    for group, check in checks.items():
        try:
            for result in check():
                yield replace(result, group=group)
        except FedPGPError as error:
            yield CheckResult("fault", "wrong", str(error), "do what the message says", group)
        except Exception as error:  # whatever a broken installation raises is what is asked for
            text = f"{type(error).__name__}: {error}"
            yield CheckResult("fault", "wrong", text, "install fedpgp again, with -c constraints.txt", group)


def _result(
    name: str, good: bool, value: str, advice: str, otherwise: Literal["note", "wrong"] = "wrong"
) -> CheckResult:
    """The result "ok", or `otherwise` with advice."""
    return CheckResult(name, "ok", value) if good else CheckResult(name, otherwise, value, advice)


def _versions() -> Results:
    yield CheckResult("fedpgp", "ok", fedpgp.__version__)
    yield CheckResult("python", "ok", f"{platform.python_version()}, {platform.platform()}")
    for name in PACKAGES:
        installed = _version(name)
        yield _result(name, bool(installed), installed or "not installed", "pip install -c constraints.txt .")


def _extras() -> Results:
    for extra, enables in EXTRAS.items():
        versions = {name: _version(name) for name in _packages("fedpgp", extra)}
        missing = [name for name, installed in versions.items() if installed is None]
        value = f"{enables} ({', '.join(f'{name} {installed}' for name, installed in versions.items())})"
        advice = f'pip install -c constraints.txt ".[{extra}]" for {enables}'
        yield _result(extra, not missing, f"without {', '.join(missing)}" if missing else value, advice, "note")


def _packages(distribution: str, extra: str) -> Iterator[str]:
    """The packages that an extra of an installed distribution names, with those of their own extras."""
    for line in requires(distribution) or ():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            continue
        if requirement.marker.evaluate({"extra": extra}):
            yield requirement.name
            for inner in requirement.extras if _version(requirement.name) else ():
                yield from _packages(requirement.name, inner)


def _version(name: str) -> str | None:
    """The version of an installed distribution."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _devices() -> Results:
    import torch

    from fedpgp.backbone.load import bfloat16_speed

    instructions = torch.backends.cpu.get_cpu_capability()
    yield CheckResult("cpu", "ok", f"{cores()} cores, {torch.get_num_threads()} threads, {instructions}")
    devices = ["cpu"]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            devices.append(f"cuda:{index}")
            yield CheckResult(devices[-1], "ok", f"{properties.name}, {decimal(properties.total_memory)}")
    else:
        built = torch.version.cuda
        why = f"no GPU that PyTorch's CUDA {built} can use" if built else "PyTorch's build without CUDA"
        yield CheckResult("cuda", "note", why)
    if torch.backends.mps.is_available():
        yield CheckResult("mps", "note", "there", "no run was tried on it")
    else:
        yield CheckResult("mps", "note", "none")
    for device in devices:
        speed = bfloat16_speed(device)
        advice = f"leave --precision at float32 on {device}"
        yield _result(f"bf16 on {device}", speed > 1, f"{speed:.2g} × float32", advice, "note")


def _files() -> Results:
    from fedpgp import assets
    from fedpgp.backbone.files import EMBEDDED

    for name in (*EMBEDDED, "pictograms", "caltech101", "clip-tokenizer"):
        try:
            size = sum(file.stat().st_size for file in assets.verified(name).rglob("*") if file.is_file())
        except FedPGPError as error:
            yield CheckResult(name, "wrong", str(error), "install fedpgp again")
        else:
            yield CheckResult(name, "ok", f"as shipped, {decimal(size)}")


def _disk(cache: Path | None) -> Results:
    from fedpgp.data.cache import cache_directory, check_cache, entries

    place = cache_directory(cache)
    try:
        check_cache(place)
    except FedPGPError as error:
        yield CheckResult("feature cache", "wrong", str(error), "--cache-dir elsewhere, or make it writable")
    else:
        kept = entries(place)
        size = decimal(sum(entry.bytes for entry in kept))
        yield CheckResult("feature cache", "ok", f"{place}, {len(kept)} entries, {size}")
    for name, directory in (("free for features", place), ("free for runs", Path.cwd())):
        there = next(path for path in (directory, *directory.absolute().parents) if path.exists())
        free = shutil.disk_usage(there).free
        yield _result(name, free >= ROOM, decimal(free), "fedpgp cache clear --stale, or another disk", "note")


def _self_test() -> Results:
    from fedpgp.backbone import load_backbone
    from fedpgp.data.sources import pictograms

    backbone = load_backbone("pictoclip")
    source = pictograms.read(("train", "validation"))
    data = source.validation
    assert data is not None
    names = data.class_names[:20]
    image = data.image(next(index for index in range(len(data)) if data.labels[index] == 0))
    backbone.image([image])  # the first call of all loads what the library needs
    started = time.perf_counter()
    text = backbone.template_features(source.templates[0], names)
    likeness = (backbone.image([image]) @ text.T)[0]
    elapsed = 1000 * (time.perf_counter() - started)
    place = int((likeness > likeness[0]).sum()) + 1
    value = f"zero-shot has {names[0]!r} in place {place} of {len(names)}, {elapsed:.0f} ms"
    yield _result("classify", place <= 3 and bool(likeness.isfinite().all()), value, "install PyTorch again")


def examine_checkpoint(name: str) -> Results:
    """What a checkpoint is, which methods fit it, and what a training step takes; raises CheckpointError."""
    from fedpgp.backbone import load_backbone
    from fedpgp.backbone.text import TextEncoder
    from fedpgp.methods import METHODS
    from fedpgp.runs.checks import misfit

    backbone = load_backbone(name)
    image, text = backbone.image, backbone.text
    fast = isinstance(text, TextEncoder)
    reading = "of CLIP's shape, with the fast encoder" if fast else "read by its own modules, class by class"
    patches = f"{image.patches} patches" if image.patches else "no patches"
    yield CheckResult("text tower", "ok", f"{reading}; {text.token_width} wide, {text.longest} positions")
    yield CheckResult(
        "image tower", "ok", f"{image.size[0]} × {image.size[1]} pixels, {image.width} features, {patches}"
    )
    yield CheckResult("licence", "ok" if backbone.licence != "not stated" else "note", backbone.licence)
    yield CheckResult("files", "ok", decimal(sum(file.stat().st_size for file in backbone.files)))
    reasons = {method: misfit(of_name(), backbone) for method, of_name in METHODS.items()}
    fits = [method for method, reason in reasons.items() if not reason]
    yield CheckResult("methods that fit", "ok", ", ".join(fits))
    for reason in dict.fromkeys(filter(None, reasons.values())):
        others = [method for method, own in reasons.items() if own == reason]
        yield CheckResult("do not fit", "note", f"{', '.join(others)}: {reason} this checkpoint")
    seconds, kept = _step(backbone)
    value = f"{1000 * seconds:.0f} ms and {decimal(kept)} for two prompts of 16 vectors and {STEP_CLASSES} classes"
    yield CheckResult("training step", "ok", value)


def _step(backbone: "Backbone") -> tuple[float, int]:
    """Seconds of a forward and a backward pass of the text tower, the best of three, and bytes kept between them."""
    import torch

    from fedpgp.backbone.layers import kept_for_backward

    classes = backbone.class_tokens([f"class {number}" for number in range(STEP_CLASSES)])
    contexts = backbone.text.embed(torch.full((2, 16), classes.ids[0, 0].item(), dtype=torch.long))
    contexts = contexts.clone().requires_grad_()
    seconds, passes = [], []  # the first two live at the same time, so what both keep is what is frozen
    for _ in range(3):
        started = time.perf_counter()
        features, kept = kept_for_backward(lambda: backbone.text(contexts, classes))
        passes.append((features, kept))
        features.sum().backward(retain_graph=len(passes) == 1)
        seconds.append(time.perf_counter() - started)
    (_, first), (_, second) = passes[:2]
    return min(seconds), sum(size for place, size in second.items() if place not in first)


def _network() -> Results:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        yield CheckResult("model hub", "note", "not asked: HF_HUB_OFFLINE is set", "unset it for --network")
        return
    advice = "download elsewhere and name a directory as backbone.checkpoint, or set HF_ENDPOINT to a mirror"
    try:
        with urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=TIMEOUT) as answer:
            yield CheckResult("model hub", "ok", f"answers {answer.status}")
    except HTTPError as error:
        yield CheckResult("model hub", "wrong", f"answers {error.code}", advice)
    except (OSError, ValueError) as error:
        yield CheckResult("model hub", "wrong", f"{constants.ENDPOINT} does not answer: {error}", advice)
