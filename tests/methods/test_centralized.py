import agreement
from oracle import centralized

from fedpgp.methods import Centralized


def test_centralized_agrees_with_the_oracle(backbones, monkeypatch):
    agreement.check_agreement(Centralized(**agreement.HYPER), centralized.run, backbones, monkeypatch)
