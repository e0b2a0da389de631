import agreement
import pytest
from oracle import fedpgp

from fedpgp.methods import FedPGP

METHOD = FedPGP(**agreement.HYPER, bottleneck=2, mu=0.7, tau=0.4)


def test_fedpgp_agrees_with_the_oracle(both_precisions, monkeypatch):
    agreement.check_agreement(
        METHOD,
        lambda world: fedpgp.run(world, 0.7, 0.4),
        both_precisions,
        monkeypatch,
        epochs=2,
        rounds=3,
        images="real",
    )


@pytest.mark.parametrize(
    ("changes", "hyper"),
    [
        ({"full_rank": True}, {}),
        ({"positive": False}, {"positive": False}),
        ({"negative": False}, {"negative": False}),
    ],
)
def test_ablations_agree_with_the_oracle(changes, hyper, backbones, monkeypatch):
    method = FedPGP(**agreement.HYPER, bottleneck=2, mu=0.7, tau=0.4, **changes)
    agreement.check_agreement(method, lambda world: fedpgp.run(world, 0.7, 0.4, **hyper), backbones, monkeypatch)
