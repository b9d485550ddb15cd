"""The constants of the recipes: there for every loss, and able to train."""

import inspect
import math
import warnings

import pytest
import torch

from outgrow import preset, spec
from outgrow.data import DataWarning
from outgrow.losses import LOSSES
from outgrow.models import create_model
from outgrow.run import cli, distill
from outgrow.run.layers import as_config, recipe_layer
from outgrow.run.recipes import RECIPES
from outgrow.run.recipes.cifar import PAIRS
from outgrow.training.config import build_config, merge

RECIPE = "cifar100/resnet32x4-resnet8x4"
# METHODS.md section 2, typed in anew: weight of the term and of the task
WEIGHTS = {
    "kd": (0.9, 0.1),
    "normkd": (0.9, 0.1),
    "ctkd": (0.9, 0.1),
    "dist": (2, 1),
    "wsl": (2.25, 1),
    "rc": (0.1, 1),
    "standardize": (9, 0.1),
    "fitnet": (100, 1),
    "at": (1000, 1),
    "nst": (50, 1),
    "ofd": (0.001, 1),
    "reviewkd": (5, 1),
    "mgd": (0.00007, 1),
    "pkt": (30000, 1),
    "sp": (3000, 1),
    "cc": (0.02, 1),
    "crd": (0.8, 1),
}
WARM_UP = {"dkd", "rld", "reviewkd"}
DIGITS = {
    "data": {
        "source": "digits",
        "train_rows": 32,
        "workers": 0,
        "augment": {"crop_padding": 1, "flip": False},
    },
    "method": {"preset": "kd"},
    "train": {"epochs": 1, "max_steps": 1, "batch_size": 32},
}
OWN = {
    "crd": {"train": {"batch_size": 8}},  # it holds the memories of 16,384 negatives for each row
    "ppi": {"data": {"unlabelled": "digits"}},
}


def objective_of(method):
    options = {key: getattr(method, key) for key in ("loss", "rule", "schedule", "weight", "task_weight")}
    return preset(method.preset, **options)[1]


def test_every_loss_has_constants_for_the_pair_and_every_pair_for_kd_and_dkd():
    assert set(RECIPES[RECIPE].losses) == set(LOSSES)
    assert set(WEIGHTS) < set(LOSSES)
    assert len(PAIRS) == 12
    for pair in PAIRS:
        for data in ("cifar10", "cifar100"):
            assert {"kd", "dkd"} <= set(RECIPES[f"{data}/{pair.teacher}-{pair.student}"].losses)


@pytest.mark.parametrize("name", LOSSES)
def test_constants_reach_the_objective(name):
    config = build_config(recipe_layer(RECIPE, name))
    objective = objective_of(config.method)
    beside = {"kd"} if name == "rc" else set()
    assert set(objective.terms) == {name} | beside
    term = objective.terms[name]
    assert (term.scale(1.0), objective.task_weight) == pytest.approx(WEIGHTS.get(name, (1, 1)))
    for progress, share in ((0.0, 0.0), (10 / 240, 0.5), (20 / 240, 1.0)):
        weights = objective.schedule(progress)
        expected = share if name in WARM_UP else 1.0
        assert weights == pytest.approx((1.0, expected, expected), abs=1e-3)


@pytest.mark.parametrize("name", LOSSES)
def test_every_argument_is_written_out(name):
    """A recipe does not move when a default does."""
    (*_, call) = spec.parse(recipe_layer(RECIPE, name)["method"]["loss"])
    parameters = set(inspect.signature(LOSSES[name]).parameters) - {"student", "teacher"}
    assert call.name == name
    assert set(call.arguments) == parameters


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(0)
    return create_model("cifar/resnet8x4", 10)


@pytest.mark.parametrize("name", LOSSES)
def test_one_step(name, teacher):
    config = build_config(recipe_layer(RECIPE, name), DIGITS, OWN.get(name, {}))
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # some of the unlabelled images are labelled ones too
        record = distill(config, teacher=teacher, student=create_model("cifar/resnet8", 10))
    (epoch,) = record["epochs"]
    value = epoch["terms"][name]
    assert math.isfinite(epoch["loss"])
    assert math.isfinite(value)
    assert (value == 0) == (name in WARM_UP)  # at the first step a warm-up has not begun
    assert value >= 0 or name == "ppi"  # a difference


def test_python_takes_the_recipe_that_a_mapping_names(monkeypatch):
    """As `--config` does with a file of the same fields: the record names a recipe whose fields the run had."""
    given = {"recipe": "digits", "student": {"name": "cifar/resnet8"}, "train": {"epochs": 3}}
    seen = []
    monkeypatch.setattr("outgrow.run.distill", lambda config, **_: seen.append(config))
    cli.app(
        ["distill", "--recipe", "digits", "--student", "cifar/resnet8", "--epochs", "3"],
        standalone_mode=False,
    )
    assert as_config(given) == seen[0]
    assert as_config(given).data.train_rows == RECIPES["digits"].layer["data"]["train_rows"]
    whole = as_config(given).model_dump(mode="json")
    assert as_config(whole) == as_config(given)  # a saved configuration has all fields, so it stays as it is
    assert as_config(merge(whole, {"data": {"train_rows": 7}})).data.train_rows == 7
    assert as_config({"train": {"epochs": 3}}) == build_config({"train": {"epochs": 3}})
    with pytest.raises(ValueError, match="recipe"):
        distill({"recipe": "digit"})


def test_the_command_takes_the_constants_of_a_bare_name(monkeypatch, tmp_path):
    import outgrow.run
    from outgrow.run import cli

    seen = []
    monkeypatch.setattr(outgrow.run, "distill", lambda config, **_: seen.append(config.method) or {})
    command = ["outgrow", "distill", "--recipe", "cifar100/resnet56-resnet20"]
    saved = tmp_path / "config.yaml"
    saved.write_text("method: {loss: kd, weight: 7.0}\n")
    for arguments in (
        ["--loss", "dkd"],
        ["--loss", "dkd(beta=3)"],
        ["--loss", "dkd", "--schedule", "grow"],
        ["--loss", "kd", "--config", str(saved)],
    ):
        monkeypatch.setattr("sys.argv", command + arguments)
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert stop.value.code == 0
    assert [method.loss for method in seen] == [
        "dkd(alpha=1.0, beta=2.0, temperature=4.0)",
        "dkd(beta=3)",
        "dkd(alpha=1.0, beta=2.0, temperature=4.0)",
        "kd(temperature=4.0)",
    ]
    assert [method.schedule for method in seen] == ["warmup(until=0.0833)", None, "grow", None]
    assert seen[3].weight == 0.9
