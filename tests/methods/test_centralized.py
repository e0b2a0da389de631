import agreement
import tiny
import torch
from oracle import centralized

from fedpgp.methods import Centralized


def test_centralized_agrees_with_the_oracle(backbones, monkeypatch):
    agreement.check_agreement(Centralized(**agreement.HYPER), centralized.run, backbones, monkeypatch)


def test_finetuning_is_each_clients_own_and_nothing_else_is_sent(exact):
    found = tiny.run(Centralized(**agreement.HYPER, finetuning=2), exact, rounds=2)
    assert [one.record["participants"] for one in found] == [[0], [0], [0, 1, 2]]
    assert [one.record["bytes_up"] for one in found] == [0, 0, 0]
    assert [one.record["bytes_down"] for one in found] == [0, 0, 3 * 128 * 8]
    kept = [own["p_G"] for own in found[-1].kept]
    assert all(not torch.equal(p, found[-1].shared["p_G"]) for p in kept) and not torch.equal(kept[0], kept[1])
    assert found[-1].record["cosine_guidance_global"] != found[-2].record["cosine_guidance_global"]
