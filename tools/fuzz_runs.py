"""Run directories for fuzz.py: each kind changes files of a small run or study, and uses it as the commands do."""

import dataclasses
import json
import os
import random
import shutil
import sqlite3
import struct
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import fedpgp
import torch
from fedpgp.backbone import load_backbone
from fedpgp.cli.printing import print_comparison
from fedpgp.data.client_task import named_task
from fedpgp.data.image_features import ImageFeatures
from fedpgp.errors import FedPGPError
from fedpgp.federation.run_spec import RunSpec
from fedpgp.federation.state_check import check_state
from fedpgp.report import comparison as report
from fedpgp.report import frames, tables
from fedpgp.report.page.collect import gather
from fedpgp.results.provenance import started_config
from fedpgp.results.read import open_state
from fedpgp.results.run_store import check_output, resume_remedy
from fedpgp.serving.classifier import backbone_of, model_of
from fedpgp.studies.study import read_record
from fedpgp.studies.sweep import Sweep
from fedpgp.tracking.figures import final, scalars

from fuzz_files import Attack, changed, damaged

WRITTEN = Path(__file__).parents[1] / "tests" / "fixtures" / "run-directories-0.1.0"
EXTRA = (
    "\n[[data]]\n",
    "\n[fedpgp]\nmu = 1\n",
    "\nx = " + "[" * 3000 + "\n",
    "\ny = 0x" + "f" * 6000 + "\n",
    "\0",
    "é",
)
EVERY = 40  # inputs after which the slow consumers are used, too


def _change(file: Path, draw: random.Random) -> None:
    """Change a file: values in JSON, numbers or names in tensors, lines in TOML, or bytes of any file."""
    content, change = file.read_bytes(), draw.randrange(20)
    if change == 0:
        made = damaged(content, draw)
    elif change == 1:
        file.unlink()
        if draw.random() < 0.5:
            file.symlink_to("/dev/zero")
        else:
            os.mkfifo(file)
        return
    elif file.suffix == ".json":
        made = changed(json.loads(content), draw)
    elif file.suffix == ".jsonl":
        lines = content.splitlines()
        at = draw.randrange(len(lines))
        lines[at] = changed(json.loads(lines[at]), draw)
        made = b"\n".join(lines * draw.choice((1, 1, 1, 2))) + b"\n"
    elif file.suffix == ".safetensors":
        length = struct.unpack("<Q", content[:8])[0]
        header, data = content[8 : 8 + length], bytearray(content[8 + length :])
        if draw.random() < 0.5:
            header = changed(json.loads(header), draw)
        else:
            name = draw.choice([name for name in json.loads(header) if name != "__metadata__"])
            header = header.replace(
                f'"{name}"'.encode(), draw.choice((b'"shared/x"', b'"private/9/U"', b'"private/../U"'))
            )
        for _ in range(draw.choice((0, 1, 100))):
            at = draw.randrange(max(1, len(data) - 4))
            data[at : at + 4] = draw.choice((b"\0\0\xc0\x7f", b"\xff\xff\xff\xff", draw.randbytes(4)))
        made = struct.pack("<Q", len(header)) + header + bytes(data)
    else:
        lines = content.decode().splitlines()
        at = draw.randrange(len(lines))
        key, separator, _ = lines[at].partition(" = ")
        value = draw.choice(("-1", "0", "1e300", "nan", "true", '"x"', '"../x"', "[]", "{a = 1}", "10000000000", "''"))
        lines[at] = f"{key} = {value}" if separator else lines[at]
        made = ("\n".join(lines) + (draw.choice(EXTRA) if draw.random() < 0.2 else "")).encode()
    file.write_bytes(made)


def _attack(kind: str, use: Callable[[Path, int], None]) -> Callable[[Path], Attack]:
    """Return a kind: a file of the fixture `kind` is changed, and `use` gets the directory and a random number."""

    def prepare(directory: Path) -> Attack:
        place = directory / kind
        shutil.copytree(WRITTEN / kind, place)
        use(place, 0)  # the unchanged directory is accepted
        shutil.rmtree(place)

        def attack(draw: random.Random) -> None:
            shutil.copytree(WRITTEN / kind, place)
            try:
                files = sorted(file for file in place.rglob("*") if file.is_file() and file.suffix != ".sqlite")
                for file in {draw.choice(files) for _ in range(draw.choice((1, 1, 1, 2)))}:
                    _change(file, draw)
                for state in place.rglob("*.sqlite"):
                    if draw.random() < 0.7:
                        _change_state(state, draw)
                use(place, draw.randrange(EVERY))
            finally:
                shutil.rmtree(place)

        return attack

    return prepare


def _finished(directory: Path, number: int) -> None:
    """Show, compare, draw, track, predict with, export and join a run."""
    results = fedpgp.load_comparison(directory)
    (run,) = results.runs
    print_comparison(results, None)
    report.markdown(results)
    tables.comparison_csv(results), tables.path_csv(results), tables.diagnosis_table(results)
    repr(run.at("validation")), run.macro, run.resampled, results.as_json()
    for frame in (frames.learning_curves, frames.cosines, frames.tradeoff, frames.clients, frames.costs):
        frame(results)
    for frame in (frames.by_class, frames.client_by_class, frames.singular_values):
        frame(run)
    [scalars(record) for record in run.rounds], final(run), gather([directory])
    backbone = _kept.get("backbone")
    if backbone is None or number == 0:
        backbone = _kept["backbone"] = backbone_of(run, None)
    for client in (None, 0, 2):
        model = model_of(run, backbone, client)
        features = torch.nn.functional.normalize(torch.ones(2, backbone.image.width), dim=-1)
        chances = model.probabilities(model.answer(ImageFeatures(features), model.read(["ant", "fire engine"])))
        assert chances.isfinite().all()
    if number == 1:
        fedpgp.export(run, directory.parent / "exported", "clip-head", force=True)


_kept: dict[str, Any] = {}


def _change_state(file: Path, draw: random.Random) -> None:
    change = draw.randrange(8)
    if change == 0:
        file.write_bytes(damaged(file.read_bytes(), draw))
        return
    if change == 1:
        file.with_name(f"{file.name}-journal").write_bytes(draw.randbytes(600) + bytes.fromhex("d9d505f920a163d7"))
        return
    with closing(sqlite3.connect(file)) as made, made:
        if change == 2:
            made.execute(draw.choice((
                "CREATE TRIGGER x AFTER INSERT ON rounds BEGIN DELETE FROM server; END",
                "CREATE VIEW x AS SELECT * FROM origin", "DROP TABLE server", "DELETE FROM server",
                "INSERT INTO server SELECT * FROM server", "UPDATE rounds SET number = number + 1",
            )))  # fmt: skip
        elif change in (3, 4):
            table = draw.choice(("origin", "rounds"))
            column = "content" if table == "origin" else "record"
            ((text,), *_) = made.execute(f"SELECT {column} FROM {table}")
            made.execute(
                f"UPDATE {table} SET {column} = ?", (changed(json.loads(text), draw).decode(errors="replace"),)
            )
        else:
            table = draw.choice(("server", "clients"))
            ((blob,), *_) = made.execute(f"SELECT tensors FROM {table}")
            length = struct.unpack("<Q", blob[:8])[0]
            header = changed(json.loads(blob[8 : 8 + length]), draw)
            value = draw.choice(
                (damaged(blob, draw), struct.pack("<Q", len(header)) + header + blob[8 + length :], "x", 5)
            )
            made.execute(f"UPDATE {table} SET tensors = ?", (value,))


def _unfinished(directory: Path, number: int) -> None:
    """Show and resume a run."""
    fedpgp.load_comparison(directory)
    resume_remedy(directory)
    config = started_config([directory])
    with open_state(directory) as state:
        backbone = _kept.get("backbone") or _kept.setdefault("backbone", load_backbone("pictoclip"))
        method = config.methods[state.origin()["method"]]
        settings = dataclasses.replace(config.federation, rounds=min(config.federation.rounds, 100))
        task = named_task(["ant", "fire engine"], ["a photo of a {}."])
        spec = RunSpec(method, task, backbone, settings, 0)
        spec.clients = 3
        check_state(spec, state)


def _study(directory: Path, number: int) -> None:
    """Read a sweep, and the comparisons in it."""
    record = read_record(directory, "sweep", to_resume=False)
    sweep = Sweep.from_record(record, directory, {})
    sweep.plan(), sweep.distinct_cells, gather([directory])
    for cell in sweep.distinct_cells:
        assert (directory / cell.place).resolve().is_relative_to(directory.resolve()), "a cell outside"
        if (directory / cell.place).exists():  # the other cell is not finished
            report.markdown(fedpgp.load_comparison(directory / cell.place))
    with suppress(FedPGPError):
        check_output(directory, force=True)


KINDS: dict[str, Callable[[Path], Attack]] = {
    "finished-run": _attack("finished", _finished),
    "unfinished-run": _attack("unfinished", _unfinished),
    "study": _attack("sweep", _study),
}
GROUPS = {"runs": [*KINDS]}
