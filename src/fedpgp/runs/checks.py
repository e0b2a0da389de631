"""Checks before any work that methods fit a config, a checkpoint and a task."""

from collections.abc import Sequence

import torch

from fedpgp.aggregators import FedAvg
from fedpgp.backbone import Backbone
from fedpgp.backbone.layers import Prompt
from fedpgp.backbone.tokens import check_readable
from fedpgp.config import ExperimentConfig
from fedpgp.data.features import check_stored, views_of
from fedpgp.data.tasks import Task
from fedpgp.errors import ConfigError
from fedpgp.evaluation.inference import kind_of
from fedpgp.evaluation.metrics import evaluation_sets
from fedpgp.federation.client_runner import frozen_of
from fedpgp.federation.privacy import check_privacy
from fedpgp.federation.protection import check_protection
from fedpgp.federation.run_spec import RunSpec
from fedpgp.federation.settings import DEFAULT_AGGREGATOR
from fedpgp.methods import Method, Params
from fedpgp.methods.plugins import own_errors
from fedpgp.methods.templates import Guided


def check_methods(config: ExperimentConfig, methods: Sequence[str], backbone: Backbone, task: Task) -> None:
    """Check that methods fit a config, a checkpoint and a task.

    Parameters
    ----------
    config
        Configuration of the experiment.
    methods
        Names of the methods.
    backbone
        The dual encoder.
    task
        The task.

    Raises
    ------
    FedPGPError
        A method does not fit, or it needs images but only their features are available.
    """
    for test in evaluation_sets(task).values():
        check_readable(backbone.tokenizer, [task.class_names[label] for label in test.classes])
    _check_template(config, methods, task)
    for name in methods:
        with own_errors(config.methods[name]):
            _check_method(config, name, backbone, task)
            _check_images(config, name, backbone, task)


def _check_template(config: ExperimentConfig, methods: Sequence[str], task: Task) -> None:
    """Raise ConfigError if data.template is set, and a method that could use it uses another template."""
    template = config.data.template
    readers = [name for name in methods if template in config.methods[name].templates(task)]
    others = [name for name in methods if name not in readers and isinstance(config.methods[name], Guided)]
    if template and (others or not readers):
        remedy = " ".join(f"--set {name}.guidance=dataset" for name in others) or '--set data.template=""'
        raise ConfigError(
            where="data.template",
            allowed=f"left out, because these methods do not use it: {', '.join(others or methods)}",
            got=template,
            remedy=f"Use {remedy}",
        )


def _check_images(config: ExperimentConfig, name: str, backbone: Backbone, task: Task) -> None:
    kind = kind_of(config.methods[name])
    for dataset in (task.train, *(test.dataset for test in evaluation_sets(task).values())):
        for view in views_of(dataset.split, config.data.augmented_views):
            check_stored(dataset, backbone.image, view=view)
            if kind is not None:
                check_stored(dataset, backbone.image, kind, view, name)


def misfit(method: Method, backbone: Backbone) -> str:
    """Return why a method does not fit a checkpoint: the words after the name of the method; "" if it fits.

    Parameters
    ----------
    method
        The method.
    backbone
        The dual encoder.
    """
    if "patches" in method.reads and not backbone.image.patches:
        return "reads features of image patches, which this checkpoint does not have"
    if "image tower" in method.reads and not backbone.image.layers:
        return "changes the image tower, which is possible only for a vision transformer with CLIP's architecture"
    if "deep text" in method.reads and not backbone.text.layers:
        return "changes layers of the text tower, which is possible only with CLIP's architecture"
    return ""


def _check_method(config: ExperimentConfig, name: str, backbone: Backbone, task: Task) -> None:
    """Raise ConfigError if a method does not fit the aggregator, the checkpoint or the class names."""
    method, aggregator = config.methods[name], config.aggregator
    own = method.own_aggregator(config.federation.rounds)
    if own is not None and aggregator != FedAvg():
        raise ConfigError(
            where="federation.aggregator",
            allowed=f"{DEFAULT_AGGREGATOR} with its default settings for {name}, which has its own server ({own.name})",
            got=aggregator,
            remedy=f"Leave out {name}, or remove the settings of the aggregator",
        )
    check_privacy(config.privacy, config.federation.engine, name, aggregator, own is not None)
    if method.swaps and config.federation.optimizer_state == "keep":
        raise ConfigError(
            where="federation.optimizer_state",
            allowed=f"reset for {name}, whose prompts are exchanged after training",
            got=config.federation.optimizer_state,
            remedy=f"Use --set federation.optimizer_state=reset, or leave out {name}",
        )
    if method.pooled and config.federation.engine != "local":
        raise ConfigError(
            where="federation.engine",
            allowed=f"local for {name}, which trains on the images of all clients together",
            got=config.federation.engine,
            remedy=f"Use --set federation.engine=local, or leave out {name}",
        )
    if method.pooled and aggregator.controls:
        raise ConfigError(
            where="federation.aggregator",
            allowed=f"an aggregator that does not change local training for {name}, which trains without clients",
            got=aggregator.name,
            remedy=f"Use --set federation.aggregator=fedavg, or leave out {name}",
        )
    if reason := misfit(method, backbone):
        raise ConfigError(
            f"{name} {reason}",
            where=f"backbone.checkpoint {config.backbone.checkpoint}",
            remedy="Use another checkpoint, such as openai/clip-vit-base-patch16 or pictoclip, or leave out the method",
        )
    if aggregator.controls and method.swaps:
        raise ConfigError(
            where="federation.aggregator",
            allowed=f"an aggregator that does not correct gradients for {name}, which sends other parameters than it"
            " receives",
            got=aggregator.name,
            remedy=f"Use --set federation.aggregator=fedavg, or leave out {name}",
        )
    if "image tower" in method.reads and not 0 <= method.first_layer < backbone.image.layers:
        raise ConfigError(
            where=f"first_layer of {name}",
            allowed=f"a layer of the image tower, 0 to {backbone.image.layers - 1}",
            got=method.first_layer,
            remedy=f"Change the settings of [{name}]",
        )
    spec = RunSpec(method, task, backbone, config.federation, 0, aggregator)
    received = spec.aggregator.download(spec.begin(), 0).shared
    check_protection(config.federation, config.privacy, spec.aggregator, spec.clients)
    frozen = frozen_of(method, task, backbone)
    longest = backbone.class_tokens([*task.class_names, *method.extra_names], method.tail).ids.shape[1]
    room = backbone.text.longest - 1 - longest
    for client in task.clients:
        params = Params(spec.shared, spec.first(client.id).private, received)
        image = torch.zeros(1, backbone.image.width).to(backbone.logit_scale)
        for context in [*method.prompts(params, frozen), *method.conditional_prompts(params, image, frozen)]:
            prompt = Prompt.of(context)
            if prompt.vectors.shape[-2] > room:
                raise ConfigError(
                    where=f"the context length of {name}",
                    allowed=f"at most {room} with this checkpoint and these class names",
                    got=prompt.vectors.shape[-2],
                    remedy=f"Change the settings of [{name}], such as context_length",
                )
            if prompt.layers > max(1, len(backbone.text.layers)):
                raise _too_deep(name, prompt.layers, "text", len(backbone.text.layers))
        for prompt in method.visual_prompts(params):
            if prompt.layers > backbone.image.layers:
                raise _too_deep(name, prompt.layers, "image", backbone.image.layers)


def _too_deep(name: str, layers: int, tower: str, has: int) -> ConfigError:
    return ConfigError(
        where=f"the prompt depth of {name}",
        allowed=f"at most {has}, the number of layers of the checkpoint's {tower} tower",
        got=layers,
        remedy=f"Change the settings of [{name}], such as depth",
    )
