"""Checks of this machine: versions, extras, devices, embedded files, feature cache, disk space and a self-test."""

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
EXTRAS = {  # extra -> what its packages enable
    "flower": "federations on Flower",
    "simulation": "federation.engine=simulation, with Flower and Ray",
    "privacy": "dp-fpl, and the epsilon of a run",
    "tracking": "MLflow, TensorBoard, Weights & Biases",
    "onnx": "fedpgp export --format onnx",
    "demo": "fedpgp demo",
    "open-clip": "OpenCLIP checkpoints with another architecture than CLIP",
    "sentencepiece": "tokenizers of SigLIP",
    "tune": "fedpgp tune",
    "heic": "HEIC images, the format of many phones",
}
TIMEOUT = 3.0  # seconds
STEP_CLASSES = 20  # classes of the training step that is timed
ROOM = 1_000_000_000  # bytes; a note is printed if less disk space is free


@dataclass(frozen=True)
class CheckResult:
    """Result of a check.

    Attributes
    ----------
    name
        What was checked.
    state
        "ok", "note" for something that a run does not need, or "wrong" if a run would fail.
    value
        What was found.
    advice
        What to do about it.
    group
        Name of the check.
    """

    name: str
    state: Literal["ok", "note", "wrong"]
    value: str
    advice: str = ""
    group: str = ""


Results = Iterator[CheckResult]


def examine(cache: Path | None = None, network: bool = False) -> Results:
    """Yield the results of all checks. A check that fails is a result, too, and the next one runs nevertheless."""
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
            yield CheckResult("fault", "wrong", str(error), "follow the message", group)
        except Exception as error:  # a broken installation may raise anything
            text = f"{type(error).__name__}: {error}"
            yield CheckResult("fault", "wrong", text, "install fedpgp again with -c constraints.txt", group)


def _result(
    name: str, good: bool, value: str, advice: str, otherwise: Literal["note", "wrong"] = "wrong"
) -> CheckResult:
    """Return the result "ok", or `otherwise` with the advice."""
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
        advice = f'pip install -c constraints.txt ".[{extra}]" enables {enables}'
        yield _result(extra, not missing, f"not installed: {', '.join(missing)}" if missing else value, advice, "note")


def _packages(distribution: str, extra: str) -> Iterator[str]:
    """Yield the packages of an extra of an installed distribution, with the packages of their own extras."""
    for line in requires(distribution) or ():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            continue
        if requirement.marker.evaluate({"extra": extra}):
            yield requirement.name
            for inner in requirement.extras if _version(requirement.name) else ():
                yield from _packages(requirement.name, inner)


def _version(name: str) -> str | None:
    """Return the version of a distribution, or None if it is not installed."""
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
        why = f"no GPU works with CUDA {built} of PyTorch" if built else "this build of PyTorch has no CUDA"
        yield CheckResult("cuda", "note", why)
    if torch.backends.mps.is_available():
        yield CheckResult("mps", "note", "available", "fedpgp was never tested on it")
    else:
        yield CheckResult("mps", "note", "not available")
    for device in devices:
        speed = bfloat16_speed(device)
        advice = f"keep --precision float32 on {device}"
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
            yield CheckResult(name, "ok", f"intact, {decimal(size)}")


def _disk(cache: Path | None) -> Results:
    from fedpgp.data.cache import cache_directory, check_cache, entries

    place = cache_directory(cache)
    try:
        check_cache(place)
    except FedPGPError as error:
        yield CheckResult(
            "feature cache", "wrong", str(error), "use another --cache-dir, or make the directory writable"
        )
    else:
        kept = entries(place)
        size = decimal(sum(entry.bytes for entry in kept))
        yield CheckResult("feature cache", "ok", f"{place}, {len(kept)} entries, {size}")
    for name, directory in (("free for features", place), ("free for runs", Path.cwd())):
        there = next(path for path in (directory, *directory.absolute().parents) if path.exists())
        free = shutil.disk_usage(there).free
        yield _result(
            name,
            free >= ROOM,
            decimal(free),
            "free space with `fedpgp cache clear --stale`, or use another disk",
            "note",
        )


def _self_test() -> Results:
    from fedpgp.backbone import load_backbone
    from fedpgp.data.sources import pictograms

    backbone = load_backbone("pictoclip")
    source = pictograms.read(("train", "validation"))
    data = source.validation
    assert data is not None
    names = data.class_names[:20]
    image = data.image(next(index for index in range(len(data)) if data.labels[index] == 0))
    backbone.image([image])  # the first call loads libraries and must not be timed
    started = time.perf_counter()
    text = backbone.template_features(source.templates[0], names)
    similarity = (backbone.image([image]) @ text.T)[0]
    elapsed = 1000 * (time.perf_counter() - started)
    rank = int((similarity > similarity[0]).sum()) + 1
    value = f"zero-shot ranks {names[0]!r} at place {rank} of {len(names)}, {elapsed:.0f} ms"
    yield _result("classify", rank <= 3 and bool(similarity.isfinite().all()), value, "install PyTorch again")


def examine_checkpoint(name: str) -> Results:
    """Yield properties of a checkpoint, the methods that fit it, and the cost of a training step.

    Raises
    ------
    CheckpointError
        The checkpoint cannot be read.
    """
    from fedpgp.backbone import load_backbone
    from fedpgp.backbone.text import TextEncoder
    from fedpgp.methods import METHODS
    from fedpgp.runs.checks import misfit

    backbone = load_backbone(name)
    image, text = backbone.image, backbone.text
    fast = isinstance(text, TextEncoder)
    reading = "CLIP's architecture, with the fast encoder" if fast else "another architecture, encoded class by class"
    patches = f"{image.patches} patches" if image.patches else "no patches"
    yield CheckResult("text tower", "ok", f"{reading}; width {text.token_width}, {text.longest} positions")
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
        yield CheckResult("do not fit", "note", f"{', '.join(others)}: the method {reason}")
    seconds, kept = _step(backbone)
    value = f"{1000 * seconds:.0f} ms and {decimal(kept)} for two prompts of 16 vectors and {STEP_CLASSES} classes"
    yield CheckResult("training step", "ok", value)


def _step(backbone: "Backbone") -> tuple[float, int]:
    """Return the best of three times of a training step of the text tower in seconds, and the bytes that it keeps."""
    import torch

    from fedpgp.backbone.layers import kept_for_backward

    classes = backbone.class_tokens([f"class {number}" for number in range(STEP_CLASSES)])
    contexts = backbone.text.embed(torch.full((2, 16), classes.ids[0, 0].item(), dtype=torch.long))
    contexts = contexts.clone().requires_grad_()
    seconds, passes = [], []  # tensors that the first two passes share are frozen, so they are not counted
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
        yield CheckResult("model hub", "note", "not asked, because HF_HUB_OFFLINE is set", "unset it for --network")
        return
    advice = "download on another machine and set backbone.checkpoint to the directory, or set HF_ENDPOINT to a mirror"
    try:
        with urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=TIMEOUT) as answer:
            yield CheckResult("model hub", "ok", f"answers {answer.status}")
    except HTTPError as error:
        yield CheckResult("model hub", "wrong", f"answers {error.code}", advice)
    except (OSError, ValueError) as error:
        yield CheckResult("model hub", "wrong", f"{constants.ENDPOINT} does not answer: {error}", advice)
