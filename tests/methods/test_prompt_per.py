"""FedPer on the vectors of a prompt."""

import agreement
import pytest
import tiny
import torch
from oracle import prompt_per
from pydantic import ValidationError
from raising import raises

from fedpgp.errors import ConfigError
from fedpgp.methods import Local, Params, PromptFL
from fedpgp.methods.prompt_per import PromptPer


def parts(method, backbone):
    """Lengths of the shared and the private part, 0 for one that is not there."""
    task = tiny.task()
    shared = method.init_shared(task, backbone, tiny.generator(0, "shared"))
    private = method.init_private(task, backbone, tiny.generator(0, "private"), 0)
    assert set(shared) <= {"p_G"} and set(private) <= {"p"}
    return tuple(len(next(iter(part.values()), ())) for part in (shared, private))


@pytest.mark.parametrize("length", [None, 2])
def test_prompt_per_agrees_with_the_oracle(length, backbones, monkeypatch):
    method = PromptPer(**agreement.HYPER, shared_length=length)
    agreement.check_agreement(method, prompt_per.run, backbones, monkeypatch, rounds=3)


def test_the_shared_vectors_come_first(backbone):
    shared, private = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [5.0, 6.0]])
    (context,) = PromptPer().prompts(Params({"p_G": shared}, {"p": private}), None)
    assert context.tolist() == [[1, 2], [3, 4], [5, 6]]


def test_half_of_the_vectors_are_shared_rounded_down(backbone):
    assert parts(PromptPer(), backbone) == (8, 8)
    assert parts(PromptPer(context_length=5), backbone) == (2, 3)
    with raises(ConfigError, where="prompt-per.shared_length", got=None, remedy="--set prompt-per.shared_length=1"):
        parts(PromptPer(context_length=1), backbone)
    assert parts(PromptPer(context_length=1, shared_length=1), backbone) == (1, 0)
    assert parts(PromptPer(context_length=5, shared_length=4), backbone) == (4, 1)


def test_a_phrase_has_its_own_length(backbone):
    method = PromptPer(ctx_init="a photo of a", context_length=3, shared_length=3)
    assert parts(method, backbone) == (3, 1)
    task, phrase = tiny.task(), backbone.phrase("a photo of a")
    own = Params(method.init_shared(task, backbone, None), method.init_private(task, backbone, None, 0))
    assert torch.equal(method.prompts(own, None)[0], phrase)
    for length in (5, 1024):
        with raises(ConfigError, where="prompt-per.shared_length", allowed="at most 4", got=length):
            parts(PromptPer(ctx_init="a photo of a", shared_length=length), backbone)


def test_with_everything_shared_prompt_per_is_promptfl(exact):
    schedule = {"rounds": 3, "participation": 0.67}
    ours = tiny.run(PromptPer(**agreement.HYPER, shared_length=3), exact, **schedule)
    theirs = tiny.run(PromptFL(**agreement.HYPER), exact, **schedule)
    for one, two in zip(ours, theirs, strict=True):
        assert list(one.private) == [{}, {}, {}]
        assert torch.allclose(one.shared["p_G"], two.shared["p_G"], rtol=0, atol=1e-13)
        assert one.record["bytes_up"] == two.record["bytes_up"]
        assert one.evaluation.shared == two.evaluation.shared is not None


def test_with_nothing_shared_prompt_per_is_local(exact):
    schedule = {"rounds": 3, "participation": 0.67}
    ours = tiny.run(PromptPer(**agreement.HYPER, shared_length=0), exact, **schedule)
    theirs = tiny.run(Local(**agreement.HYPER), exact, **schedule)
    for one, two in zip(ours, theirs, strict=True):
        assert one.shared == {} and one.record["bytes_up"] == 0
        for mine, other in zip(one.private, two.private, strict=True):
            assert torch.allclose(mine["p"], other["p"], rtol=0, atol=1e-13)


def test_only_the_shared_vectors_are_sent_and_they_predict_nothing_alone(exact):
    *_, last = tiny.run(PromptPer(**agreement.HYPER, shared_length=2), exact)
    assert last.record["bytes_up"] == last.record["bytes_down"] == 2 * exact.token_width * 8
    assert last.evaluation.shared is None
    own = [private["p"] for private in last.private]
    assert not any(torch.allclose(own[i], own[j], rtol=0, atol=1e-4) for i, j in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize("length", [-1, 1.5, 2000])
def test_a_wrong_length_is_refused(length):
    with pytest.raises(ValidationError, match="shared_length"):
        PromptPer(shared_length=length)
