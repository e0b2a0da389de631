"""Whether methods fit a config, a checkpoint and a task: checked before any work."""

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
from fedpgp.federation.run_spec import RunSpec
from fedpgp.federation.settings import DEFAULT_AGGREGATOR
from fedpgp.methods import Method, Params
from fedpgp.methods.plugins import own_errors
from fedpgp.methods.templates import Guided


def check_methods(config: ExperimentConfig, methods: Sequence[str], backbone: Backbone, task: Task) -> None:
    """Raise FedPGPError where a method does not fit, or needs images of which only the features are here."""
    for test in evaluation_sets(task).values():
        check_readable(backbone.tokenizer, [task.class_names[label] for label in test.classes])
    _check_template(config, methods, task)
    for name in methods:
        with own_errors(config.methods[name]):
            _check_method(config, name, backbone, task)
            _check_images(config, name, backbone, task)


def _check_template(config: ExperimentConfig, methods: Sequence[str], task: Task) -> None:
    """Raise ConfigError where data.template is set, and a method that could read it reads another one."""
    template = config.data.template
    readers = [name for name in methods if template in config.methods[name].templates(task)]
    others = [name for name in methods if name not in readers and isinstance(config.methods[name], Guided)]
    if template and (others or not readers):
        remedy = " ".join(f"--set {name}.guidance=dataset" for name in others) or '--set data.template=""'
        raise ConfigError(
            f"data.template must be left out, or be what a method reads, got {template!r}: it is read by none of"
            f" {', '.join(others or methods)}; {remedy}"
        )


def _check_images(config: ExperimentConfig, name: str, backbone: Backbone, task: Task) -> None:
    kind = kind_of(config.methods[name])
    for dataset in (task.train, *(test.dataset for test in evaluation_sets(task).values())):
        for view in views_of(dataset.split, config.data.augmented_views):
            check_stored(dataset, backbone.image, view=view)
            if kind is not None:
                check_stored(dataset, backbone.image, kind, view, name)


def misfit(method: Method, backbone: Backbone) -> str:
    """Why a method cannot work on a checkpoint, whose name completes the sentence; "" for one that fits."""
    if "patches" in method.reads and not backbone.image.patches:
        return "reads patches of images in the space of the features, which are not to be had from"
    if "image tower" in method.reads and not backbone.image.layers:
        return (
            "changes the image tower, and only vision transformers of CLIP's own shape can be changed, unlike that of"
        )
    if "deep text" in method.reads and not backbone.text.layers:
        return "changes layers of the text tower, and only those of CLIP's own shape can be changed, unlike that of"
    return ""


def _check_method(config: ExperimentConfig, name: str, backbone: Backbone, task: Task) -> None:
    """Raises ConfigError where a method does not fit the aggregator, the checkpoint or the class names."""
    method, aggregator = config.methods[name], config.aggregator
    own = method.own_aggregator(config.federation.rounds)
    if own is not None and aggregator != FedAvg():
        raise ConfigError(
            f"federation.aggregator must be {DEFAULT_AGGREGATOR} as it is for {name}, whose server is its own"
            f" ({own.name}), got {aggregator}: leave out {name}, or the aggregator"
        )
    check_privacy(config.privacy, config.federation.engine, name, aggregator, own is not None)
    if method.swaps and config.federation.optimizer_state == "keep":
        raise ConfigError(
            f"federation.optimizer_state must be reset for {name}, whose prompts change places after training, got"
            f" keep: leave it out, or leave out {name}"
        )
    if method.pooled and config.federation.engine != "local":
        raise ConfigError(
            f"federation.engine must be local for {name}, which trains on the images of all clients together, got"
            f" {config.federation.engine}: leave out {name}, or the engine"
        )
    if method.pooled and aggregator.controls:
        raise ConfigError(
            f"federation.aggregator must be one that clients need not know of for {name}, which has no clients in"
            f" training, got {aggregator.name}: leave out {name}, or take fedavg"
        )
    if reason := misfit(method, backbone):
        raise ConfigError(
            f"{name} {reason} {config.backbone.checkpoint}: choose another checkpoint, such as"
            " openai/clip-vit-base-patch16 or pictoclip, or leave the method out"
        )
    if aggregator.controls and method.swaps:
        raise ConfigError(
            f"federation.aggregator must be one that does not turn gradients for {name}, which sends others of its"
            f" parameters than it received, got {aggregator.name}: leave out {name}, or take fedavg"
        )
    if "image tower" in method.reads and not 0 <= method.first_layer < backbone.image.layers:
        raise ConfigError(
            f"{name} must begin at a layer of the image tower, 0 to {backbone.image.layers - 1}, got first_layer"
            f" {method.first_layer}: change the settings of [{name}]"
        )
    spec = RunSpec(method, task, backbone, config.federation, 0, aggregator)
    received = spec.aggregator.download(spec.begin(), 0).shared
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
                    f"a context of {name} must have at most {room} vectors for this checkpoint and these class names,"
                    f" got {prompt.vectors.shape[-2]}: change the settings of [{name}], such as context_length"
                )
            if prompt.layers > max(1, len(backbone.text.layers)):
                raise _too_deep(name, prompt.layers, "text", len(backbone.text.layers))
        for prompt in method.visual_prompts(params):
            if prompt.layers > backbone.image.layers:
                raise _too_deep(name, prompt.layers, "image", backbone.image.layers)


def _too_deep(name: str, layers: int, tower: str, has: int) -> ConfigError:
    return ConfigError(
        f"the prompts of {name} must reach into at most {has} layers, which is what the checkpoint's {tower} tower has,"
        f" got {layers}: change the settings of [{name}], such as depth"
    )
