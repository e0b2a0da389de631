"""Read the files of a run directory into a `Run`. The models of `fedpgp.results.content` check them."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from torch import Tensor

from fedpgp.config import ExperimentConfig, load_config
from fedpgp.errors import OutputError
from fedpgp.evaluation.bootstrap import Outcomes
from fedpgp.federation.state import FILE, PATIENCE, State
from fedpgp.methods import Method
from fedpgp.results.content import Origin, Provenance, Record, Results
from fedpgp.results.run import Run
from fedpgp.runtime import limits
from fedpgp.runtime.tensor_files import Like, TensorFile
from fedpgp.runtime.untrusted import DAMAGED, check, check_file, parse, read_text

CONFIG, RESULTS, PROVENANCE, RECORDS = "config.toml", "results.json", "provenance.json", "rounds.jsonl"
PROMPTS, OUTCOMES, ANSWERS = "prompts.safetensors", "outcomes.safetensors", "answers.safetensors"
PROMPT = re.compile(r"shared/[^/]+|(?:private|kept|received)/(0|[1-9][0-9]{0,6})/[^/]+")


def read_run(directory: Path, methods: Sequence[type[Method]] = ()) -> Run:
    """Return the run of a directory.

    Parameters
    ----------
    directory
        The run directory.
    methods
        Methods that are not built in, whose sections of the config are read, too.

    Raises
    ------
    FileNotFoundError
        A file is missing.
    FedPGPError
        The content of a file is not valid.
    """
    config, results = read_config(directory, methods), read_json(directory / RESULTS, Results)
    return Run(
        config=config,
        results=results,
        rounds=list(read_records(directory)),
        prompts=_prompts(directory / PROMPTS, results),
        outcomes=None if config.federation.engine == "deployment" else _outcomes(directory / OUTCOMES, results),
        provenance=read_json(directory / PROVENANCE, Provenance),
        answers=_answers(directory / ANSWERS, results) if (directory / ANSWERS).exists() else {},
    )


def read_config(directory: Path, methods: Sequence[type[Method]] = (), *, foreign: bool = True) -> ExperimentConfig:
    """Return the config of a run directory; `methods` and `foreign` are explained in `load_config`.

    Raises
    ------
    FileNotFoundError
        There is no config.
    FedPGPError
        It is not a valid config.
    """
    check_file(directory / CONFIG, limits.JSON)
    return load_config(directory / CONFIG, methods=methods, foreign=foreign)


def read_json(file: Path, model: type[BaseModel], remedy: str = DAMAGED) -> Any:
    """Return the JSON of a file after checking it, see `read_text` and `parse`."""
    return parse(read_text(file, remedy=remedy), model, f"{file}", remedy)


def read_records(directory: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of the rounds in a run directory, see `read_text` and `parse`."""
    file = directory / RECORDS
    for number, line in enumerate(read_text(file, limits.RECORDS).splitlines(), 1):
        yield parse(line, Record, f"{file}:{number}")


def open_state(directory: Path, patience: float = PATIENCE) -> State:
    """Open the state of an unfinished run, and check its description and the records of its rounds.

    Raises
    ------
    OutputError
        As `State.open`, or the description or a record is damaged.
    """
    state, where, remedy = State.open(directory / FILE, patience), f"{directory / FILE}", "Start the run again"
    try:
        check(state.origin(), Origin, f"{where}, origin", remedy)
        for number, record in enumerate(state.records(), 1):
            check(record, Record, f"{where}, record {number}", remedy)
    except BaseException:
        state.close()
        raise
    return state


def _prompts(file: Path, results: Mapping[str, Any]) -> Mapping[str, Tensor]:
    prompts, clients = TensorFile(file), results["task"]["clients"]
    for name in prompts:
        named = PROMPT.fullmatch(name)
        if named is None or int(named[1] or 0) >= clients:
            raise OutputError(
                where=f"{file}: the name of a tensor",
                allowed="shared/NAME, or private/CLIENT/NAME, kept/CLIENT/NAME or received/CLIENT/NAME for one of the"
                f" {clients} clients",
                got=name[: limits.NAME],
                remedy=DAMAGED,
            )
    return prompts


def _outcomes(file: Path, results: Mapping[str, Any]) -> Outcomes:
    images, clients, alphas = results["task"]["images"], len(results["clients"]), [p["alpha"] for p in results["path"]]
    base, novel = images["base"], images.get("novel", 0)
    if not base:
        raise OutputError("task.images.base must be at least 1", where=f"{file.parent / RESULTS}", remedy=DAMAGED)
    like = {
        "alphas": Like("F64", (len(alphas),)),
        "base": Like("U8", (len(alphas), clients, -(-base // 8))),
        "novel": Like("U8", (len(alphas), clients, -(-novel // 8))),
        "own": Like("U8", (clients, -(-base // 8))),
    }
    arrays = {name: tensor.numpy() for name, tensor in TensorFile(file, like, limits.TENSORS).items()}
    if arrays["alphas"].tolist() != alphas:
        raise OutputError(
            where=f"{file}: alphas",
            allowed=f"the values of alpha in {RESULTS}",
            got=arrays["alphas"].tolist(),
            remedy=DAMAGED,
        )
    return Outcomes(**arrays, base_images=base, novel_images=novel)


def _answers(file: Path, results: Mapping[str, Any]) -> Mapping[str, Tensor]:
    task, clients, like = results["task"], len(results["clients"]), {}
    for name in ("base", "novel"):
        if name in task["images"]:
            images, classes = task["images"][name], task[f"{name}_classes"]
            like[f"{name}/predicted"] = Like("I16", (clients, images), classes)
            like[f"{name}/confidence"] = Like("F16", (clients, images))
            like[f"{name}/labels"] = Like("I16", (images,), classes)
            like[f"{name}/images"] = Like("I32", (images,), 1 << 31)
    return TensorFile(file, like)
