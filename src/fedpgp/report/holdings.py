"""Who holds what in a task: a table, and a picture of the class × client matrix."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fedpgp.data.tasks import Client, Task
from fedpgp.evaluation.metrics import own_images
from fedpgp.report.style import house_style, rendered
from fedpgp.results.formats import Table, TableCell

NAMED = 60  # classes, or clients, that an axis can name


def matrix(task: Task) -> NDArray[np.int64]:
    """[base classes, clients] training images; new clients are the last columns."""
    columns = [
        np.bincount(task.train.labels[client.train], minlength=len(task.train.class_names))
        for client in everybody(task)
    ]
    return np.stack(columns, axis=1)[list(task.base)]


def everybody(task: Task) -> list[Client]:
    """The clients, and after them the new ones."""
    return [*task.clients, *task.new_clients]


def rows(task: Task) -> list[dict[str, Any]]:
    """What each client holds, and how many images are its own in every test."""
    found = []
    for client in everybody(task):
        late = client in task.new_clients
        found.append(
            {
                "client": f"new {client.id}" if late else str(client.id),
                "name": client.name or "",
                "domain": ""
                if client.domains is None
                else ", ".join(task.train.domain_names[i] for i in client.domains),
                "classes": len(client.classes),
                "training images": len(client.train),
                "own test images": int(own_images(task, [client], "base").sum()),
                "own validation images": int(own_images(task, [client], "validation").sum()),
            }
        )
    return found


def tables(task: Task) -> list[Table]:
    """What is tested, and a row for each client; columns that say nothing are left out."""
    sets = {**task.tests, "validation": task.validation}
    tested = [
        [
            TableCell(name),
            TableCell(f"{test.dataset.split} of {test.dataset.name}"),
            TableCell(f"{len(test.classes):,}"),
            TableCell(f"{len(test.images):,}"),
        ]
        for name, test in sets.items()
    ]
    of_clients = rows(task)
    shown = [name for name in of_clients[0] if any(row[name] != "" for row in of_clients)]
    return [
        Table(
            f"{task.name} on {task.train.name}, partition {task.partition}: {len(task.base)} classes are trained on",
            ["test set", "images of", "classes in the softmax", "images"],
            tested,
        ),
        Table("", shown, [[TableCell(str(row[name])) for name in shown] for row in of_clients]),
    ]


def picture(task: Task, suffix: str) -> bytes:
    """The training images of every class (down) and client (across), as "svg" or "png"."""
    counts = matrix(task)
    classes, clients = counts.shape
    names = [task.train.class_names[label] for label in task.base]
    with house_style():
        size = (min(12, 2.6 + 0.16 * clients), min(14, 1.6 + 0.16 * classes))
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        shown = axes.imshow(counts, aspect="auto", cmap="cividis", interpolation="nearest", vmin=0)
        figure.colorbar(shown, ax=axes, label="training images")
        axes.set(xlabel="client", ylabel="class", title=f"{task.name}, {task.partition}")
        if clients <= NAMED:
            axes.set_xticks(range(clients), [row["client"] for row in rows(task)], rotation=90, fontsize=6)
        if classes <= NAMED:
            axes.set_yticks(range(classes), names, fontsize=6)
        return rendered(figure, suffix)
