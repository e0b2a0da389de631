import tiny
import torch
from oracle import clip_text

from fedpgp.federation.client_runner import frozen_of
from fedpgp.methods import ZeroShot, templates_of


def test_an_ensemble_is_the_mean_of_its_templates_of_unit_length(exact):
    """Against transformers' reading of every whole sentence."""
    names = [name.replace("_", " ") for name in tiny.NAMES]
    of_guidance = {
        guidance: templates_of(guidance, tiny.task()) for guidance in ("template", "ensemble", "ensemble-60")
    }
    for guidance, templates in of_guidance.items():
        read = [clip_text.template_features(exact.image.model, exact.tokenizer, t, names) for t in templates]
        mean = sum(read) / len(read)
        expected = mean / mean.norm(dim=-1, keepdim=True)
        found = frozen_of(ZeroShot(guidance=guidance), tiny.task(), exact).guidance
        assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    assert [len(set(templates)) for templates in of_guidance.values()] == [1, 7, 60]
    assert all(template.count("{}") == 1 for templates in of_guidance.values() for template in templates)


def test_a_dataset_can_have_its_own_templates(exact, pictograms):
    assert pictograms.templates == ("an icon of a {}.",)
    own, plain = (frozen_of(ZeroShot(guidance=kind), tiny.task(), exact).guidance for kind in ("dataset", "template"))
    assert torch.equal(own, plain)  # the generated dataset has CLIP's template
    drawn = frozen_of(ZeroShot(guidance="dataset"), tiny.task(templates=("an icon of a {}.",)), exact).guidance
    assert not torch.allclose(drawn, plain, atol=1e-3)
