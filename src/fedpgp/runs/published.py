"""Published settings of an experiment: used, unused, and reduced to fit its checkpoint."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fedpgp.backbone import Backbone
from fedpgp.config import ExperimentConfig
from fedpgp.methods.published import PUBLISHED, Setting, published_settings, shown


def unused(config: ExperimentConfig, methods: Sequence[str]) -> Iterator[tuple[Setting, Any]]:
    """Yield the published values that a config does not use, each with the value of the config."""
    for setting in (setting for method in methods for setting in published_settings(method)):
        if config.origins.get(setting.name) != PUBLISHED and setting.value != (here := _value(config, setting)):
            yield setting, here


def _value(config: ExperimentConfig, setting: Setting) -> Any:
    sections: Mapping[str, Any] = {**vars(config), **config.aggregators, **config.methods}
    value = getattr(sections[setting.section], setting.key)
    return list(value) if isinstance(value, tuple) else value


def with_unused(config: ExperimentConfig, methods: Sequence[str]) -> ExperimentConfig:
    """Return the config, with origins that also list the published values that it does not use."""
    origins = dict(config.origins)
    for setting, _ in unused(config, methods):
        origin = origins.get(setting.name, "default")
        origins[setting.name] = f"{origin}; {PUBLISHED} for {setting.method}: {shown(setting.value)}"
    return replace(config, origins=origins)


def descriptions(config: ExperimentConfig, methods: Sequence[str]) -> list[str]:
    """Return several lines for each method: the published values that a config uses, and the unused ones."""
    texts = []
    for method in methods:
        used = [setting for setting in published_settings(method) if config.origins.get(setting.name) == PUBLISHED]
        others = [f"{setting} (here {shown(here)})" for setting, here in unused(config, [method])]
        text = f"published settings of {method}: " + ("" if used else "none")
        lines = [f"  {setting}  # {setting.source}" for setting in used]
        lines += ["  not used: " + ", ".join(others)] if others else []
        texts.append("\n".join([text.rstrip(), *lines]))
    return texts


def fitted(config: ExperimentConfig, methods: Sequence[str], backbone: Backbone) -> tuple[ExperimentConfig, list[str]]:
    """Reduce published depths to the number of layers of the towers that the method changes.

    Values with another origin are not changed; the checks handle them.

    Parameters
    ----------
    config
        Configuration of the experiment.
    methods
        Names of the methods.
    backbone
        The dual encoder.

    Returns
    -------
    The config, and a sentence for each value that was reduced.
    """
    towers = {
        "deep text": ("text", len(backbone.text.layers)),
        "image tower": ("image", backbone.image.layers),
    }
    changed, origins, notices = dict(config.methods), dict(config.origins), []
    for name in methods:
        if origins.get(where := f"{name}.depth") != PUBLISHED:
            continue
        method: Any = config.methods[name]
        tower, layers = min((towers[what] for what in method.reads if what in towers), key=lambda tower: tower[1])
        if method.depth > layers:
            reason = f"the checkpoint's {tower} tower has {layers} layers"
            changed[name] = replace(method, depth=layers)
            origins[where] = f"{PUBLISHED}: {method.depth}; {reason}"
            notices.append(f"{where} is {layers} instead of the published value {method.depth}, because {reason}.")
    return replace(config, methods=changed, origins=origins), notices
