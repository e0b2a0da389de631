"""New clients that join when training is over: the shared part stays as it is, they fit what is their own."""

from collections.abc import Sequence
from dataclasses import replace

from fedpgp.backbone.towers import Towers
from fedpgp.federation.client import ClientJob, in_groups, train_clients
from fedpgp.federation.state import ClientState
from fedpgp.workers import Workers


def fit(towers: Towers, jobs: Sequence[ClientJob], workers: Workers) -> list[ClientState]:
    """What new clients keep after training their own part alone, in the order of the jobs.

    Their shared part is the one that they were sent: with nothing to train beside it they keep their first state.
    """
    if not jobs[0].own.private:
        return [job.own for job in jobs]
    fixed = [replace(job, training=replace(job.training, private_alone=True)) for job in jobs]
    groups = workers.map(train_clients, in_groups(towers, fixed))
    return [replace(update.own, kept={}) for group in groups for update in group]
