"""The tool that trains pictoclip is reproducible and resumable, and writes a checkpoint that transformers loads."""

import json

import numpy as np
import pytest
import torch
import train_pictoclip
from train_pictoclip import (
    Drawings,
    Run,
    Settings,
    draw_batch,
    learning_rate,
    load_state,
    make_pool,
    new_run,
    save_state,
    severities,
    take_step,
    turns_of,
    write_checkpoint,
)
from transformers import CLIPModel

SETTINGS = Settings(names=4, steps=4)
NAMES = 6


@pytest.fixture(scope="module")
def pool():
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (18, 4, 64, 64), dtype=np.uint8))
    drawings = Drawings(pixels, torch.arange(18) % 2 == 0, np.arange(18) % NAMES, np.arange(18) // NAMES)
    captions = np.full((NAMES, 16, 40), 3071, np.int16)
    captions[:, :, 0] = 3070
    captions[:, :, 1] = np.arange(NAMES)[:, None]
    return make_pool(drawings, captions, SETTINGS)


@pytest.fixture
def begin(pool, monkeypatch):
    """Function that starts a new run."""
    monkeypatch.setattr(train_pictoclip, "PATCH_SAMPLE", 200)
    return lambda: new_run(pool.drawings, NAMES, SETTINGS)


def advance(run: Run, pool, steps: int) -> list[float]:
    return [take_step(run, pool, SETTINGS) for _ in range(steps)]


def test_resumed_run_equals_an_uninterrupted_one(begin, pool, tmp_path):
    whole = begin()
    losses = advance(whole, pool, 4)
    interrupted = begin()
    assert advance(interrupted, pool, 2) == losses[:2]
    save_state(interrupted, SETTINGS, tmp_path / "state")
    resumed = begin()
    load_state(resumed, SETTINGS, tmp_path / "state")
    assert advance(resumed, pool, 2) == losses[2:]
    for a, b in zip(whole.average.parameters(), resumed.average.parameters(), strict=True):
        assert torch.equal(a, b)


def test_state_of_other_settings_is_refused(begin, tmp_path):
    save_state(begin(), SETTINGS, tmp_path / "state")
    with pytest.raises(SystemExit, match="other settings"):
        load_state(begin(), Settings(names=4, steps=5), tmp_path / "state")


def test_checkpoint_loads_in_plain_transformers(begin, assets, tmp_path):
    run = begin()
    write_checkpoint(run, SETTINGS, assets / "pictoclip", tmp_path / "out")
    model = CLIPModel.from_pretrained(tmp_path / "out", dtype=torch.float32)
    for a, b in zip(model.parameters(), run.average.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)
    shipped = {path.name for path in (assets / "pictoclip").iterdir()} - {"README.md"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == shipped
    assert json.loads((tmp_path / "out" / "training.json").read_text())["settings"]["steps"] == 4


def test_batch(pool):
    batch = draw_batch(pool, SETTINGS, 0.5, torch.Generator().manual_seed(0))
    assert batch.images.shape == (8, 3, 48, 48)
    assert batch.captions.shape == (4, 3)  # start, name and end, cut at the longest
    assert len(set(batch.names.tolist())) == 4


def test_held_out_set_is_not_drawn(pool):
    held = Settings(validation_set="noto-v1")
    table = make_pool(pool.drawings, pool.captions.numpy(), held).table
    assert not np.isin(table.numpy(), np.flatnonzero(pool.drawings.sets == 0)).any()


def test_turns_are_in_proportion():
    turns = turns_of(np.array([7, 8]), np.array([3.0, 1.0]), np.random.default_rng(0))
    assert (turns == 7).sum() == 48
    assert (turns == 8).sum() == 16


def test_severity_grows_and_stays_in_range():
    generator = torch.Generator().manual_seed(0)
    early, late = (np.array([severities(done, SETTINGS, generator) for _ in range(300)]) for done in (0.0, 1.0))
    assert early.max() <= 0.1
    assert 0.9 < late.max() <= 1
    assert late.min() >= 0.02


def test_learning_rate_warms_up_and_fades():
    settings = Settings()
    assert learning_rate(0, settings) < 1e-5
    assert learning_rate(500, settings) == pytest.approx(1.5e-3, rel=0.02)
    assert learning_rate(settings.steps - 1, settings) < 1e-5
