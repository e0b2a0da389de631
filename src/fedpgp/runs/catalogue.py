"""Descriptions of the methods, with their numbers of parameters."""

import dataclasses
import inspect
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fedpgp.backbone import Backbone, load_backbone
from fedpgp.config import load_config
from fedpgp.data.sources import load_source
from fedpgp.data.tasks import Task
from fedpgp.errors import ConfigError
from fedpgp.methods import METHODS, Method
from fedpgp.methods.plugins import find_method, installed, own_errors
from fedpgp.methods.published import PUBLISHED, files, published_settings, shown
from fedpgp.runs.checks import misfit
from fedpgp.runs.tasks import make_task


@dataclass(frozen=True)
class MethodEntry:
    """A method in the list of methods.

    Attributes
    ----------
    name
        Name of the method.
    year, venue, source
        Publication of the method.
    shared, private
        Numbers of parameters; None if the method does not fit the checkpoint.
    reads
        The inputs that the method needs.
    summary
        One sentence about the method.
    misfit
        Why the method does not fit the checkpoint: the words after "the method"; "" if it fits.
    """

    name: str
    year: int | None
    venue: str
    shared: int | None
    private: int | None
    reads: Sequence[str]
    summary: str
    source: str
    misfit: str = ""


def catalogue(config: Path | str | None = None, changes: Sequence[str] = ()) -> list[MethodEntry]:
    """List all built-in methods and the methods of installed packages, for the checkpoint and data of a config.

    Parameters
    ----------
    config
        A TOML file or the name of a recipe; None takes the default recipe.
    changes
        Changes of the config, such as "backbone.checkpoint=photoclip".

    Returns
    -------
    One entry for each method. If a method cannot be imported, its summary is the reason.
    """
    settings = load_config(config, changes)
    backbone = load_backbone(settings.backbone.checkpoint)  # the numbers do not depend on device and precision
    task = make_task(settings, load_source(settings.data), seed=0)
    entries = []
    for name in [*METHODS, *installed()]:
        try:
            method = settings.methods.get(name) or find_method(name)()
            with own_errors(method):
                entries.append(_entry(method, task, backbone))
        except ConfigError as error:
            entries.append(MethodEntry(name, None, "", None, None, (), str(error), ""))
    return entries


def _entry(method: Method, task: Task, backbone: Backbone) -> MethodEntry:
    def count(tensors: dict[str, Tensor]) -> int:
        return sum(tensor.numel() for tensor in tensors.values())

    rng = torch.Generator()
    shared: int | None = None
    private: int | None = None
    reason = misfit(method, backbone)
    if not reason:
        with suppress(ConfigError):
            shared = count(method.init_shared(task, backbone, rng))
            private = count(method.init_private(task, backbone, rng, 0))
    summary = inspect.getdoc(type(method)) or ""
    first = " ".join(summary.partition("\n\n")[0].split())
    facts = method.name, method.year, method.venue, shared, private, method.reads, first, method.source
    return MethodEntry(*facts, reason)


def about(name: str) -> str:
    """Describe a method: its source, its docstring, its inputs, and every setting with default and source.

    If the recipe of the embedded benchmark or the publication has another value than the default, it is printed, too.

    Parameters
    ----------
    name
        Name of the method, or "path/to/file.py:Name".
    """
    method = find_method(name)
    lines = [
        f"{method.name}: {method.source}",
        "",
        inspect.getdoc(method) or "",
        "",
        f"Reads: {', '.join(method().reads)}.",
    ]
    fields = [field for field in dataclasses.fields(method) if field.init]
    if fields:
        lines += ["", f"Settings, in section [{method.name}] of a config or as --set {method.name}.KEY=VALUE:"]
    recipe = load_config().methods.get(name)
    settings = published_settings(name) if name in files() else ()
    published = {setting.key: setting for setting in settings if setting.of_method}
    for field in fields:
        info = method.__pydantic_fields__[field.name]  # type: ignore[attr-defined]
        default = info.get_default(call_default_factory=True)
        line = f"  {field.name} = {default!r}  # {info.description or 'no description'}"
        if recipe is not None and getattr(recipe, field.name) != default:
            line += f"; here {getattr(recipe, field.name)!r}"
        if field.name in published:
            line += f"; {PUBLISHED} {shown(published[field.name].value)}"
        lines.append(line)
    if any("; here " in line for line in lines):
        lines += ["", '"here": in the recipe of the embedded benchmark, the default of --config.']
    if published:
        lines += ["", f'"{PUBLISHED}": with --settings {PUBLISHED}, which also prints the source of each value.']
    if of_task := [setting for setting in settings if not setting.of_method]:
        lines += ["", f"`fedpgp run --settings {PUBLISHED}` also sets {', '.join(map(str, of_task))}."]
    return "\n".join(lines)
