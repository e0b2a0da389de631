"""ProGrad (Zhu et al., ICCV 2023, arXiv 2205.14865) on every client, averaged."""

import torch

from oracle.clip_text import template_features
from oracle.promptfl import logits_of
from oracle.training import cross_entropy, federate, gradients


def divergence(teacher, student, temperature):
    """T² · mean over images of Σ_c q_c log(q_c / r_c), q and r the softmax of logits over T."""
    total = 0
    for of_teacher, of_student in zip(teacher, student, strict=True):
        q, r = torch.softmax(of_teacher / temperature, 0), torch.softmax(of_student / temperature, 0)
        for c in range(len(q)):
            total = total + q[c] * (torch.log(q[c]) - torch.log(r[c]))
    return temperature**2 * total / len(teacher)


def projected(task, distillation, strength):
    """The gradient for the optimizer, and whether there was a conflict."""
    length = torch.sqrt((distillation**2).sum())
    if length == 0:
        return task, False
    b = distillation / length
    along = (task * b).sum()
    if along >= 0:
        return task, False
    return task - strength * along * b, True


def run(world, strength, temperature, conflicts=None):
    """conflicts: a list that gets, for every step, whether the two gradients were in conflict."""
    z_C = template_features(world.clip, world.tokenizer, "a photo of a {}.", world.names)

    def loss_of(theta, images, labels, start, client):
        student = logits_of(world, theta["p_G"], images, world.names)
        teacher = torch.exp(world.clip.logit_scale) * images @ z_C.T
        return {"task": cross_entropy(student, labels), "distillation": divergence(teacher, student, temperature)}

    def direction_of(terms, theta):
        task, distillation = (gradients(terms[term], theta)["p_G"] for term in ("task", "distillation"))
        followed, conflict = projected(task, distillation, strength)
        if conflicts is not None:
            conflicts.append(conflict)
        return {"p_G": followed}

    return federate(
        world,
        ["p_G"],
        loss_of,
        lambda theta, images, names, client: logits_of(world, theta["p_G"], images, names),
        direction_of=lambda number, client: direction_of,
    )
