"""How images pass through the engine: in pieces that change nothing, and without asking a device for a number."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

OBSERVATION = ["image", "image_float", "kspace", "energy", "probabilities", "probability_grid", "features", "budget"]


def states(engine):
    return {**engine.state_dict(), **{f"seen {name}": part for name, part in engine.observe().items()}}


@pytest.mark.parametrize("coils", [1, 3])
@pytest.mark.parametrize("settings", [{}, {"lambda_recon": 0.5}, {"reward": "terminal", "observation": ["image"]}])
def test_the_size_of_the_pieces_changes_nothing(make_engine, play, settings, coils):
    settings = {"acquisition": {"matrix": 48, "crop": 32, "coils": coils}, "observation": OBSERVATION, **settings}
    expected = None
    for size in (1, 2, 5, 64):
        engine = make_engine(5, micro_batch=size, **settings)
        actions = play(engine, [1, 2, 3, 4, 5], 6)
        found = states(engine)
        if expected is None:
            expected = found, actions
        assert all(torch.equal(one, two) for one, two in zip(actions, expected[1], strict=True))
        for name, value in found.items():
            assert torch.equal(value.nan_to_num(), expected[0][name].nan_to_num()), name


def test_coils_see_the_same_object(make_engine, play):
    """Without noise the combined image of all lines does not depend on the number of coils."""
    images = []
    for coils in (1, 4):
        scan = {"matrix": 48, "crop": 32, "coils": coils, "snr": None}
        engine = make_engine(2, acquisition=scan, budget=45)
        play(engine, [3, 4], 45)
        assert engine.acquired.all()
        images.append(engine.magnitude)
    # The sensitivities reach a little beyond the band that is kept.
    torch.testing.assert_close(images[1], images[0], atol=0.02 * float(images[0].max()), rtol=0)


class Recorder(TorchDispatchMode):
    """The names of the operations that run."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        self.names.add(str(function))
        return function(*arguments, **(named or {}))


WAITING = (
    "aten._local_scalar_dense.default",
    "aten.nonzero.default",
    "aten.masked_select.default",
    "aten.item.default",
)


@pytest.mark.parametrize("settings", [{}, {"lambda_recon": 0.5}, {"illegal_action": "penalty", "stop_action": True}])
def test_a_step_asks_the_device_for_no_number(make_engine, play, settings):
    """Reading a number from a GPU makes the processor wait for all that it was given to do."""
    engine = make_engine(4, observation=OBSERVATION, **settings)
    engine.networks = [engine.networks[0]] * 2
    engine.routing = torch.arange(len(engine.stack)) % 2
    play(engine, [1, 2, 3, 4], 0)
    with Recorder() as recorder:
        engine.step(torch.tensor([3, 9, 30, 40]))
        engine.observe()
    assert "aten.addcmul_.default" in recorder.names
    assert not recorder.names.intersection(WAITING)


def test_the_recorder_can_find_something(make_engine, play):
    engine = make_engine(2)
    play(engine, [1, 2], 1)
    with Recorder() as recorder:
        engine.step(torch.tensor([3, 9]), torch.tensor([True, False]))
    assert "aten.nonzero.default" in recorder.names
