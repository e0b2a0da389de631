import agreement
from oracle import class_specific, local

from fedpgp.methods import Local


def test_local_agrees_with_the_oracle(backbones, monkeypatch):
    agreement.check_agreement(Local(**agreement.HYPER), local.run, backbones, monkeypatch, rounds=3)


def test_class_specific_contexts_agree_with_the_oracle(backbones, monkeypatch):
    method = Local(context_length=3, learning_rate=0.01, class_specific=True)
    agreement.check_agreement(
        method, lambda world: class_specific.run(world, False, "end"), backbones, monkeypatch, rounds=2
    )
