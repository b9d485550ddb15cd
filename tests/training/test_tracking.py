"""What trackers get of a run, and that a run does not depend on them."""

import json
import os
import sqlite3
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from outgrow.run import distill
from outgrow.training import tracking
from outgrow.training.config import build_config, merge
from tests.run.test_distill import SMALL, interrupted_after

QUICK = merge(
    SMALL,
    {
        "data": {"train_rows": 64},
        "method": {"preset": "paper"},
        "teacher": {"rows": "same"},
        "teacher_train": {"epochs": 1},
    },
)
TRACKED = merge(QUICK, {"track": ["tensorboard"]})
POINTS = ("loss", "lr", "images_per_second", "teacher_wrong_rate", "test_top1", "terms/task", "terms/kd")


def run(layer, out, **options):
    return distill(merge(layer, {"out": str(out)}), **options)


def curves(out):
    """Steps and values in TensorBoard's files, by tag, as they were written: nothing is purged or sampled."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    found = {}
    for file in sorted(Path(out, "tensorboard").iterdir(), key=lambda path: path.stat().st_mtime):
        for event in EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                if value.tensor.float_val:  # the configuration has none
                    found.setdefault(value.tag, []).append((event.step, value.tensor.float_val[0]))
    return found


def expected(record):
    """The same from the record of a run."""
    found = {}
    for epoch in record["epochs"]:
        values = {
            "loss": epoch["loss"],
            "lr": epoch["lr"],
            "images_per_second": epoch["images_per_second"],
            "teacher_wrong_rate": epoch["wrong_rate"],
            "test_top1": epoch["score"],
            **{f"terms/{name}": value for name, value in epoch["terms"].items()},
        }
        for name, value in values.items():
            found.setdefault(f"student/{name}", []).append((epoch["epoch"], pytest.approx(value, rel=1e-6)))
    return found


def without_times(record):
    """A record without what differs between two equal runs."""
    kept = {key: value for key, value in record.items() if key not in ("seconds", "started", "commit")}
    kept["classification"] = {k: v for k, v in record["classification"].items() if k != "cost"}
    kept["config"] = {k: v for k, v in record["config"].items() if k not in ("out", "track")}
    timed = ("seconds", "images_per_second")
    kept["epochs"] = [{k: v for k, v in one.items() if k not in timed} for one in record["epochs"]]
    return kept


@pytest.fixture(scope="module")
def tensorboard(tmp_path_factory):
    """A run with TensorBoard: its folder and its record."""
    pytest.importorskip("tensorboard")
    out = tmp_path_factory.mktemp("tracked") / "run"
    return out, run(TRACKED, out)


def test_tensorboard_has_the_numbers_of_the_record(tensorboard):
    out, record = tensorboard
    found = curves(out)
    assert {name: found[f"student/{name}"] for name in POINTS} == {
        name: expected(record)[f"student/{name}"] for name in POINTS
    }
    assert [step for step, _ in found["student/loss"]] == [1, 2, 3]
    assert [step for step, _ in found["teacher/loss"]] == [1]
    assert found["result/student"] == [(3, pytest.approx(record["student"]["top1"]))]
    assert found["result/teacher"] == [(3, pytest.approx(record["teacher"]["top1"]))]


def test_without_a_teacher_there_is_no_rate_of_it(tmp_path):
    pytest.importorskip("tensorboard")
    run(merge(TRACKED, {"method": {"preset": "none"}, "train": {"epochs": 1}}), tmp_path / "run")
    found = curves(tmp_path / "run")
    assert "student/loss" in found
    assert not [name for name in found if "wrong" in name]


def test_tensorboard_has_the_configuration(tensorboard):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    read = EventAccumulator(str(tensorboard[0] / "tensorboard"))
    read.Reload()
    content = read.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    fields = HParamsPluginData.FromString(content).session_start_info.hparams
    assert fields["train.lr"].number_value == build_config(QUICK).train.lr
    assert fields["student.name"].string_value == "cifar/resnet8"
    assert fields["train.milestones"].string_value == "[0.625, 0.75, 0.875]"


def test_a_tracker_changes_no_number(tensorboard, tmp_path):
    plain = run(QUICK, tmp_path / "run")
    assert without_times(plain) == without_times(tensorboard[1])


@pytest.mark.parametrize("number", [2, 3])
def test_a_resumed_run_continues_its_curves(tmp_path, tensorboard, number, monkeypatch):
    """Interrupted after the checkpoint of an epoch and before its numbers were logged."""
    out = tmp_path / "run"
    with interrupted_after(monkeypatch, number):
        run(TRACKED, out)
    assert len(curves(out).get("student/loss", [])) == number - 2
    record = run(TRACKED, out, resume=True)
    assert {name: found for name, found in curves(out).items() if name.startswith("student/")} == expected(
        record
    )
    assert without_times(record) == without_times(tensorboard[1])
    again = curves(out)
    run(TRACKED, out, resume=True)  # it is finished: nothing is added
    assert curves(out) == again


def test_a_tracker_that_is_added_later_gets_the_epochs_before(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    with interrupted_after(monkeypatch, 3):
        run(QUICK, tmp_path)
    record = run(TRACKED, tmp_path, resume=True)
    assert curves(tmp_path)["student/loss"] == expected(record)["student/loss"]


def test_a_replaced_run_leaves_no_curves(tmp_path):
    pytest.importorskip("tensorboard")
    for epochs in (2, 1):
        run(merge(TRACKED, {"train": {"epochs": epochs}}), tmp_path, overwrite=True)
    assert [step for step, _ in curves(tmp_path)["student/loss"]] == [1]


def test_a_tracker_that_fails_does_not_end_the_run(tmp_path, tensorboard, monkeypatch):
    log = tracking.tracking.TensorBoardTracker.log

    def broken(self, values, step=None, **options):
        if step == 2:
            raise OSError("no space left on device")
        log(self, values, step=step)

    with monkeypatch.context() as patch:
        patch.setattr(tracking.tracking.TensorBoardTracker, "log", broken)
        with pytest.warns(UserWarning, match="--track tensorboard: needs .*, got OSError: no space") as seen:
            record = run(TRACKED, tmp_path)
    assert len(seen) == 1
    assert without_times(record) == without_times(tensorboard[1])
    assert [step for step, _ in curves(tmp_path)["student/loss"]] == [1]
    record = run(TRACKED, tmp_path, resume=True)
    assert curves(tmp_path)["student/loss"] == expected(record)["student/loss"]


def test_a_damaged_state_begins_new_curves(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    with interrupted_after(monkeypatch, 3):
        run(TRACKED, tmp_path)
    (tmp_path / "track.json").write_text("{")
    with pytest.warns(UserWarning, match="new curves"):
        run(TRACKED, tmp_path, resume=True)


# --- what is refused before anything is trained


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio", "mlflow"])
def test_a_package_that_is_absent_is_named(name, tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "find_spec", lambda package: None)
    with pytest.raises(
        ValueError, match=rf"--track {name}: needs the package {name}, got none.*; pip install"
    ):
        run(merge(QUICK, {"track": name}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_of_that_name_is_no_package(tmp_path, monkeypatch):
    """Trackers write such folders into the working directory."""
    (tmp_path / "emptytracker").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find_spec("emptytracker") is not None
    with pytest.raises(ValueError, match="needs the package emptytracker, got none"):
        tracking.check_trackers(["emptytracker"])


def test_an_unknown_tracker_is_refused():
    with pytest.raises(
        ValueError, match=r"track.0: input should be 'tensorboard', 'wandb'.*, got 'tensorbord'"
    ):
        build_config({"track": ["tensorbord"]})


def test_tensorboard_needs_a_folder():
    pytest.importorskip("tensorboard")
    with pytest.raises(ValueError, match="--track tensorboard: needs the folder of a run"):
        distill(TRACKED)


def test_a_tracker_that_does_not_start_is_an_error(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")

    def broken(self):
        raise RuntimeError("no server\nand more lines")

    monkeypatch.setattr(tracking.tracking.TensorBoardTracker, "start", broken)
    with pytest.raises(
        ValueError, match="needs a tracker that starts, got RuntimeError: no server; see"
    ) as error:
        run(TRACKED, tmp_path)
    assert "more lines" not in str(error.value)


# --- the others, as far as they go without a network


def in_a_process(layer, out, **environment):
    """A tracker starts threads and servers, which end with their process."""
    code = "import json, sys\nfrom outgrow.run import distill\ndistill(json.loads(sys.argv[1]), resume=sys.argv[2] == 'resume')"
    folder = Path(out).parent
    for how, epochs in (("new", 2), ("resume", 3)):
        given = merge(layer, {"out": str(out), "train": {"epochs": epochs}})
        done = subprocess.run(
            [sys.executable, "-c", code, json.dumps(given), how],
            capture_output=True,
            text=True,
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )
        assert done.returncode == 0, done.stderr
        assert "the run goes on without it" not in done.stderr
    return json.loads((Path(out) / "record.json").read_text())


def test_mlflow_in_local_files(tmp_path):
    mlflow = pytest.importorskip("mlflow")
    place = {"MLFLOW_TRACKING_URI": (tmp_path / "store").as_uri(), "MLFLOW_ALLOW_FILE_STORE": "true"}
    record = in_a_process(merge(QUICK, {"track": "mlflow"}), tmp_path / "run", **place)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        client = mlflow.tracking.MlflowClient(place["MLFLOW_TRACKING_URI"])
        (only,) = client.search_runs([client.get_experiment_by_name("outgrow").experiment_id])
        assert only.data.params["student.name"] == "cifar/resnet8"
        for name, points in expected(record).items():
            found = [(point.step, point.value) for point in client.get_metric_history(only.info.run_id, name)]
            assert found == points
        assert only.data.metrics["result/student"] == record["student"]["top1"]


def test_trackio_in_a_local_folder(tmp_path):
    pytest.importorskip("trackio")
    record = in_a_process(
        merge(QUICK, {"track": "trackio"}), tmp_path / "run", TRACKIO_DIR=str(tmp_path / "store")
    )
    database = sqlite3.connect(tmp_path / "store" / "outgrow.db")
    found = {}
    for name, step, metrics in database.execute("select run_name, step, metrics from metrics order by id"):
        assert name.endswith("/run")
        for metric, value in json.loads(metrics).items():
            found.setdefault(metric, []).append((step, value))
    database.close()
    assert expected(record).items() <= {name: found[name] for name in expected(record)}.items()
    assert [step for step, _ in found["result/student"]] == [2, 3]


def test_wandb_offline(tmp_path):
    pytest.importorskip("wandb")
    in_a_process(merge(QUICK, {"track": "wandb"}), tmp_path / "run", WANDB_MODE="offline")
    key = json.loads((tmp_path / "run" / "track.json").read_text())["wandb"]["key"]
    runs = [path.name for path in (tmp_path / "wandb").iterdir() if path.name.startswith("offline-run-")]
    assert len(runs) == 2
    assert all(name.endswith(key) for name in runs)  # one run: `wandb sync` joins the two parts
