"""Encoders that learn without labels: the loss by hand, training, and what is kept on disk."""

import numpy as np
import pytest
import torch

from seggym.cohorts.cohort import Cohort
from seggym.errors import SeggymError
from seggym.reward_models import encoder_store
from seggym.reward_models.checkpoints import PACKAGED, open_reward_model, read_card
from seggym.reward_models.encoder_store import encode, fit_encoder, kept_encoder, open_encoder
from seggym.reward_models.encoders import Encoder, EncoderRecipe, train_encoder, vicreg

SHORT = EncoderRecipe(features=6, iterations=4, batch=4)


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    y, x = np.indices((32, 32))
    drawn = [np.hypot(y - rng.uniform(8, 24), x - rng.uniform(8, 24)) < 7 for _ in range(8)]
    return torch.tensor(np.stack(drawn) * 0.6 + 0.2, dtype=torch.float32)[:, None]


@pytest.fixture
def cohort(tmp_path):
    return Cohort("acdc", tmp_path, ("background", "heart"), {"patient001": "all"}, lambda _: [], "f" * 8)


def test_vicreg_by_hand():
    """Two decorrelated features of standard deviation 2 cost nothing; equal ones cost their covariance."""
    one = torch.tensor([[2.0, 2.0], [2.0, -2.0], [-2.0, 2.0], [-2.0, -2.0]])
    assert float(vicreg(one, one)) == pytest.approx(0, abs=1e-6)
    shifted = one + 0.5
    assert float(vicreg(one, shifted)) == pytest.approx(25 * 0.25, abs=1e-5)
    equal = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [1.0, 1.0], [-1.0, -1.0]])
    # Covariance 4 / 3 in both off-diagonal entries, over two features, for both views.
    assert float(vicreg(equal, equal)) == pytest.approx(2 * 2 * (4 / 3) ** 2 / 2, rel=1e-5)
    collapsed = torch.zeros(4, 2)
    assert float(vicreg(collapsed, collapsed)) == pytest.approx(25 * (1 - 1e-2), rel=1e-5)


def test_features_of_every_position(images):
    encoder = Encoder(6).eval()
    assert encode(encoder, images).shape == (8, 6, 8, 8)
    with pytest.raises(SeggymError, match="trained on images of 1 channels, these have 3"):
        encode(encoder, images.expand(-1, 3, -1, -1))


def test_training_follows_from_the_seed_alone(images):
    torch.manual_seed(1)
    one = train_encoder(images, SHORT)
    state = torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    other = train_encoder(images, SHORT)
    assert torch.equal(encode(one, images), encode(other, images))
    assert not one.training
    assert not torch.equal(encode(one, images), encode(Encoder(6).eval(), images))


def test_training_brings_two_views_together(images):
    """Features of a place move less under a change of contrast, in units of their spread, than before training."""

    def change(encoder):
        clean, changed = encode(encoder, images), encode(encoder, (images**1.3 * 0.9).clamp(0, 1))
        return float((clean - changed).square().mean() / clean.var((0, 2, 3)).mean())

    untrained = train_encoder(images, EncoderRecipe(features=6, iterations=5, batch=8, learning_rate=1e-9))
    trained = train_encoder(images, EncoderRecipe(features=6, iterations=40, batch=8))
    assert change(trained) < change(untrained)


def test_the_card_says_who_was_seen(images, cohort, tmp_path):
    fit_encoder(tmp_path / "net", images, cohort, ["patient002", "patient001"], 2.0, SHORT)
    card = read_card(tmp_path / "net")
    assert (card.task, card.architecture, card.patients) == ("encoding", "encoder", ["patient001", "patient002"])
    assert card.metrics["recipe"]["iterations"] == 4
    found = open_encoder(str(tmp_path / "net"), cohort, ["patient003"])
    assert torch.equal(encode(found, images), encode(train_encoder(images, SHORT), images))
    with pytest.raises(SeggymError, match="was trained on patient002"):
        open_encoder(str(tmp_path / "net"), cohort, ["patient002"])


def test_a_segmentation_network_is_no_encoder(cohort):
    with pytest.raises(SeggymError, match="has task segmentation, expected encoding"):
        open_encoder("phantom", cohort, [])


def test_an_encoder_is_trained_once_and_kept(images, cohort, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SEGGYM_HOME", str(tmp_path))
    asked = []

    def give():
        asked.append(1)
        return images

    one = kept_encoder(cohort, ["patient001"], 32, 2.0, give, SHORT)
    assert "training an encoder on 1 patients of acdc" in capsys.readouterr().err
    again = kept_encoder(cohort, ["patient001"], 32, 2.0, give, SHORT)
    assert len(asked) == 1
    assert capsys.readouterr().err == ""
    assert torch.equal(encode(one, images), encode(again, images))
    # Other patients are another encoder.
    kept_encoder(cohort, ["patient002"], 32, 2.0, give, SHORT)
    assert len(asked) == 2


def test_without_a_place_to_keep_it_an_encoder_is_trained(images, cohort, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SEGGYM_HOME", str(tmp_path / "file"))
    found = kept_encoder(cohort, ["patient001"], 32, 2.0, lambda: images, SHORT)
    assert torch.equal(encode(found, images), encode(train_encoder(images, SHORT), images))


def test_the_packaged_encoder_knows_none_of_the_default_phantoms():
    card = open_reward_model(str(PACKAGED["phantom-encoder"])).cards["full"]
    assert card.patients[0] == "patient9001"
    assert len(card.patients) == 40
    assert encoder_store.open_encoder("phantom-encoder", _phantoms(), ["patient001"]).num_features == 32


def _phantoms():
    return Cohort("phantom", PACKAGED["phantom-encoder"], ("background", "heart"), {}, lambda _: [])
