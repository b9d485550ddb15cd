"""The command as its user types it."""

import json
import re
from pathlib import Path

import pytest
import torch
from typer.main import get_command
from typer.testing import CliRunner

from outgrow.run import cli, distill
from outgrow.run.distillation import summary
from outgrow.run.layers import recipe_layer, resolve
from outgrow.run.recipes import RECIPES
from outgrow.run.recipes.cifar import PAIRS
from outgrow.training.config import Config
from outgrow.training.record import parse_record
from tests.data.helpers import encoded, picture, write_shard
from tests.report.records import detector
from tests.report.records import record as classifier

runner = CliRunner()


def test_the_options_are_these_and_no_more():
    """A new flag is a decision: most things are `--set section.field=value`."""
    command = get_command(cli.app)
    options = {name: sorted(p.name for p in c.params) for name, c in command.commands.items()}
    assert options == {
        "demo": ["log", "out", "overwrite", "seeds"],
        "audit": [
            "config",
            "data",
            "label",
            "log",
            "out",
            "overwrite",
            "recipe",
            "rows",
            "sets",
            "teacher",
            "teacher_weights",
        ],
        "distill": sorted(
            [
                "data",
                "teacher",
                "student",
                "unlabelled",
                "out",
                "teacher_weights",
                "train_teacher",
                "student_weights",
                "correct_teacher",
                "preset",
                "loss",
                "rule",
                "schedule",
                "weight",
                "recipe",
                "config",
                "sets",
                "label",
                "epochs",
                "batch_size",
                "lr",
                "device",
                "seed",
                "resume",
                "overwrite",
                "track",
                "log",
            ]
        ),
        "tune": sorted(
            [
                "data",
                "teacher",
                "student",
                "unlabelled",
                "out",
                "teacher_weights",
                "train_teacher",
                "student_weights",
                "correct_teacher",
                "preset",
                "loss",
                "rule",
                "over",
                "trials",
                "recipe",
                "config",
                "sets",
                "label",
                "epochs",
                "batch_size",
                "lr",
                "device",
                "seed",
                "dry_run",
                "overwrite",
                "log",
            ]
        ),
        "compare": sorted(
            [
                "runs",
                "data",
                "teacher",
                "student",
                "unlabelled",
                "methods",
                "losses",
                "rules",
                "pairs",
                "seeds",
                "out",
                "baseline",
                "teacher_weights",
                "train_teacher",
                "same_teacher",
                "student_weights",
                "correct_teacher",
                "recipe",
                "config",
                "sets",
                "label",
                "epochs",
                "batch_size",
                "lr",
                "device",
                "no_cache",
                "executor",
                "workers",
                "dry_run",
                "anyway",
                "title",
                "overwrite",
                "track",
                "log",
            ]
        ),
        "evaluate": ["batch_size", "data", "label", "log", "model", "sets", "weights", "workers"],
        "export": ["format", "images", "log", "out", "overwrite", "push", "quantize", "run"],
        "predict": ["as_json", "batch_size", "images", "model", "out", "pictures", "score", "top"],
        "cache": ["config", "epochs", "log", "out", "sets"],
        "report": ["folder", "log", "title"],
        "list": ["label", "of", "sets", "what"],
    }


@pytest.mark.parametrize(
    "typed, said",
    [
        (["nonsense"], "No such command"),
        (["distill", "--nonsense"], "No such option"),
        (["distill", "--epochs", "0"], "--epochs"),
        (["report"], "Missing argument"),
    ],
)
def test_what_is_mistyped_is_said_in_a_line_or_two(monkeypatch, capsys, typed, said):
    monkeypatch.setattr("sys.argv", ["outgrow", *typed])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert said in error
    assert "unexpected" not in error


def test_no_command_at_all_is_help(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["outgrow"])
    with pytest.raises(SystemExit):
        cli.main()
    seen = capsys.readouterr()
    assert "distill" in seen.out + seen.err
    assert "unexpected" not in seen.err


def test_version_says_what_a_report_of_a_fault_needs(monkeypatch, capsys):
    import platform

    import outgrow

    monkeypatch.setattr("sys.argv", ["outgrow", "--version"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 0
    line = f"outgrow {outgrow.__version__}, torch {torch.__version__}, Python {platform.python_version()}\n"
    assert capsys.readouterr().out == line
    assert [p.name for p in get_command(cli.app).params] == ["version"]


@pytest.mark.parametrize(
    "what, some",
    [
        ("presets", "paper"),
        ("losses", "dkd(alpha=1.0, beta=8.0, temperature=4.0)"),
        ("rules", "project(margin=0.0)"),
        ("trusts", "confidence(threshold=0.8, rows='unlabelled')"),
        ("schedules", "warmup(until=0.1)"),
        ("recipes", "cifar100/resnet32x4-resnet8x4"),
        ("models", "cifar/resnet32x4"),
    ],
)
def test_list(what, some):
    result = runner.invoke(cli.app, ["list", what])
    assert result.exit_code == 0
    assert any(line.startswith(some) for line in result.stdout.splitlines())


@pytest.mark.parametrize(
    "what, part, names",
    [
        ("losses", "dkd", ["dkd"]),
        ("models", "cifar/resnet8", ["cifar/resnet8", "cifar/resnet8x4"]),
        ("models", "backbone", ["fasterrcnn:BACKBONE", "retinanet:BACKBONE"]),
        ("fields", "unlabelled_share", ["data.unlabelled_share"]),
    ],
)
def test_a_list_of_what_is_asked_for(what, part, names):
    result = runner.invoke(cli.app, ["list", what, part])
    lines = [line for line in result.stdout.splitlines() if not line.startswith("    ")]
    for name in names:
        assert any(re.match(rf"{name}\W", f"{line} ") for line in lines)
    assert all(part.lower() in line.lower() for line in lines)


def test_a_list_looks_at_names_not_at_defaults():
    lines = runner.invoke(cli.app, ["list", "losses", "kd"]).stdout.splitlines()
    assert not [line for line in lines if line.startswith("standardize")]
    found = runner.invoke(cli.app, ["list", "fields", "none"])
    assert "which none has" in str(found.exception)


def test_a_list_of_nothing_says_so():
    with pytest.raises(ValueError, match="list losses: needs a part of a name, got 'dkdd', which none has"):
        runner.invoke(cli.app, ["list", "losses", "dkdd"], catch_exceptions=False)


def test_data_with_a_broken_image_and_with_two_labels_can_be_listed(tmp_path, monkeypatch):
    """Each error names an option, which the command has."""
    monkeypatch.chdir(tmp_path)
    for split in ("train", "val"):
        for place, name in enumerate(("cat", "dog")):
            for number in range(3):
                path = Path("pets") / split / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(encoded(picture(100 * (split == "val") + 10 * place + number)))
    (Path("pets") / "train" / "cat" / "0.png").write_bytes(b"nothing")
    ask = ["list", "data", "folder:pets"]
    with pytest.raises(ValueError, match=r"or set data\.on_fault=skip to leave out all such images"):
        runner.invoke(cli.app, ask, catch_exceptions=False)
    shown = runner.invoke(cli.app, [*ask, "--set", "data.on_fault=skip"], catch_exceptions=False).stdout
    assert "train         5 images" in shown
    assert "1 images cannot be decoded and are left out" in shown

    pictures = [encoded(picture(number)) for number in range(4)]
    labels = {"fine": [0, 1, 2, 3], "coarse": [0, 0, 1, 1]}
    for split in ("train", "test"):
        write_shard(Path("shards") / f"{split}-00000-of-00001.parquet", pictures, labels)
    ask = ["list", "data", "parquet:shards"]
    with pytest.raises(ValueError, match="choose one of them with --label"):
        runner.invoke(cli.app, ask, catch_exceptions=False)
    shown = runner.invoke(cli.app, [*ask, "--label", "coarse"], catch_exceptions=False).stdout
    assert "2 classes" in shown


@pytest.mark.parametrize(
    "words, said",
    [
        (["losses", "--label", "fine"], "list losses: needs no --label and no --set"),
        (["data", "digits", "--set", "seed=1"], "list data --set: needs data.on_fault"),
    ],
)
def test_a_list_refuses_options_that_it_has_not(words, said):
    with pytest.raises(ValueError, match=said):
        runner.invoke(cli.app, ["list", *words], catch_exceptions=False)


def test_lists_are_plain_text():
    assert ":func:" not in runner.invoke(cli.app, ["list", "schedules"]).stdout


def test_list_features():
    result = runner.invoke(cli.app, ["list", "features", "cifar/resnet8"])
    assert "layer3" in result.stdout
    assert "penultimate" in result.stdout


def test_distill_and_evaluate(tmp_path):
    args = [
        "distill",
        "--data",
        "digits",
        "--teacher",
        "cifar/resnet8",
        "--student",
        "cifar/resnet8",
        "--train-teacher",
    ]
    args += ["--out", str(tmp_path), "--epochs", "1", "--preset", "paper", "--set", "teacher_train.epochs=1"]
    args += ["--set", "data.train_rows=64", "--set", "data.workers=0"]
    args += ["--log", "json"]
    result = runner.invoke(cli.app, args, catch_exceptions=False)
    assert result.exit_code == 0
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert {"note", "epoch", "result"} <= {event["event"] for event in events}
    judged = [event for event in events if event["event"] == "epoch"]
    assert [(e["network"], e["metric"]) for e in judged] == [("teacher", "top1"), ("student", "top1")]
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["config"]["method"]["preset"] == "paper"
    assert judged[-1]["score"] == record["student"]["top1"] == events[-1]["student"]
    cache = [
        "cache",
        "--config",
        str(tmp_path / "config.yaml"),
        "--out",
        str(tmp_path / "cache"),
        "--epochs",
        "2",
    ]
    weights = str(tmp_path / "teacher.safetensors")
    cache += ["--set", f"teacher.weights={weights}", "--set", "teacher.train=false"]
    cache += ["--log", "json"]
    filled = runner.invoke(cli.app, cache, catch_exceptions=False)
    assert json.loads(filled.stdout.splitlines()[-1])["epochs"] == 2
    cache += ["--set", "method.loss=rkd", "--set", "teacher.cache_features=true"]
    more = runner.invoke(cli.app, cache, catch_exceptions=False)
    assert any("logits (10) and features penultimate (64)" in line for line in more.stdout.splitlines())
    assert len(list((tmp_path / "cache").rglob("epoch*-penultimate.npy"))) == 2
    scored = runner.invoke(
        cli.app,
        [
            "evaluate",
            "--data",
            "digits",
            "--model",
            "cifar/resnet8",
            "--weights",
            str(tmp_path / "student.safetensors"),
            "--log",
            "json",
        ],
        catch_exceptions=False,
    )
    assert json.loads(scored.stdout.splitlines()[-1])["top1"] == pytest.approx(record["student"]["top1"])


def test_audit_says_its_verdict_and_exits_with_a_code(tmp_path, monkeypatch, capsys):
    from outgrow.models import create_model, save_student

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    torch.manual_seed(0)
    save_student(create_model("cifar/resnet8", 10), tmp_path / "teacher.safetensors")
    typed = ["outgrow", "audit", "--data", "digits", "--teacher", "cifar/resnet8", "--rows", "60"]
    typed += ["--set", "data.workers=0", "--out", str(tmp_path / "out"), "--log", "json"]
    weights = ["--teacher-weights", str(tmp_path / "teacher.safetensors")]
    codes = []
    for words in (typed, typed + weights, typed + weights, ["outgrow", "audit"]):
        monkeypatch.setattr("sys.argv", words)
        with pytest.raises(SystemExit) as stop:
            cli.main()
        codes.append(stop.value.code)
        seen = capsys.readouterr()
        if stop.value.code == 0:
            events = [json.loads(line) for line in seen.out.splitlines()]
            assert [one["kind"] for one in events[-1]["verdicts"]]
            lines = [one["text"] for one in events if one["event"] == "note"]
            assert len(lines) < 25
            assert any("held-out images, as it is: right on" in line for line in lines)
        else:
            assert seen.err.startswith("outgrow: ")
            assert "needs" in seen.err
            assert ", got " in seen.err
    assert codes == [2, 0, 2, 2]  # no weights; done; a folder that is taken; no data
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"index.html", "audit.json"}


def test_report_compares_finished_runs(tmp_path):
    from outgrow.run.demo import CASES
    from outgrow.run.study import run_study

    base = {
        **CASES["biased"].base,
        "data": {**CASES["biased"].base["data"], "train_rows": 64},
        "train": {"epochs": 1},
        "teacher_train": {"epochs": 1},
    }
    run_study(base, {"none": {"preset": "none"}, "kd": {"preset": "kd"}}, range(2), out=tmp_path)
    result = runner.invoke(cli.app, ["report", str(tmp_path)], catch_exceptions=False)
    assert result.exit_code == 0
    assert "over no teacher" in result.stdout
    assert {"index.html", "table.md"} <= {p.name for p in tmp_path.iterdir()}
    (tmp_path / "kd" / "seed1" / "record.json").unlink()
    with pytest.raises(ValueError, match="the same seeds for every method"):
        runner.invoke(cli.app, ["report", str(tmp_path)], catch_exceptions=False)


def test_a_result_is_said_in_its_own_measure():
    for run, teacher in ((detector("kd", 0, 43.2), True), (detector("none", 0, 43.2, teacher=None), False)):
        assert list(summary(parse_record(run))) == [
            *(["teacher made/teacher: 40.00 % box AP (4,000 parameters)"] if teacher else []),
            "student made/student: 43.20 % box AP after the last epoch (best 43.45 %, epoch 4; 1,000 parameters)",
        ]
    assert list(summary(parse_record(classifier("kd", 0, 93.0)))) == [
        "teacher made/teacher: 50.00 % (4,000 parameters)",
        "student made/student: 93.00 % after the last epoch (best 93.25 %, epoch 4; 1,000 parameters)",
    ]


def test_a_pipe_gets_lines_that_a_person_reads(tmp_path):
    quick = ["--data", "digits", "--set", "data.workers=0"]
    args = ["distill", *quick, "--teacher", "cifar/resnet8", "--student", "cifar/resnet8", "--train-teacher"]
    args += ["--epochs", "2", "--set", "teacher_train.epochs=1", "--set", "data.train_rows=64"]
    done = runner.invoke(cli.app, [*args, "--out", str(tmp_path)], catch_exceptions=False)
    lines = done.stdout.splitlines()
    epochs = [line for line in lines if line.startswith("  epoch ")]
    assert [line.split()[1] for line in epochs] == ["1/1", "1/2", "2/2"]
    assert lines[-4].startswith("teacher cifar/resnet8: ")
    assert lines[-3].startswith("student cifar/resnet8: ")
    assert lines[-2].startswith(f"{tmp_path}: student.safetensors, index.html")
    result = json.loads(lines[-1])
    record = json.loads((tmp_path / "record.json").read_text())
    assert (result["event"], result["student"]) == ("result", record["student"]["top1"])
    assert max(map(len, lines)) < 500
    evaluate = ["evaluate", "--data", "digits", "--workers", "0", "--model", "cifar/resnet8"]
    evaluate += ["--weights", str(tmp_path / "student.safetensors")]
    scored = runner.invoke(cli.app, evaluate, catch_exceptions=False).stdout
    assert scored.splitlines()[-2].startswith("cifar/resnet8: top-1 ")
    assert json.loads(scored.splitlines()[-1])["top1"] == record["student"]["top1"]
    cache = ["cache", "--config", str(tmp_path / "config.yaml"), "--out", str(tmp_path / "cache")]
    cache += ["--set", f"teacher.weights={tmp_path / 'teacher.safetensors'}", "--set", "teacher.train=false"]
    filled = runner.invoke(cli.app, cache, catch_exceptions=False).stdout
    assert filled.splitlines()[-2].startswith(f"{tmp_path / 'cache'}")
    assert ": 2 epochs, " in filled.splitlines()[-2]


def test_trackers_are_a_flag_or_a_field(monkeypatch):
    seen = []
    monkeypatch.setattr("outgrow.run.distill", lambda config, **_: seen.append(config))
    given = ["distill", "--data", "digits"]
    for more in ([], ["--track", "wandb", "--track", "mlflow"], ["--set", "track=trackio"]):
        cli.app([*given, *more], standalone_mode=False)
    assert [config.track for config in seen] == [(), ("wandb", "mlflow"), ("trackio",)]


def test_errors_are_messages(monkeypatch, capsys):
    monkeypatch.setattr(
        "sys.argv", ["outgrow", "distill", "--data", "nowhere:x", "--teacher", "a", "--student", "b"]
    )
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("outgrow: ")


def test_every_recipe_is_a_whole_configuration():
    from outgrow.models import create_model
    from outgrow.training.config import build_config

    assert len(RECIPES) >= 4 + 2 * len(PAIRS) + 2
    for name in RECIPES:
        config = build_config(recipe_layer(name, None), {"recipe": name})
        assert isinstance(config, Config)
        for model in (config.teacher.name, config.student.name):
            if model.startswith("cifar/"):
                with torch.device("meta"):
                    create_model(model, 100)


def test_a_teacher_on_other_rows_leaves_some_to_it():
    layers = {name: recipe.layer for name, recipe in RECIPES.items()}
    disjoint = {n for n, layer in layers.items() if layer.get("teacher", {}).get("rows") == "disjoint"}
    assert disjoint == {"digits", "cifar100-small"}
    assert all(layers[name]["data"]["train_rows"] for name in disjoint)


def test_the_recipe_of_digits_runs_as_it_is():
    short = {"epochs": 1, "min_steps": None, "max_steps": 1}
    record = distill(resolve("digits", None, None, {"train": short, "teacher_train": short}))
    assert (record["data"]["train"], record["config"]["teacher"]["train"]) == (300, True)


def test_a_recipes_constants_are_taken_for_a_bare_name():
    assert "beta=2.0" in recipe_layer("cifar100/resnet56-resnet20", "dkd")["method"]["loss"]
    assert recipe_layer("cifar100/resnet56-resnet20", "dkd(beta=3)").get("method") is None


def test_flags_win_over_recipe_and_file(tmp_path):
    """Order: defaults, recipe, --config, flags, --set."""
    from outgrow.training.config import assignments, build_config

    file = {"train": {"epochs": 7, "lr": 0.3}}
    config = build_config(
        recipe_layer("cifar100-small", None),
        file,
        {"train": {"epochs": 9}},
        assignments(["train.lr=0.5"]),
    )
    assert (config.train.epochs, config.train.lr, config.train.batch_size) == (9, 0.5, 64)
