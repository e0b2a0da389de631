"""Data of each client of a task: tables, and a picture of the class × client matrix."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fedpgp.data.tasks import Client, Task
from fedpgp.evaluation.metrics import own_images
from fedpgp.report import charts
from fedpgp.report.style import rendered
from fedpgp.report.tables import text_table
from fedpgp.results.formats import Table


def everybody(task: Task) -> Iterator[tuple[str, Client]]:
    """Yield the name of each client, then of each new client, with the client."""
    yield from ((str(client.id), client) for client in task.clients)
    yield from ((f"new {client.id}", client) for client in task.new_clients)


def matrix(task: Task) -> NDArray[np.int64]:
    """Return the number of training images [base classes, clients]; new clients are the last columns."""
    labels, classes = task.train.labels, len(task.train.class_names)
    columns = [np.bincount(labels[client.train], minlength=classes) for _, client in everybody(task)]
    return np.stack(columns, axis=1)[list(task.base)]


def rows(task: Task) -> list[dict[str, Any]]:
    """Return a row for each client: its training data, and its numbers of test and validation images."""
    return [
        {
            "client": name,
            "name": client.name or "",
            "domain": ", ".join(task.train.domain_names[i] for i in client.domains or ()),
            "classes": len(client.classes),
            "training images": len(client.train),
            "own test images": int(own_images(task, [client], "base").sum()),
            "own validation images": int(own_images(task, [client], "validation").sum()),
        }
        for name, client in everybody(task)
    ]


def tables(task: Task) -> list[Table]:
    """Return a table of the test sets and a table of the clients, without empty columns."""
    tested = [
        [name, f"{test.dataset.split} of {test.dataset.name}", f"{len(test.classes):,}", f"{len(test.images):,}"]
        for name, test in {**task.tests, "validation": task.validation}.items()
    ]
    of_clients = rows(task)
    shown = [name for name in of_clients[0] if any(row[name] != "" for row in of_clients)]
    return [
        text_table(
            f"{task.name} on {task.train.name}, partition {task.partition}: {len(task.base)} training classes",
            ["test set", "images of", "classes in the softmax", "images"],
            tested,
        ),
        text_table("", shown, [[str(row[name]) for name in shown] for row in of_clients]),
    ]


def picture(task: Task, suffix: str) -> bytes:
    """Return a picture of the training images of every class (rows) and client (columns), as "svg" or "png"."""
    classes = [task.train.class_names[label] for label in task.base]
    counts = pd.DataFrame(matrix(task), index=classes, columns=[name for name, _ in everybody(task)])
    frame = counts.rename_axis("class").reset_index().melt("class", var_name="client", value_name="images")
    return rendered(charts.holdings(frame, f"{task.name}, {task.partition}"), suffix)
