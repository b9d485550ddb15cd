"""A search for weight and temperature: on held-out images alone, continued after an interruption, in the record."""

import io
import itertools
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from outgrow.machine.files import unsealed
from outgrow.run import distill
from outgrow.run import tune as room
from outgrow.run.audit import audit_teacher
from outgrow.run.tune import choices_of, tune, tuned
from outgrow.run.work import train_teacher
from outgrow.training import folder
from outgrow.training.config import build_config, load_config, merge
from outgrow.training.guard import NonFiniteLoss, NonFiniteScores
from outgrow.training.progress import JsonReporter, TextReporter
from outgrow.training.record import read_record
from outgrow.training.trainer import Trainer
from tests.run.test_distill import SMALL, teacher_file  # noqa: F401

SEARCH = {"train": {"epochs": 3}, "method": {"preset": "kd"}}


def config(teacher_file, *layers):  # noqa: F811
    teacher = {"teacher": {"train": False, "rows": "same", "weights": str(teacher_file)}}
    return build_config(merge(SMALL, SEARCH, teacher, *layers))


def contents(folder):
    return unsealed((folder / "tune.json").read_text(), where="tune.json")


def test_a_search_that_another_process_makes_is_left_to_it(teacher_file, tmp_path, monkeypatch):  # noqa: F811
    """Its trials would be deleted (--overwrite), or two searches would write one file."""
    (tmp_path / "tune").mkdir()
    (tmp_path / "tune" / room.JOURNAL).write_text("trials")
    monkeypatch.setattr(folder, "_owner", lambda file, out: 1234)
    whole = config(teacher_file, {"out": str(tmp_path)})
    with pytest.raises(ValueError, match="no other process works, got one in which process 1234 does"):
        tune(config(teacher_file), out=tmp_path / "tune", overwrite=True, log=lambda text: None)
    (tmp_path / folder.RUNNING).write_text("the run itself")
    with pytest.raises(ValueError, match="no other process works, got one in which process 1234 does"):
        tuned(whole, overwrite=True)
    assert (tmp_path / "tune" / room.JOURNAL).read_text() == "trials"


def test_json_is_one_object_per_line(teacher_file, tmp_path, capsys):  # noqa: F811
    """Of `outgrow tune`, and of a run that chooses its weight first."""
    stream = io.StringIO()
    tune(config(teacher_file), out=tmp_path, trials=1, reporter=JsonReporter(stream))
    assert capsys.readouterr().out == ""
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    said = [event["text"] for event in events if event["event"] == "note"]
    assert any(text.startswith("trial 1 of 1: weight 1, temperature 4") for text in said)
    assert any(text.startswith("best  ") for text in said)


def test_a_search_ends_with_its_best_values(teacher_file, tmp_path):  # noqa: F811
    said = []
    found = tune(
        config(teacher_file), out=tmp_path, trials=4, over=["weight", "temperature", "lr"], log=said.append
    )
    assert len(found.trials) == 4
    first = found.trials[0]
    assert first.values == {"weight": 1.0, "temperature": 4.0, "lr": 0.05}
    assert first.finished
    scores = {i: one.scores[-1] for i, one in enumerate(found.trials) if one.finished}
    assert found.winner.scores[-1] == max(scores.values())
    assert found.images == pytest.approx(0.2 * 898, abs=6)
    # successive halving: a trial that is among the worse after the first epoch is ended there
    ended = [one for one in found.trials if not one.finished]
    assert ended
    assert all(one.scores[0] < first.scores[0] and len(one.scores) < 3 for one in ended)
    assert len(list((tmp_path / "cache").iterdir())) == 1  # the teacher is computed once for all trials
    written = contents(tmp_path)
    assert written["best"] == found.best
    assert written["trials"] == [one.model_dump(mode="json") for one in found.trials]
    best = build_config(load_config(tmp_path / "best.yaml"))
    assert best.method.weight == found.winner.values["weight"]
    assert best.train.lr == found.winner.values["lr"]
    assert best.data.val_fraction == 0  # as it was given
    assert len([line for line in said if line.startswith("trial ")]) == 4
    again = tune(
        config(teacher_file), out=tmp_path, trials=4, over=["weight", "temperature", "lr"], log=said.append
    )
    assert again.trials == found.trials or [t.scores for t in again.trials] == [
        t.scores for t in found.trials
    ]


def test_an_interrupted_search_continues_as_if_it_was_not(teacher_file, tmp_path, monkeypatch):  # noqa: F811
    whole = tune(config(teacher_file), out=tmp_path / "whole", trials=4, log=lambda text: None)
    fit, calls = Trainer.fit, []

    def stopped(self, **options):
        calls.append(None)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return fit(self, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "fit", stopped)
        with pytest.raises(KeyboardInterrupt):
            tune(config(teacher_file), out=tmp_path / "broken", trials=4, log=lambda text: None)
    assert not (tmp_path / "broken" / "tune.json").exists()
    found = tune(config(teacher_file), out=tmp_path / "broken", trials=4, log=lambda text: None)
    assert [(t.values, t.scores, t.finished) for t in found.trials] == [
        (t.values, t.scores, t.finished) for t in whole.trials
    ]
    assert found.best == whole.best


def test_other_test_images_change_nothing(tmp_path):
    """With a teacher that is trained here and corrected."""
    found = []
    for which in ("one", "other"):
        photos = tmp_path / which / "photos"
        for split, kind in itertools.product(("train", "test"), "ab"):
            (photos / split / kind).mkdir(parents=True)
            for number in range(12):
                seed = number + 100 * (kind == "a") + 1000 * (split == "test") * (which == "other")
                pixels = np.random.default_rng(seed + 300 * (split == "test")).integers(
                    0, 256, (32, 32, 3), np.uint8
                )
                Image.fromarray(pixels).save(photos / split / kind / f"{number}.png")
        layer = {
            "data": {"source": f"folder:{photos}", "train_rows": None, "size": 32, "val_fraction": 0.3},
            "teacher": {"train": True, "rows": "same"},
            "method": {"preset": "outgrow"},
        }
        config = build_config(merge(SMALL, SEARCH, layer))
        found.append(tune(config, out=tmp_path / which / "out", trials=3, log=lambda text: None))
    assert [t.scores for t in found[0].trials] == [t.scores for t in found[1].trials]
    files = [tmp_path / which / "out" / "teachers" for which in ("one", "other")]
    one, other = (load_file(next(file.glob("*/*/teacher.safetensors"))) for file in files)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def biased(teacher_file, tmp_path_factory):  # noqa: F811
    """A teacher with a bias that a correction takes out."""
    weights = load_file(teacher_file)
    (name,) = [
        name
        for name, value in weights.items()
        if value.shape == (10,) and "bias" in name and name.startswith("fc")
    ]
    weights[name] = weights[name] + torch.linspace(0, 4, 10)
    file = tmp_path_factory.mktemp("biased") / "teacher.safetensors"
    with safe_open(teacher_file, "pt") as held:
        save_file(weights, file, held.metadata())
    return file


CORRECTED = {"method": {"preset": "outgrow"}, "train": {"epochs": 1}}


def test_a_search_says_what_it_cannot_know_of_a_teacher_from_a_file(biased, tmp_path):
    """Its memory shows on test images, which no trial looks at."""
    with pytest.warns(
        UserWarning, match=r"tune: needs held-out images that the teacher was not .*always or never"
    ):
        tune(config(biased, CORRECTED), out=tmp_path, trials=1, over=["weight"], log=lambda text: None)


def test_a_search_says_so_of_several_teachers_whose_weights_are_fitted(teacher_file, biased, tmp_path):  # noqa: F811
    others = {"teacher": {"others": [{"name": "cifar/resnet8", "weights": str(biased)}]}}
    asked = config(teacher_file, {"method": {"preset": "kd"}, "train": {"epochs": 1}}, others)
    with pytest.warns(UserWarning, match=r"tune: needs held-out images that the teacher was not"):
        tune(asked, out=tmp_path, trials=1, over=["weight"], log=lambda text: None)


@pytest.mark.parametrize(
    "layer",
    [
        {"teacher": {"correct": "always"}},  # the same in the run with the best values
        {"teacher": {"correct": "never"}},
        {"method": {"preset": "kd"}},  # it is not corrected
        {"teacher": {"train": True, "weights": None}},  # it has not seen the held-out images
    ],
)
def test_a_search_does_not_say_so_where_it_makes_no_difference(biased, tmp_path, layer):
    asked = config(biased, CORRECTED, layer)
    assert tune(asked, out=tmp_path, trials=1, over=["weight"], log=lambda text: None) is not None


def test_a_run_with_weight_auto_has_the_trials_in_its_record(teacher_file, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(room, "print_flushed", lambda text: None)
    out = {"out": str(tmp_path / "run")}
    chosen, trials = tuned(config(teacher_file, out), trials=2)
    distill(chosen, tuning=trials)
    record = read_record(tmp_path / "run" / "record.json")
    assert record.tuning == trials
    assert (
        record.config.method.weight
        == chosen.method.weight
        == contents(tmp_path / "run" / "tune")["config"]["method"]["weight"]
    )
    assert record.config.out == str(tmp_path / "run")


def test_another_search_in_the_folder_is_refused(teacher_file, tmp_path):  # noqa: F811
    tune(config(teacher_file), out=tmp_path, trials=2, over=["weight"], log=lambda text: None)
    other = config(teacher_file, {"train": {"epochs": 2}})
    with pytest.raises(ValueError, match="needs a folder without another search, got one with other options"):
        tune(other, out=tmp_path, trials=2, over=["weight"])
    found = tune(other, out=tmp_path, trials=2, over=["weight"], overwrite=True, log=lambda text: None)
    assert len(found.trials[0].scores) == 2


@pytest.mark.parametrize(
    "layer, over, message",
    [
        ({"method": {"preset": "none"}}, ["weight"], "tune: needs a method with a teacher, got none"),
        (
            {"method": {"weight": 0.0}},
            ["weight"],
            "--over weight: needs a configured weight above zero, got 0.0",
        ),
        (
            {"method": {"weight": -1.0}},
            ["weight"],
            "weight needs a finite number of at least 0, got -1.0",
        ),
        (
            {"method": {"loss": "kd + dkd(temperature=2)", "rule": "swap"}},
            ["temperature"],
            "--over temperature: needs losses of one temperature, got 2.0 and 4.0",
        ),
        ({}, [], "--over: needs one or more of weight, temperature, lr, got none"),
        ({}, ["momentum"], "--over: needs weight, temperature, lr, got 'momentum'"),
        ({"method": {"loss": "rkd"}}, ["temperature"], "needs a loss with a temperature, got rkd"),
        # theirs is 1 / exponent, which no temperature changes
        ({"method": {"loss": "ttm"}}, ["temperature"], "needs a loss with a temperature, got ttm"),
    ],
)
def test_what_cannot_be_chosen_is_refused(teacher_file, layer, over, message):  # noqa: F811
    with pytest.raises(ValueError, match=message):
        choices_of(config(teacher_file, layer), over)


def test_the_range_has_the_configured_value(teacher_file):  # noqa: F811
    (weight,) = choices_of(config(teacher_file, {"method": {"weight": 40.0}}), ["weight"])
    assert (weight.low, weight.high, weight.own) == (0.25, 40.0, 40.0)


def test_without_optuna_nothing_starts(teacher_file, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(room, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs the package optuna, got none installed; pip install"):
        tune(config(teacher_file), out=tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_rehearsal_trains_nothing(teacher_file, tmp_path):  # noqa: F811
    said = []
    assert tune(config(teacher_file), out=tmp_path, trials=4, dry_run=True, log=said.append) is None
    assert said[0].startswith("4 trials, 0 of them done: 96 training images")
    assert said[-1].startswith("time")
    assert json.loads((tmp_path / "asked.json").read_text())["over"][0]["name"] == "weight"
    assert not (tmp_path / "tune.json").exists()


def fail_late(monkeypatch, error, *, which=()):
    """Trainings fail in their last epoch, after the steps that a rehearsal takes; ``which`` of them, by number, or all."""
    backward, steps = Trainer._backward, {}

    def failing(self, *arguments):
        held = steps.setdefault(id(self), [0, self])  # kept, so that no other trainer has its number
        held[0] += 1
        if held[0] > 6 and (not which or len(steps) in which):
            raise error
        return backward(self, *arguments)

    monkeypatch.setattr(Trainer, "_backward", failing)


@pytest.mark.parametrize(
    "error", [NonFiniteLoss("nan"), NonFiniteScores("scores: needs finite logits, got NaN; lower it.")]
)
def test_a_trial_that_diverges_is_one_of_the_worse(teacher_file, tmp_path, monkeypatch, error):  # noqa: F811
    fail_late(monkeypatch, error, which=[1 + 2])  # the first training is the rehearsal
    said = []
    settings = config(teacher_file, {"train": {"epochs": 9}})
    found = tune(settings, out=tmp_path, trials=3, over=["weight", "lr"], log=said.append)
    assert [trial.diverged for trial in found.trials] == [False, True, False]
    assert found.best != 1
    assert any(line.startswith("trial 2 of 3") and line.endswith("diverged") for line in said)


def test_a_search_in_which_all_diverge_says_so(teacher_file, tmp_path, monkeypatch):  # noqa: F811
    fail_late(monkeypatch, NonFiniteLoss("nan"))
    with pytest.raises(
        ValueError, match=r"tune: needs a trial that ends, got 2 that diverged; lower train\.lr"
    ):
        tune(config(teacher_file), out=tmp_path, trials=2, over=["lr"], log=lambda text: None)


def test_the_scores_of_a_teacher_that_a_search_trains_are_not_called_those_of_test_images(
    tmp_path, monkeypatch
):
    lines = io.StringIO()
    settings = build_config(merge(SMALL, SEARCH, {"teacher": {"train": True}}))
    trained = []
    monkeypatch.setattr(room, "train_teacher", lambda one, **how: trained.append(train_teacher(one, **how)))
    tune(settings, out=tmp_path, trials=2, reporter=TextReporter(lines), log=lambda text: None)
    assert len(trained) == 1  # one teacher serves all trials
    assert " held-out top-1 " in lines.getvalue()
    assert " test top-1 " not in lines.getvalue()


def test_values_that_diverge_at_once_are_a_trial_and_not_the_end_of_the_search(teacher_file, tmp_path):  # noqa: F811
    """The steps that are timed for the price diverged first."""
    said = []
    settings = config(teacher_file, {"train": {"lr": 1e9}})
    with pytest.raises(ValueError, match="tune: needs a trial that ends, got 2 that diverged"):
        tune(settings, out=tmp_path, trials=2, over=["lr"], log=said.append)
    assert said[-2] == "trial 1 of 2: lr 1e+09: diverged"


def test_a_run_in_the_folder_is_refused_before_the_trials(teacher_file, tmp_path):  # noqa: F811
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "record.json").write_text("{}")
    with pytest.raises(ValueError, match="needs a folder without a run, got a finished run"):
        tuned(config(teacher_file, {"out": str(tmp_path / "run")}), trials=2)
    assert not (tmp_path / "run" / "tune").exists()


def test_a_search_continues_where_a_kill_has_cut_its_journal(teacher_file, tmp_path):  # noqa: F811
    whole = tune(config(teacher_file), out=tmp_path, trials=2, over=["weight"], log=lambda text: None)
    journal = tmp_path / room.JOURNAL
    content = journal.read_bytes()
    for cut in (1, 30, len(content) - 5):
        journal.write_bytes(content[: len(content) - cut])
        again = tune(config(teacher_file), out=tmp_path, trials=2, over=["weight"], log=lambda text: None)
        assert [t.scores for t in again.trials] == [t.scores for t in whole.trials]
    journal.write_bytes(content.replace(b"{", b"x", 1))
    with pytest.raises(
        ValueError, match=r"needs the trials as they were written, got a damaged .*; restore it"
    ):
        tune(config(teacher_file), out=tmp_path, trials=2, over=["weight"])


def test_changed_images_are_another_search(tmp_path):
    photos = tmp_path / "photos"
    for kind, number in itertools.product("ab", range(20)):
        (photos / kind).mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number + 100 * (kind == "a")).integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(photos / kind / f"{number}.png")
    layer = {
        "data": {"source": f"folder:{photos}", "train_rows": None, "size": 32},
        "teacher": {"train": True, "rows": "same"},
    }
    settings = build_config(merge(SMALL, SEARCH, layer))
    tune(settings, out=tmp_path / "out", trials=2, over=["weight"], log=lambda text: None)
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(photos / "a" / "3.png")
    with pytest.raises(ValueError, match="needs a folder without another search"):
        tune(settings, out=tmp_path / "out", trials=3, over=["weight"], log=lambda text: None)


def one_of_each(folder):
    for split, (place, kind) in itertools.product(("train", "val"), enumerate("ab")):
        (folder / split / kind).mkdir(parents=True)
        Image.new("RGB", (32, 32), (100 * place, 9, len(split))).save(folder / split / kind / "0.png")
    return f"folder:{folder}"


def test_nothing_to_hold_out_is_said(teacher_file, tmp_path):  # noqa: F811
    """A class with one image keeps it for the training: of such classes nothing is left to choose by."""
    source = {"source": one_of_each(tmp_path / "photos"), "train_rows": None, "val_fraction": 0.1}
    layer = {"data": source, "teacher": {"train": False, "weights": str(teacher_file)}}
    trained = {
        "teacher": {"train": True, "rows": "same", "correct": "always"},
        "method": {"preset": "outgrow"},
    }
    given = {**layer, "teacher": {"name": "cifar/resnet8", "weights": str(teacher_file)}}
    for call in (
        lambda: tune(
            build_config(merge(SMALL, SEARCH, layer)), out=tmp_path / "out", trials=2, over=["weight"]
        ),
        lambda: audit_teacher(given),
        lambda: distill(build_config(merge(SMALL, {"data": source}, trained))),
    ):
        with pytest.raises(
            ValueError, match=r"needs .*(two training images or more|at least 10 images).*, got"
        ):
            call()


def test_several_processes_are_refused(teacher_file, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="tune: needs one process, got 2"):
        tune(config(teacher_file), out=tmp_path / "x")
