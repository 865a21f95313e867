"""The files that an evaluation leaves."""

import csv
import html.parser
import json

import numpy as np
import pytest
from synthetic_bench import SCAN, make_bench

from seggym.agents.baselines import make_baselines
from seggym.agents.evaluation import evaluate_policies
from seggym.agents.figures import view_shares
from seggym.agents.policies import CallablePolicy
from seggym.agents.report import write_report


class Page(html.parser.HTMLParser):
    """Sources of images and texts of cells."""

    def __init__(self):
        super().__init__()
        self.images, self.links = [], []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.images += [values["src"]] if tag == "img" else []
        self.links += [value for key, value in attrs if key in ("src", "href") and not value.startswith("data:")]


@pytest.mark.parametrize("segment", [True, False])
def test_report(tmp_path, segment):
    bench = make_bench(segment=segment)
    ground = bench.ground(2, cache=tmp_path / "tuned", progress=False, max_slices=2, window=2)
    mine = CallablePolicy(lambda observation, mask: mask.argmax(1), name="<b>mine</b>/1")
    policies = [mine, *make_baselines(["centre_out", "one_step_greedy"], ground)]
    result = evaluate_policies(bench, policies, [1, 2], progress=False, surface_budgets=[2])
    write_report(result, tmp_path / "run")
    content = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert [policy["name"] for policy in content["policies"]] == [p.name for p in result.policies]
    with open(tmp_path / "run" / "evaluation.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(content["results"]) > 20
    text = (tmp_path / "run" / "report.html").read_text()
    page = Page()
    page.feed(text)
    pictures = sorted((tmp_path / "run" / "figures").glob("*.png"))
    assert len(page.images) == len(pictures) >= 4
    assert page.links == []
    assert "<b>mine" not in text
    assert "simulated" in text
    assert "synthetic" in text
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in pictures)


@pytest.mark.parametrize(
    ("trajectory", "noun", "initial"),
    [
        ({"trajectory": "radial", "spokes": 17, "angles": "golden"}, "spokes", 3),
        ({"trajectory": "points", "block": 4}, "points", 4),
    ],
)
def test_a_report_of_other_trajectories(tmp_path, trajectory, noun, initial):
    """Blocks outnumber the lines of the matrix, spokes do not reach them; the last ones are chosen here."""
    bench = make_bench(acquisition={**SCAN, **trajectory})
    views = bench.settings.scan.num_views
    last = CallablePolicy(lambda observation, mask: views - 1 - mask[:, ::-1].argmax(1), name="last")
    result = evaluate_policies(bench, [last], [1, 2], progress=False, surface_budgets=[])
    policy = next(policy for policy in result.policies if policy.name == "last")
    np.testing.assert_allclose(view_shares(policy, views), np.eye(views)[[views - 1, views - 2]])
    write_report(result, tmp_path)
    assert (tmp_path / "figures" / f"{noun}_last.png").is_file()
    assert f"1 to 2 {noun} after the initial {initial};" in (tmp_path / "report.html").read_text()
    assert f"{noun} to 95 %, net B" in result.table()
