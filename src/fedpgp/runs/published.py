"""Published settings in an experiment: which it has, which it does not have, and which fit its checkpoint."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fedpgp.backbone import Backbone
from fedpgp.config import ExperimentConfig
from fedpgp.methods.published import PUBLISHED, Setting, published_settings, shown


def unused(config: ExperimentConfig, methods: Sequence[str]) -> Iterator[tuple[Setting, Any]]:
    """The published values of some methods that are not those of a config, each with the value of the config."""
    for setting in (setting for method in methods for setting in published_settings(method)):
        if config.origins.get(setting.name) != PUBLISHED and setting.value != (here := _value(config, setting)):
            yield setting, here


def _value(config: ExperimentConfig, setting: Setting) -> Any:
    sections: Mapping[str, Any] = {**vars(config), **config.aggregators, **config.methods}
    value = getattr(sections[setting.section], setting.key)
    return list(value) if isinstance(value, tuple) else value


def with_unused(config: ExperimentConfig, methods: Sequence[str]) -> ExperimentConfig:
    """The config with origins that also name the published values which it does not have."""
    origins = dict(config.origins)
    for setting, _ in unused(config, methods):
        origin = origins.get(setting.name, "default")
        origins[setting.name] = f"{origin}; {PUBLISHED} for {setting.method}: {shown(setting.value)}"
    return replace(config, origins=origins)


def descriptions(config: ExperimentConfig, methods: Sequence[str]) -> list[str]:
    """For each method, in several lines, the published values that a config has, and those that it does not have."""
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
    """A config whose published depths are at most the layers of the towers that the method changes.

    Returns it with a sentence for each value that was reduced. Values of other origin are left to the checks.
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
            notices.append(f"{where} is {layers} and not {method.depth}, the published value: {reason}")
    return replace(config, methods=changed, origins=origins), notices
