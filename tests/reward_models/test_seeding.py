import torch

from seggym.reward_models.seeding import seeded


def test_draws_follow_from_the_seed_and_leave_no_trace() -> None:
    torch.manual_seed(3)
    wanted = torch.rand(4)
    torch.manual_seed(3)
    with seeded(7):
        first = torch.rand(2)
    assert torch.equal(torch.rand(4), wanted)
    with seeded(7, torch.device("cpu")):
        assert torch.equal(torch.rand(2), first)
    with seeded(8):
        assert not torch.equal(torch.rand(2), first)
