"""Export a run's model as files that work without fedpgp, each with a model card that shows how to use it."""

import copy
import json
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors.torch import save
from torch import Tensor, nn

from fedpgp.backbone.tokens import AnyTokenizer
from fedpgp.backbone.transformers_models import PatchedProcessor
from fedpgp.errors import ConfigError, OutputError
from fedpgp.results.run import Run
from fedpgp.results.run_store import check_output, load_run, writing
from fedpgp.runtime.escaping import python
from fedpgp.runtime.files import apply_umask, new_directory, write, write_json
from fedpgp.runtime.version import __version__
from fedpgp.serving import checkpoint
from fedpgp.serving.card import card
from fedpgp.serving.classifier import Classes, Classifier, load
from fedpgp.serving.memory import remembers
from fedpgp.serving.reduce import SAME, context_of, difference, head_of

Format = Literal["safetensors", "clip-head", "onnx", "hf"]
CARD, MARK = "README.md", "library_name: fedpgp"  # the file that is written last, and a line that identifies it
READER, PREPARER = "read_image.py", "prepare_image.py"  # read and prepare images in the card's code, as fedpgp does


def export(
    run: Run | Path | str,
    output: Path | str,
    format: Format = "safetensors",
    *,
    client: int | None = None,
    classes: Sequence[str] | None = None,
    force: bool = False,
) -> Path:
    """Write a model of a finished run to a directory that works without fedpgp, after a test of the exported files.

    Parameters
    ----------
    run
        The run or its directory.
    output
        Directory to write.
    format
        "safetensors": the prompt only. "clip-head": text features of some classes, for use with an image encoder.
        "onnx": image encoder and head in one file. "hf": a model of transformers with the prompt as tokens.
    client
        Number of the client whose model is exported; None means the shared part.
    classes
        Class names of a head; None means the names used in training.
    force
        Whether to replace an existing export.

    Returns
    -------
    Path
        The directory.

    Raises
    ------
    ConfigError
        If the model cannot be written in this format.
    OutputError
        If the directory cannot be written.
    """
    if format not in get_args(Format):
        raise ConfigError(
            where="format",
            allowed=f"one of {', '.join(get_args(Format))}",
            got=format,
            remedy="Use --format safetensors, for example",
        )
    if classes is not None and format in ("safetensors", "hf"):
        raise ConfigError(
            f"the format {format} is exported without class names, because its users choose them",
            where="classes",
            remedy="Leave --classes out, or use --format clip-head or onnx",
        )
    run = run if isinstance(run, Run) else load_run(run)
    classifier = load(run, client, device="cpu")
    if client is not None and remembers(classifier.method):
        raise ConfigError(
            f"a client of {run.method} predicts with features of its own images, which must stay with the client",
            where="client",
            remedy="Leave --client out to export the shared part",
        )
    directory = Path(output)
    check_output(directory, force, _is_replaceable)
    with writing(directory, "Free space, or choose another directory with -o"), new_directory(directory) as scratch:
        facts = _WRITERS[format](run, classifier, classifier.read(classes), scratch)
        write(scratch / READER, (resources.files("fedpgp.data") / READER).read_bytes())
        write(scratch / CARD, card(run, classifier, format, facts).encode())
        for file in scratch.rglob("*"):
            if file.is_file():
                apply_umask(file)
    return directory


def is_export(directory: Path) -> bool:
    """Return whether a directory contains the card of an export."""
    try:
        return MARK in (directory / CARD).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False


def _is_replaceable(directory: Path) -> bool:
    return is_export(directory) or (directory.is_dir() and not any(directory.iterdir()))


def _prompt(run: Run, classifier: Classifier, classes: Classes, directory: Path) -> dict[str, Any]:
    context, params = context_of(classifier, classes), classifier.params
    tensors = {f"shared/{name}": tensor for name, tensor in params.shared.items()}
    tensors |= {f"private/{name}": tensor for name, tensor in params.private.items()}
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in {**tensors, "context": context}.items()}
    write(directory / "prompt.safetensors", save(tensors, _metadata(run, classifier)))
    template, other = checkpoint.texts(classifier, classes, len(context))
    return {
        **checkpoint.place(classifier.backbone, run.config.backbone.checkpoint, directory),
        "template": python(template),
        "other": python(other),
        "vectors": len(context),
        "padding": _arguments(checkpoint.padding(classifier.backbone)),
    }


def _head(run: Run, classifier: Classifier, classes: Classes, directory: Path) -> dict[str, Any]:
    weight = head_of(classifier, classes)
    scale = classifier.backbone.logit_scale.exp() / classifier.temperature
    metadata = {**_metadata(run, classifier), "classes": json.dumps(classes.names)}
    write(
        directory / "head.safetensors",
        save({"weight": weight.float().contiguous(), "scale": scale.float().reshape(1)}, metadata),
    )
    where = checkpoint.place(classifier.backbone, run.config.backbone.checkpoint, directory)
    return {"count": len(classes.names), **where}


class _Served(nn.Module):
    """Module from preprocessed pixels [B, 3, H, W] to logits [B, C] and probabilities [B, C]."""

    def __init__(self, classifier: Classifier, weight: Tensor):
        super().__init__()
        encoder = classifier.backbone.image
        self.tower, self.pool = nn.ModuleList(encoder.tower_modules), encoder.pool
        scale = classifier.backbone.logit_scale.exp() / classifier.temperature
        self.register_buffer("weight", (scale * weight).float())

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        feature = nn.functional.normalize(self.pool(pixels), dim=-1)
        logits = nn.functional.linear(feature, self.weight)  # type: ignore[arg-type]
        return logits, logits.softmax(-1)


def _onnx(run: Run, classifier: Classifier, classes: Classes, directory: Path) -> dict[str, Any]:
    if missing := [name for name in ("onnx", "onnxruntime", "onnxscript") if find_spec(name) is None]:
        raise ConfigError(
            f"the format onnx needs packages that are not installed: {', '.join(missing)}",
            where="format",
            remedy='Install them with `pip install "fedpgp[onnx]"`',
        )
    import onnxruntime

    if isinstance(classifier.backbone.image.processor, PatchedProcessor):
        raise ConfigError(
            "the format onnx needs an image tower that reads images of a fixed shape, but"
            f" {run.config.backbone.checkpoint} reads patches of images of any shape",
            where="format",
            remedy="Use --format clip-head",
        )
    preprocessing = checkpoint.preprocessing(classifier.backbone, run.config.backbone.checkpoint)
    served = _Served(classifier, head_of(classifier, classes)).float().eval()
    width, height = classifier.backbone.image.size
    pixels = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    path = directory / "model.onnx"
    log = logging.getLogger("torch.onnx")
    level = log.level
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # deprecation warnings of the exporter
        log.setLevel(logging.ERROR)  # warnings about optional packages
        program = torch.onnx.export(
            served,
            (pixels,),
            input_names=["pixels"],
            output_names=["logits", "probabilities"],
            dynamic_shapes={"pixels": {0: torch.export.Dim("batch")}},
            dynamo=True,
            verbose=False,
        )
        log.setLevel(level)
        expected = served(pixels)[0]
    assert program is not None, "it is None only without dynamo"
    program.model.metadata_props.update({**_metadata(run, classifier), "classes": json.dumps(classes.names)})
    program.save(path, external_data=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    _check_same(torch.from_numpy(session.run(["logits"], {"pixels": pixels.numpy()})[0]), expected, path)
    write(directory / "classes.json", (json.dumps(classes.names, ensure_ascii=False, indent=1) + "\n").encode())
    write_json(directory / "preprocess_cfg.json", preprocessing)
    write(directory / PREPARER, (resources.files("fedpgp.backbone") / PREPARER).read_bytes())
    return {"library": "onnxruntime", "count": len(classes.names), "height": height, "width": width}


def _hugging_face(run: Run, classifier: Classifier, classes: Classes, directory: Path) -> dict[str, Any]:
    from tokenizers import AddedToken
    from transformers import AutoModel

    backbone = classifier.backbone
    model = checkpoint.transformers_model(backbone, run.config.backbone.checkpoint)
    context = context_of(classifier, classes)
    tokens = [f"<prompt{number}>" for number in range(len(context))]
    tokenizer = copy.deepcopy(backbone.tokenizer)
    added: Any = tokenizer.tokenizer if isinstance(tokenizer, AnyTokenizer) else tokenizer
    added.add_tokens([AddedToken(token, normalized=False) for token in tokens])
    template = checkpoint.sentence(classifier, tokens, "")
    found = checkpoint.context_ids(classifier, classes, tokenizer, template, len(context))
    if found is None:
        raise checkpoint.unreadable("hf", "new tokens", "--format safetensors")
    known = model.text_model.get_input_embeddings().weight
    table = known.new_zeros(max(*found[0], len(known) - 1) + 1, known.shape[1])
    table[: len(known)], table[found[0]] = known, context.to(known)
    model.text_model.set_input_embeddings(nn.Embedding.from_pretrained(table))
    text = model.config.text_config
    text.vocab_size = len(table)
    # Older checkpoints of CLIP find the end by the largest id, which now belongs to a new token.
    text.eos_token_id = model.text_model.eos_token_id = added.eos_token_id
    model.save_pretrained(directory)
    added.save_pretrained(directory)
    checkpoint.transformers_processor(backbone).save_pretrained(directory)
    write_json(directory / "prompt.json", {"hypothesis_template": template, **_metadata(run, classifier)})
    again = AutoModel.from_pretrained(directory, local_files_only=True, trust_remote_code=False).eval()
    fill = checkpoint.padding(backbone)
    read = added([template.format(name.replace("_", " ")) for name in classes.names], return_tensors="pt", **fill)
    with torch.no_grad():
        features = again.get_text_features(**read).pooler_output
    _check_same(nn.functional.normalize(features, dim=-1), head_of(classifier, classes).float(), directory)
    return {
        "library": "transformers",
        "template": python(template),
        "vectors": len(tokens),
        "padding": _arguments(fill),
    }


_WRITERS: Mapping[Format, Callable[[Run, Classifier, Classes, Path], dict[str, Any]]] = {
    "safetensors": _prompt,
    "clip-head": _head,
    "onnx": _onnx,
    "hf": _hugging_face,
}


def _check_same(values: Tensor, expected: Tensor, where: Path) -> None:
    """Raise OutputError if an exported model computes other numbers than the original."""
    worst = difference(values, expected)
    if not worst <= SAME:
        raise OutputError(
            f"the exported model does not compute the same numbers as the run (relative difference {worst:.2g})",
            where=where.name,
            remedy="Report this as a bug of fedpgp",
        )


def _metadata(run: Run, classifier: Classifier) -> dict[str, str]:
    """Return metadata as strings, the only type that these formats support."""
    return {
        "format": "pt",
        "fedpgp": __version__,
        "method": run.method,
        "hyperparameters": json.dumps(asdict(classifier.method)),
        "seed": str(run.seed),
        "client": "shared" if classifier.client is None else str(classifier.client),
        "checkpoint": run.config.backbone.checkpoint,
        "checkpoint_sha256": str(run.provenance["checkpoint"]),
        "base_classes": json.dumps(classifier.base),
        "position": classifier.method.position,
        "tail": classifier.method.tail,
        "licence": classifier.backbone.licence,
    }


def _arguments(values: Mapping[str, Any]) -> str:
    """Format keyword arguments as Python code."""
    return ", ".join(f"{name}={value!r}" for name, value in values.items())
