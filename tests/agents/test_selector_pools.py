"""Evaluations of a selector in several pools as one table."""

import numpy as np
import pytest

from benchmarks import selector_pools
from seggym.agents.selection_results import SelectionResult

SAMPLES = np.array([5, 6, 8])


def result(strategy, dice, privileged=False, number=0):
    """``dice`` (S, V) is reached at the second round and kept; two volumes of each patient."""
    seeds, volumes = np.shape(dice)
    curve = np.stack([np.zeros((seeds, volumes)), dice, dice], 1)
    numbers = {name: np.zeros((seeds, 3)) for name in ("pixels", "foreground", "cost")}
    return SelectionResult(
        strategy=strategy,
        options={"number": number},
        privileged=privileged,
        seeds=tuple(range(seeds)),
        samples=SAMPLES,
        pool=20,
        cost_unit="minutes",
        volumes=tuple(f"patient{v // 2}_frame{v % 2}" for v in range(volumes)),
        patients=tuple(f"patient{v // 2}" for v in range(volumes)),
        dice=curve,
        full=np.full(volumes, np.nan),
        selected=((("a",), ("b",), ("c", "d")),) * seeds,
        key={},
        **numbers,
    )


def save(folder, results):
    for number, entry in enumerate(results):
        entry.save(folder / "policies" / f"{entry.strategy}_{number}")
    return str(folder)


def test_means_differences_and_pools_by_hand(tmp_path, capsys):
    """A trapezoid to the second round and a rectangle after it: 2.5 of 3 samples."""
    pools = [
        save(
            tmp_path / str(pool),
            [
                result("selector_ppo", np.full((4, 4), 0.6 + pool / 10), number=0),
                result("selector_ppo", np.full((4, 4), 0.8 + pool / 10), number=1),
                result("random", np.full((4, 4), 0.4)),
                result("kcenter", np.full((4, 4), 0.9 - 0.28 * pool)),
                result("greedy", np.full((4, 4), 1.0), privileged=True),
            ],
        )
        for pool in range(2)
    ]
    selector_pools.main(*pools)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0] for row in rows] == ["**selector**", "kcenter", "random", "greedy *"]
    area = 2.5 / 3
    assert rows[0][1].startswith(f"{0.75 * area:.4f} ")
    kcenter, random, greedy = rows[1:]
    assert kcenter[2].startswith(f"{(0.75 - 0.76) * area:+.4f} ")
    assert kcenter[4] == f"{(0.7 - 0.9) * area:+.4f} {(0.8 - 0.62) * area:+.4f}"
    assert random[2].startswith(f"{(0.75 - 0.4) * area:+.4f} ")
    # Of 2^8 patterns of signs two are as far from zero; Holm doubles it.
    assert float(random[3]) == pytest.approx(2 * 2 / 2**8, rel=0.05)
    assert float(kcenter[3]) > 0.5
    assert greedy[3] == ""


def test_one_folder_or_none_of_a_selector_is_a_sentence(tmp_path, capsys):
    for folders, said in (
        (["here"], "at least two folders"),
        ([save(tmp_path, [result("random", np.ones((2, 2)))])] * 2, "no evaluation of a selector"),
    ):
        with pytest.raises(SystemExit):
            selector_pools.main(*folders)
        assert said in capsys.readouterr().err
