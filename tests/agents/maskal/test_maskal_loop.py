"""The loop on generated images: files, resume after a kill at any moment, people in the loop, the command."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seggym.agents.maskal import bench as bench_module
from seggym.agents.maskal.curves import load_curves
from seggym.agents.maskal.loop import run
from seggym.agents.maskal.report import write_report
from seggym.agents.maskal.settings import MaskalSettings, check
from seggym.agents.maskal.workflow import AnnotationsPending
from seggym.agents.run_maskal import main
from seggym.cohorts.annotations.reading import open_image_folder
from seggym.cohorts.instance_phantoms import CLASSES, write_instances
from seggym.errors import SeggymError

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 images to choose among, 4 for validation and 4 for the test."""
    root = tmp_path_factory.mktemp("images")
    for part, first, count in (("train", 0, 16), ("val", 10_000, 4), ("test", 20_000, 4)):
        write_instances(root / part, count, first=first)
    return root


def values(images: Path, out: Path, **changes: Any) -> dict[str, Any]:
    given = {
        "classes": list(CLASSES),
        **{f"{part}dir": str(images / part) for part in ("train", "val", "test")},
        **{f"{part}root": str(out / part) for part in ("data", "weights", "results")},
        "experiment_name": "small",
        "annotator": "simulated",
        "initial_datasize": 4,
        "pool_size": 3,
        "loops": 2,
        "mcd_iterations": 2,
        "train_iterations_base": 4,
        "train_iterations_step_size": 0,
        "warmup_iterations": 1,
        "eval_period": 2,
        "checkpoint_period": 2,
        "train_batch_size": 2,
        "learning_rate": 0.02,
        "confidence_threshold": 0.02,
        "backend_options": {"width": 8, "proposals": 8},
    }
    return {**given, **changes}


def settings(images: Path, out: Path, **changes: Any) -> MaskalSettings:
    return check(values(images, out, **changes))[0]


def silent(_: str) -> None:
    pass


def contents(*roots: Path) -> dict[str, bytes]:
    """All files below ``roots`` but locks, by relative name."""
    return {
        f"{root.name}/{path.relative_to(root)}": path.read_bytes()
        for root in roots
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


@pytest.fixture(scope="module")
def straight(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two strategies, not interrupted."""
    out = tmp_path_factory.mktemp("straight")
    run(settings(images, out, strategies=["uncertainty", "random"]), silent)
    return out


def test_files(straight: Path, images: Path) -> None:
    names = {"uncertainty_mean_0.25_2_3", "random_3"}
    assert {path.name for path in (straight / "results" / "small").iterdir() if path.is_dir()} == names
    first = {}
    for name in names:
        folder = straight / "results" / "small" / name / "seed0"
        header, *rows = (folder / f"{name}.csv").read_text().splitlines()
        assert header.startswith("train_size,mAP,mAP-cell,mAP-dividing,")
        assert [row.split(",")[0] for row in rows] == ["4", "7", "10"]
        lists = [(folder / f"trainfiles_iteration{number:03d}.txt").read_text().splitlines() for number in range(3)]
        assert [len(lines) for lines in lists] == [4, 7, 10]
        selected = [[line.split(", ")[0] for line in lines] for lines in lists]
        assert selected[2][:7] == selected[1]
        assert len(set(selected[2])) == 10
        assert (straight / "weights" / "small" / name / "seed0" / "best_model_002.safetensors").is_file()
        assert not list((straight / "weights").rglob("checkpoint.pt"))
        first[name] = selected[0]
        # What the annotations cost is what they hold.
        folder_of = open_image_folder(images / "train")
        wanted = [folder_of.annotation(image) for image in selected[2]]
        scores = json.loads((folder / "scores_002.json").read_text())
        assert scores["instances"] == sum(len(one.instances) for one in wanted if one is not None)
        assert scores["vertices"] == sum(one.vertices for one in wanted if one is not None)
    assert len({tuple(names) for names in first.values()}) == 1, "all strategies of a seed begin with the same images"
    models = [
        (straight / "weights" / "small" / name / "seed0" / "best_model_000.safetensors").read_bytes() for name in names
    ]
    assert models[0] == models[1]
    assert (straight / "data" / "initial_train.txt").read_text().splitlines() == first["random_3"]


def test_selected_are_the_least_certain(straight: Path) -> None:
    folder = straight / "results" / "small" / "uncertainty_mean_0.25_2_3" / "seed0"
    for number in (1, 2):
        query = json.loads((folder / f"query_{number:03d}.json").read_text())
        rows = (folder / f"certainty_iteration{number:03d}.csv").read_text().splitlines()[1:]
        known = {name: float(value) for name, value in (row.split(",") for row in rows)}
        assert query["pool"] == len(known) == 16 - 4 - 3 * (number - 1)
        least = sorted((value, name) for name, value in known.items() if not np.isnan(value))[:3]
        assert set(query["selected"]) == {name for _, name in least}
        lines = (folder / f"trainfiles_iteration{number:03d}.txt").read_text().splitlines()
        told = dict(line.split(", ") for line in lines)
        assert {name: float(told[name]) for name in query["selected"]} == {
            name: known[name] for name in query["selected"]
        }


class Killed(BaseException):
    """What nothing catches."""


@pytest.fixture
def kill_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Ends the program at the ``n``-th file that it replaces."""
    replace, count, limit = os.replace, [0], [10**9]

    def counted(*arguments: Any, **options: Any) -> None:
        count[0] += 1
        if count[0] >= limit[0]:
            raise Killed
        replace(*arguments, **options)

    def kill(number: int) -> None:
        count[0], limit[0] = 0, number

    monkeypatch.setattr("seggym.files.os.replace", counted)
    yield kill
    limit[0] = 10**9


def test_a_kill_at_any_moment_changes_nothing(straight: Path, images: Path, tmp_path: Path, kill_at: Any) -> None:
    """Killed again and again, after a few more files each time, until it is done."""
    wanted = contents(straight / "results", straight / "weights")
    given = settings(images, tmp_path, strategies=["uncertainty", "random"])
    for attempt in range(60):
        kill_at(3 + attempt % 4)
        try:
            run(given, silent)
            break
        except Killed:
            continue
    assert attempt > 5
    found = contents(tmp_path / "results", tmp_path / "weights")
    assert sorted(found) == sorted(wanted)
    assert [name for name in wanted if found[name] != wanted[name]] == []
    # Nothing is done again.
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "weights").rglob("*")}
    run(given, silent)
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "weights").rglob("*")}


def test_lost_weights_are_trained_again(straight: Path, images: Path, tmp_path: Path) -> None:
    for part in ("results", "weights"):
        shutil.copytree(straight / part, tmp_path / part)
    record = tmp_path / "results" / "small" / "random_3" / "seed0"
    weights = tmp_path / "weights" / "small" / "random_3" / "seed0"
    (record / "scores_002.json").unlink()
    for path in weights.iterdir():
        path.unlink()
    run(settings(images, tmp_path, strategies=["uncertainty", "random"]), silent)
    assert contents(tmp_path / "results", tmp_path / "weights") == contents(straight / "results", straight / "weights")


def test_another_setting_in_the_same_folder_is_refused(straight: Path, images: Path, tmp_path: Path) -> None:
    shutil.copytree(straight / "results", tmp_path / "results")
    with pytest.raises(SeggymError, match=r"holds a run with another .*learning_rate.*choose another experiment_name"):
        run(settings(images, tmp_path, learning_rate=0.5, strategies=["uncertainty", "random"]), silent)
    (tmp_path / "results" / "small" / "random_3" / "seed0" / "query_001.json").write_text("{}")
    with pytest.raises(SeggymError, match=r"query_001.json is damaged .*delete it"):
        run(settings(images, tmp_path, strategies=["uncertainty", "random"]), silent)


def test_people_annotate_and_the_same_command_goes_on(images: Path, straight: Path, tmp_path: Path) -> None:
    """Nothing is annotated at first; somebody annotates what is asked, and it ends as the simulated run."""
    mine = tmp_path / "images"
    for part in ("train", "val", "test"):
        (mine / part).mkdir(parents=True)
        for path in (images / part).glob("*.png"):
            shutil.copy(path, mine / part)
    given = settings(mine, tmp_path, annotator="folder", wait=False)
    asked: list[set[str]] = []
    for attempt in range(8):
        try:
            run(given, silent)
            break
        except AnnotationsPending:
            folders = [
                mine / part / "annotate" for part in ("train", "val", "test") if (mine / part / "annotate").is_dir()
            ]
            asked.append({path.name for folder in folders for path in folder.glob("*.png")})
            for folder in folders:
                predictions = sorted(folder.glob("image_*.json"))
                # The first network predicts for the first query; before it there is nothing to predict with.
                assert bool(predictions) == (attempt > 0)
                for path in folder.glob("*.png"):
                    source = images / folder.parent.name / f"{path.stem}.json"
                    (folder / source.name).write_bytes(source.read_bytes())
    assert [len(names) for names in asked] == [4 + 4 + 4, 3, 3]
    assert not (mine / "train" / "annotate").exists()
    for file in ("scores_002.json", "query_002.json", "trainfiles_iteration002.txt"):
        found = [
            (out / "results" / "small" / "uncertainty_mean_0.25_2_3" / "seed0" / file).read_text()
            for out in (tmp_path, straight)
        ]
        assert found[0] == found[1]


def test_the_command_ends_in_good_order_where_people_are_needed(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It returns (exit code 0), says once what to do, and all folders are ready."""
    mine = tmp_path / "images"
    for part in ("train", "val", "test"):
        (mine / part).mkdir(parents=True)
        for path in (images / part).glob("*.png"):
            shutil.copy(path, mine / part)
    path = tmp_path / "maskAL.yaml"
    path.write_text(json.dumps(values(mine, tmp_path, annotator="folder", wait=False)))
    main(["--config", str(path)])
    said = capsys.readouterr().out
    commands = ", ".join(f"`seggym annotate {mine / part / 'annotate'}`" for part in ("train", "val", "test"))
    assert said.startswith("Annotations are needed: 4 of 4 images in ")
    assert said.endswith(f"; {commands} or another program can do that, then run the same command again\n")
    assert said.count("the same command") == 1
    assert [len(list((mine / part / "annotate").glob("*.png"))) for part in ("train", "val", "test")] == [4, 4, 4]


def test_a_pool_that_runs_out_ends_the_loop(images: Path, tmp_path: Path) -> None:
    said: list[str] = []
    run(settings(images, tmp_path, strategies="random", pool_size=8, loops=4, initial_datasize=2), said.append)
    assert "no image is left to choose in round 3" in said[-1]
    rows = (tmp_path / "results" / "small" / "random_8" / "seed0" / "random_8.csv").read_text().splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == ["2", "10", "16"]


def test_begin_with_named_images_and_train_on_all(images: Path, tmp_path: Path) -> None:
    listing = tmp_path / "first.txt"
    listing.write_text("image_00003.png\nimage_00001.png\n\n")
    given = settings(
        images, tmp_path, strategies="random", loops=1, initial_train_file=str(listing), train_complete_trainset=True
    )
    run(given, silent)
    results = tmp_path / "results" / "small"
    query = json.loads((results / "random_3" / "seed0" / "query_000.json").read_text())
    assert query["selected"] == ["image_00003.png", "image_00001.png"]
    complete = json.loads((results / "complete" / "seed0" / "scores_000.json").read_text())
    assert complete["train_size"] == 16
    write_report(results)
    listing.write_text("image_99.png\n")
    with pytest.raises(SeggymError, match=r"names image_99.png, expected file names of images in traindir"):
        run(given, silent)


def test_wrong_folders_are_said(images: Path, tmp_path: Path) -> None:
    with pytest.raises(SeggymError, match=r"is an image of traindir and of valdir"):
        run(settings(images, tmp_path, valdir=str(images / "train")), silent)
    with pytest.raises(SeggymError, match=r"initial_datasize=40 is more than the 16 images"):
        run(settings(images, tmp_path, initial_datasize=40), silent)
    with pytest.raises(SeggymError, match=r"strategies='greedy' does not apply"):
        run(settings(images, tmp_path, strategies="greedy"), silent)
    with pytest.raises(SeggymError, match=r"backend_options.widht is unknown"):
        run(settings(images, tmp_path / "no", valdir="nowhere", backend_options={"widht": 8}), silent)
    with pytest.raises(SeggymError, match=r"add the class to `classes`"):
        run(settings(images, tmp_path, classes=["cell"]), silent)


def test_scores_are_of_the_test_images_and_best_of_validation(images: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """The kept network is the one that validated best, also across rounds."""
    seen: list[str] = []
    evaluate = bench_module.evaluate

    def watched(bench: Any, segmenter: Any, part: str) -> Any:
        seen.append(part)
        return evaluate(bench, segmenter, part)

    monkeypatch.setattr(bench_module, "evaluate", watched)
    run(settings(images, tmp_path, strategies="random"), silent)
    # Four iterations, validated after every two, in each of three rounds.
    assert seen == ["val"] * 6
    folder = tmp_path / "results" / "small" / "random_3" / "seed0"
    kept = [json.loads((folder / f"scores_{number:03d}.json").read_text())["val_map"] for number in range(3)]
    assert kept == sorted(kept)


def test_report(straight: Path) -> None:
    root = straight / "results" / "small"
    page = write_report(root).read_text()
    assert "What random's last mAP costs" in page
    assert {path.name for path in (root / "figures").iterdir()} >= {
        "mAP_by_images.png",
        "mAP_by_instances.png",
        "mAP_by_vertices.png",
        "AP_of_cell.png",
    }
    content = json.loads((root / "results.json").read_text())
    assert [one["effort"] for one in content["effort_for_the_last_map_of_random"]] == [
        "images",
        "instances",
        "vertices",
    ]
    curves = load_curves(root)
    assert {curve.name for curve in curves} == {"uncertainty_mean_0.25_2_3", "random_3"}


def test_the_command(images: Path, tmp_path: Path) -> None:
    """A wrong file is one sentence and exit code 2; a right one ends with a report."""
    path = tmp_path / "maskAL.yaml"
    path.write_text(json.dumps(values(images, tmp_path, loops=1, strategy_=1)))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "agents" / "run_maskal.py"), "--config", str(path)]
    failed = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert failed.returncode == 2
    assert "strategy_ is unknown; did you mean" in failed.stderr
    assert "Traceback" not in failed.stderr
    path.write_text(json.dumps(values(images, tmp_path, loops=1, resume=True)))
    done = subprocess.run([*command, "strategies=random"], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "note: resume=True has no effect" in done.stdout
    assert (tmp_path / "results" / "small" / "report.html").is_file()
