"""FedPGP as public code computes it. This baseline is written to be readable, not fast.

It follows what is known of the authors' code (docs/differences.md, number 3) and uses the modules of transformers.
Every step has four text passes of whole sequences: for p_G, for p_i, for U V without p_G (never used) and for z_C
(constant). The image encoder encodes every image each time it is needed. In one point the baseline follows the paper
instead: z_C is the feature of "a photo of a {class}.", so that both sides compute the same numbers.

Letters: C classes, L sequence length, M context vectors, b bottleneck, B images, d token width, D feature width.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fedpgp.aggregators import Upload
from fedpgp.backbone import Backbone
from fedpgp.backbone.tokens import ClassTokens, text_ids
from fedpgp.bench.shapes import BATCH, LOCAL_EPOCHS, Scene
from fedpgp.data.tasks import Client, EvaluationSet, Task
from fedpgp.federation.run_spec import RunSpec
from fedpgp.federation.settings import FederationConfig
from fedpgp.methods.fedpgp import FedPGP
from fedpgp.runtime.randomness import generator

if TYPE_CHECKING:
    from transformers import CLIPModel

TEST_BATCH = 100  # batch size of the public configurations


Sequences = ClassTokens  # whole sequences as ids [C, L], with placeholders for the context


def sequences(backbone: Backbone, context: Sequence[int], tokens: ClassTokens, length: int) -> Sequences:
    """Return the sequences [SOS] context [class tokens] . [EOS], padded with EOS to `length`."""
    C, before = len(tokens), 1 + len(context)
    ids = torch.full((C, length), backbone.tokenizer.eos_token_id)
    ids[:, :before] = torch.tensor([backbone.tokenizer.bos_token_id, *context])
    ids[:, before : before + tokens.ids.shape[1]] = tokens.ids
    return Sequences(ids, before + tokens.end)


@dataclass(frozen=True)
class Naive:
    """Model of a client over some classes.

    Attributes
    ----------
    model
        Module of transformers.
    prompt
        Sequences with M placeholders.
    template
        Sequences with "a photo of a".
    method
        Settings of FedPGP.
    """

    model: "CLIPModel"
    prompt: Sequences
    template: Sequences
    method: FedPGP

    def texts(self, values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return z_C, z_G and z_i, [C, D] each, of the values p_G [M, d], U [M, b] and V [b, d]."""
        p_G, UV = values["p_G"], values["U"] @ values["V"]
        z_C = read(self.model, self.template)
        z_G = read(self.model, self.prompt, p_G)
        z_i = read(self.model, self.prompt, p_G + UV)
        read(self.model, self.prompt, UV)
        return z_C, z_G, z_i

    def loss(self, values: Mapping[str, Tensor], images: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of a client for image features [B, D] and labels [B], which are columns of the softmax."""
        z_C, z_G, z_i = self.texts(values)
        logits = self.model.logit_scale.exp() * images @ z_i.T
        cosines = torch.stack([F.cosine_similarity(z_C, z_G), F.cosine_similarity(z_G, z_i)], dim=1) / self.method.tau
        first = torch.zeros(len(cosines), dtype=torch.long)
        return F.cross_entropy(logits, labels) + self.method.mu * F.cross_entropy(cosines, first)

    @torch.no_grad()
    def predict(self, values: Mapping[str, Tensor], pixels: Tensor) -> Tensor:
        """Return the predicted columns [n] of test images; both encoders run again for every batch."""
        columns = []
        for batch in pixels.split(TEST_BATCH):
            _, _, z_i = self.texts(values)
            columns.append((self.model.logit_scale.exp() * see(self.model, batch) @ z_i.T).argmax(-1))
        return torch.cat(columns)


def make_naive(scene: Scene, method: FedPGP, classes: Sequence[int]) -> Naive:
    """Return the model over some classes of the task, with sequences of the full length of the checkpoint."""
    backbone, names = scene.backbone, scene.task.class_names
    tokens = backbone.class_tokens([names[label] for label in classes])
    length = scene.model.text_model.embeddings.position_embedding.num_embeddings
    placeholders = [backbone.tokenizer.eos_token_id] * method.context_length
    phrase = text_ids(backbone.tokenizer, "a photo of a")
    return Naive(
        model=scene.model,
        prompt=sequences(backbone, placeholders, tokens, length),
        template=sequences(backbone, phrase, tokens, length),
        method=method,
    )


def read(model: "CLIPModel", text: Sequences, context: Tensor | None = None) -> Tensor:
    """Return text features [C, D] of unit length, with the context [M, d] instead of placeholders if it is given."""
    from transformers.masking_utils import create_causal_mask

    tower = model.text_model
    text_config: Any = model.config.text_config
    hidden = tower.embeddings.token_embedding(text.ids)
    if context is not None:
        own = context.expand(len(hidden), -1, -1)
        hidden = torch.cat([hidden[:, :1], own, hidden[:, 1 + len(context) :]], dim=1)
    hidden = hidden + tower.embeddings.position_embedding.weight[: hidden.shape[1]]
    mask = create_causal_mask(config=text_config, inputs_embeds=hidden, attention_mask=None, past_key_values=None)
    hidden = tower.encoder(inputs_embeds=hidden, attention_mask=mask, is_causal=True).last_hidden_state
    hidden = tower.final_layer_norm(hidden)
    return F.normalize(model.text_projection(hidden[torch.arange(len(hidden)), text.end]), dim=-1)


def see(model: "CLIPModel", pixels: Tensor) -> Tensor:
    """Return image features [B, D] of unit length of preprocessed images."""
    return F.normalize(model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output), dim=-1)


def naive_round(scene: Scene, settings: FederationConfig, seed: int) -> tuple[Tensor, dict[str, NDArray[np.bool_]]]:
    """Run a round of all clients; return the new p_G and the correct test images [N, n] of each client by test set."""
    task, method = scene.task, FedPGP()
    spec = RunSpec(method, task, scene.backbone, settings, seed)
    start = {**spec.shared, **spec.first(0).private}  # all clients start with the same values
    naive = make_naive(scene, method, task.base)
    trained = [_train(naive, start, scene, client, settings, seed) for client in task.clients]
    uploads = [Upload(c.id, len(c.train), {"p_G": t["p_G"]}) for c, t in zip(task.clients, trained, strict=True)]
    p_G = spec.aggregator.aggregate(spec.begin(), uploads).shared["p_G"]
    correct = {}
    for name, test in task.tests.items():
        naive, pixels = make_naive(scene, method, test.classes), scene.pixels[test.dataset.split][test.images]
        predicted = [naive.predict({**values, "p_G": p_G}, pixels).numpy() for values in trained]
        correct[name] = np.stack(predicted) == test.targets
    return p_G, correct


def _train(
    naive: Naive, start: Mapping[str, Tensor], scene: Scene, client: Client, settings: FederationConfig, seed: int
) -> dict[str, Tensor]:
    """Train one client on the batches of round 1 in the order of the library, and return its values."""
    pixels = scene.pixels["train"][torch.from_numpy(client.train)]
    labels = torch.from_numpy(EvaluationSet(scene.task.train, scene.task.base, client.train).targets)
    values = {name: value.detach().clone().requires_grad_() for name, value in start.items()}
    optimizer = torch.optim.SGD(
        list(values.values()),
        lr=naive.method.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
    )
    rng = generator(seed, "order", 1, client.id)
    for _ in range(settings.local_epochs):
        for chosen in torch.randperm(len(labels), generator=rng).split(settings.batch_size):
            optimizer.zero_grad()
            naive.loss(values, see(naive.model, pixels[chosen]), labels[chosen]).backward()
            optimizer.step()
    return {name: value.detach() for name, value in values.items()}


def count_calls(task: Task) -> dict[str, int]:
    """Count the calls of a naive round of all clients: local steps, and image and text passes of the evaluation.

    The evaluation of a client encodes every test image, and has four text passes over C classes for each test batch.
    """
    clients, tests = len(task.clients), [len(test.images) for test in task.tests.values()]
    return {
        "steps": LOCAL_EPOCHS * sum(math.ceil(len(client.train) / BATCH) for client in task.clients),
        "images": clients * sum(tests),
        "text_passes": 4 * clients * sum(math.ceil(count / TEST_BATCH) for count in tests),
    }
