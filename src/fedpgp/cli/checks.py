"""What works on this machine: versions, extras, devices, embedded files, cache, disk, and a classification."""

import platform
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from packaging.requirements import Requirement
from rich.filesize import decimal

import fedpgp
from fedpgp.errors import FedPGPError
from fedpgp.runtime.processes import cores

PACKAGES = ("torch", "transformers", "numpy", "pillow", "pyarrow", "datasets", "huggingface-hub", "safetensors")
EXTRAS = {  # what the packages of an extra enable
    "flower": "federations on Flower",
    "privacy": "dp-fpl, and epsilon of a run",
    "report": "fedpgp report",
    "tracking": "MLflow, TensorBoard, Weights & Biases",
    "onnx": "fedpgp export --format onnx",
    "demo": "fedpgp demo",
}
TIMEOUT = 3.0  # seconds
ROOM = 1_000_000_000  # bytes of free disk below which it is told


@dataclass(frozen=True)
class CheckResult:
    """What was found. state: "ok"; "note", nothing that a run needs; "wrong", a run would fail. advice: what to do."""

    group: str
    name: str
    state: Literal["ok", "note", "wrong"]
    value: str
    advice: str = ""


def examine(cache: Path | None = None, network: bool = False) -> Iterator[CheckResult]:
    """Looks at one thing after the other. A fault of one is a finding, and the next is looked at all the same."""
    checks: list[tuple[str, Callable[[], Iterator[CheckResult]]]] = [
        ("versions", _versions),
        ("extras", _extras),
        ("devices", _devices),
        ("files", _files),
        ("disk", lambda: _disk(cache)),
        ("self-test", _self_test),
    ]
    if network:
        checks.append(("network", _network))
    for group, check in checks:
        try:
            yield from check()
        except FedPGPError as error:
            yield CheckResult(group, "fault", "wrong", str(error), "do what the message says")
        except Exception as error:  # whatever a broken installation raises is what is asked for
            text = f"{type(error).__name__}: {error}"
            yield CheckResult(group, "fault", "wrong", text, "install fedpgp again, with -c constraints.txt")


def _versions() -> Iterator[CheckResult]:
    yield CheckResult("versions", "fedpgp", "ok", fedpgp.__version__)
    yield CheckResult("versions", "python", "ok", f"{platform.python_version()}, {platform.platform()}")
    for name in PACKAGES:
        try:
            yield CheckResult("versions", name, "ok", version(name))
        except PackageNotFoundError:
            yield CheckResult("versions", name, "wrong", "not installed", "pip install -c constraints.txt .")


def _extras() -> Iterator[CheckResult]:
    for extra, enables in EXTRAS.items():
        packages = list(_packages("fedpgp", extra))
        missing = [name for name in packages if not _installed(name)]
        if missing:
            advice = f'pip install -c constraints.txt ".[{extra}]" for {enables}'
            yield CheckResult("extras", extra, "note", f"without {', '.join(missing)}", advice)
        else:
            versions = ", ".join(f"{name} {version(name)}" for name in packages)
            yield CheckResult("extras", extra, "ok", f"{enables} ({versions})")


def _packages(distribution: str, extra: str) -> Iterator[str]:
    """The packages that an extra of an installed distribution names, with those of their own extras."""
    for line in requires(distribution) or ():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            continue
        if requirement.marker.evaluate({"extra": extra}):
            yield requirement.name
            for inner in requirement.extras if _installed(requirement.name) else ():
                yield from _packages(requirement.name, inner)


def _installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def _devices() -> Iterator[CheckResult]:
    import torch

    from fedpgp.backbone.load import bfloat16_speed

    instructions = torch.backends.cpu.get_cpu_capability()
    yield CheckResult("devices", "cpu", "ok", f"{cores()} cores, {torch.get_num_threads()} threads, {instructions}")
    found = ["cpu"]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            yield CheckResult(
                "devices", f"cuda:{index}", "ok", f"{properties.name}, {decimal(properties.total_memory)}"
            )
            found.append(f"cuda:{index}")
    else:
        built = torch.version.cuda
        why = f"no GPU that PyTorch's CUDA {built} can use" if built else "PyTorch's build without CUDA"
        yield CheckResult("devices", "cuda", "note", why)
    if torch.backends.mps.is_available():
        yield CheckResult("devices", "mps", "note", "there", "no run was tried on it")
    else:
        yield CheckResult("devices", "mps", "note", "none")
    for device in found:
        speed = bfloat16_speed(device)
        advice = "" if speed > 1 else f"leave --precision at float32 on {device}"
        yield CheckResult(
            "devices", f"bf16 on {device}", "ok" if speed > 1 else "note", f"{speed:.2g} × float32", advice
        )


def _files() -> Iterator[CheckResult]:
    from fedpgp import assets

    for name in ("pictoclip", "pictograms", "clip-tokenizer"):
        try:
            size = sum(file.stat().st_size for file in assets.verified(name).rglob("*") if file.is_file())
        except FedPGPError as error:
            yield CheckResult("files", name, "wrong", str(error), "install fedpgp again")
        else:
            yield CheckResult("files", name, "ok", f"as shipped, {decimal(size)}")


def _disk(cache: Path | None) -> Iterator[CheckResult]:
    from fedpgp.data.cache import cache_directory, check_cache, entries

    place = cache_directory(cache)
    try:
        check_cache(place)
    except FedPGPError as error:
        yield CheckResult("disk", "feature cache", "wrong", str(error), "--cache-dir elsewhere, or make it writable")
    else:
        kept = entries(place)
        size = decimal(sum(entry.bytes for entry in kept))
        yield CheckResult("disk", "feature cache", "ok", f"{place}, {len(kept)} entries, {size}")
    for name, directory in (("free for features", place), ("free for runs", Path.cwd())):
        there = next(path for path in (directory, *directory.absolute().parents) if path.exists())
        free = shutil.disk_usage(there).free
        advice = "" if free >= ROOM else "fedpgp cache clear --stale, or another disk"
        yield CheckResult("disk", name, "ok" if free >= ROOM else "note", decimal(free), advice)


def _self_test() -> Iterator[CheckResult]:
    from fedpgp.backbone import load_backbone
    from fedpgp.data.sources import pictograms

    backbone = load_backbone("pictoclip")
    source = pictograms.read(("train", "validation"))
    data = source.validation
    assert data is not None
    names = data.class_names[:20]
    chosen = next(index for index in range(len(data)) if data.labels[index] == 0)
    backbone.image([data.image(chosen)])  # the first call of all loads what the library needs
    started = time.perf_counter()
    text = backbone.template_features(source.templates[0], names)
    likeness = (backbone.image([data.image(chosen)]) @ text.T)[0]
    elapsed = 1000 * (time.perf_counter() - started)
    place = int((likeness > likeness[0]).sum()) + 1
    value = f"zero-shot has {names[0]!r} in place {place} of {len(names)}, {elapsed:.0f} ms"
    right = place <= 3 and bool(likeness.isfinite().all())
    yield CheckResult(
        "self-test", "classify", "ok" if right else "wrong", value, "" if right else "install PyTorch again"
    )


def _network() -> Iterator[CheckResult]:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        yield CheckResult("network", "model hub", "note", "not asked: HF_HUB_OFFLINE is set", "unset it for --network")
        return
    advice = "download elsewhere and name a directory as backbone.checkpoint, or set HF_ENDPOINT to a mirror"
    try:
        with urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=TIMEOUT) as answer:
            yield CheckResult("network", "model hub", "ok", f"answers {answer.status}")
    except HTTPError as error:
        yield CheckResult("network", "model hub", "wrong", f"answers {error.code}", advice)
    except (OSError, ValueError) as error:
        yield CheckResult("network", "model hub", "wrong", f"{constants.ENDPOINT} does not answer: {error}", advice)
