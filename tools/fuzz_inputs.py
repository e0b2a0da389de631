"""Tables of images and replies of clients for fuzz.py."""

import contextlib
import csv
import io
import random
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import torch
from fedpgp.data.settings import DataConfig
from fedpgp.data.sources import read_listing
from fedpgp.flower.messages import Request, evaluation
from fedpgp.flower.update_validation import Asked, arrays, check, facts, read_any
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from google.protobuf.message import DecodeError
from PIL import Image

from fuzz_files import TEXTS, VALUES, Attack, damaged

CELLS = ("ant", "bus", "train", "test", "0.png", "1.png", "../0.png", "/etc/passwd", "=1+1", '"', "\r", "\n", ",", "\t")
HEADS = ("image", "label", "split", "domain", "class", "file_name", "", "path")
ROUND, RUN = 7, "3f2a"


def tables(directory: Path) -> Attack:
    """CSV, TSV and Parquet files with cells, columns and bytes that are false."""
    for number in range(2):
        Image.new("RGB", (9, 7), (number, 0, 0)).save(directory / f"{number}.png")
    rows = [{"image": f"{i % 2}.png", "label": ("ant", "bus")[i % 2], "split": "train"} for i in range(8)]

    def attack(draw: random.Random) -> None:
        made = [dict(row) for row in rows]
        for _ in range(draw.choice((0, 1, 1, 2, 5))):
            row = draw.choice(made)
            row[draw.choice([*row])] = draw.choice((*CELLS, *TEXTS)).encode(errors="replace").decode()
        names = {name: draw.choice(HEADS) if draw.random() < 0.1 else name for name in rows[0]}
        made = [{names[name]: value for name, value in row.items()} for row in made]
        suffix = draw.choice((".csv", ".tsv", ".parquet"))
        if suffix == ".parquet":
            written = io.BytesIO()
            kinds = {name: draw.choice((None, None, pyarrow.binary(), pyarrow.large_string())) for name in made[0]}
            columns = {name: pyarrow.array([row[name] for row in made], kind) for name, kind in kinds.items()}
            pyarrow.parquet.write_table(pyarrow.table(columns), written)
            content = written.getvalue()
        else:
            text = io.StringIO()
            writer = csv.writer(text, delimiter="\t" if suffix == ".tsv" else draw.choice(",;"))
            writer.writerows([list(made[0]), *(list(row.values()) for row in made)])
            content = text.getvalue().encode()
        file = directory / f"table{suffix}"
        file.write_bytes(damaged(content, draw) if draw.random() < 0.5 else content)
        found = read_listing(DataConfig(source=str(file)))
        with contextlib.suppress(OSError):  # which loading of images reports as a fault of the image
            found.pictures(0)

    return attack


def updates(directory: Path) -> Attack:
    """Change replies of clients and requests of a server: other names, types, shapes, values and bytes."""
    received = {"p_G": torch.zeros(3, 4), "gate": torch.ones(2, dtype=torch.float64)}
    asked = Asked(5, ROUND, RUN, received, {}, received, most_examples=100, largest_change=10.0)
    request, names = Request(RUN, ROUND, 3, None, {}, (0.0, 1.0)), ("local", "base")  # type: ignore[arg-type]

    def attack(draw: random.Random) -> None:
        content = RecordDict({
            "shared": arrays(received),
            "losses": MetricRecord({"task": 1.5}),
            "about": ConfigRecord({"examples": 12, "round": ROUND, "run": RUN, "after": 6, "counted": 3}),
            "figures/0.0": MetricRecord({"local": 50.0, "base": 40.0}),
            "figures/1.0": MetricRecord({"local": 50.0, "base": 40.0}),
            "diagnostics": MetricRecord({}),
        })  # fmt: skip
        for _ in range(draw.choice((0, 1, 1, 2, 4))):
            name = draw.choice([*content])
            record, change = content[name], draw.randrange(6)
            try:
                if change == 0:
                    del content[name]
                elif change == 1:
                    content[draw.choice(("shared", "about", "losses", "x", "\x1b[2J"))] = record
                elif isinstance(record, ArrayRecord) and record:
                    key = draw.choice([*record])
                    array = record[key]
                    fields = {"dtype": array.dtype, "shape": array.shape, "stype": array.stype, "data": array.data}
                    fields |= draw.choice((
                        {"dtype": draw.choice(("float16", "object", "|V9", "<f8", ""))},
                        {"shape": draw.choice(((), (0,), (-1, 4), (2**40, 2**40), (4, 3), (1,) * 50))},
                        {"stype": draw.choice(("pickle", ""))},
                        {"data": damaged(array.data, draw)},
                    ))  # fmt: skip
                    record[key] = Array(**fields)
                else:
                    record[draw.choice([*record, "x", "loss\n"])] = draw.choice(VALUES)  # type: ignore[index]
            except (TypeError, ValueError, KeyError):  # Flower's types refuse it
                return
        try:
            sent = recorddict_to_proto(content).SerializeToString()
            content = recorddict_from_proto(
                ProtoRecordDict.FromString(damaged(sent, draw) if draw.random() < 0.3 else sent)
            )
        except (DecodeError, ValueError, TypeError, KeyError):  # Flower refuses it before fedpgp sees it
            return
        use = draw.randrange(3)
        if use == 0:
            facts_only = {"examples", "round", "run", "after"}
            kept = {key: value for key, value in content.config_records.get("about", {}).items() if key in facts_only}
            only = {name: content[name] for name in content if not name.startswith(("figures", "diagnostics"))}
            check(RecordDict({**only, "about": ConfigRecord(kept)} if "about" in only else only), asked)
        elif use == 1:
            evaluation(content, request, names, outcomes=False)
        else:
            facts(content, run=str, round=int)
            Request.of(content, torch.device("cpu"))
            for record in content.array_records.values():
                read_any(record)

    return attack


KINDS: dict[str, Callable[[Path], Attack]] = {"tables": tables, "updates": updates}
