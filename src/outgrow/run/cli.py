"""The command line: parse options, call the library, and turn errors into messages and exit codes."""

import errno
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from outgrow.run.layers import base_layer, flags_layer, resolve, without_none
from outgrow.training.progress import LogStyle

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="SRC",
        help="digits, folder:PATH, parquet:PATH, cifar10:ROOT, cifar100:ROOT, imagenet:ROOT, hf:NAME; with boxes coco:IMAGES:ANNOTATIONS, coco:FOLDER, yolo:DATA.yaml, voc:FOLDER",
    ),
]
Label = Annotated[str | None, typer.Option(help="label column, such as fine_label or coarse_label")]
OnFaultSet = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="data.on_fault=skip",
        help="leave out images that cannot be decoded, and faulty boxes",
    ),
]
Unlabelled = Annotated[
    str | None,
    typer.Option(
        "--unlabelled",
        metavar="SRC",
        help="images without labels (of a detector: without boxes) that are distilled too, such as folder:more",
    ),
]
TeacherName = Annotated[
    str | None,
    typer.Option(
        "--teacher",
        metavar="MODEL",
        help="cifar/..., timm/..., torchvision/..., hf/..., py:FILE:CALLABLE, or a detector: fasterrcnn:BACKBONE, hf/..., rtdetr:, dfine:",
    ),
]
StudentName = Annotated[str | None, typer.Option("--student", metavar="MODEL", help="as --teacher")]
TeacherWeights = Annotated[
    Path | None, typer.Option("--teacher-weights", metavar="FILE", help="a safetensors or torch file")
]
StudentWeights = Annotated[
    Path | None, typer.Option("--student-weights", metavar="FILE", help="initial weights of the student")
]
TrainTeacher = Annotated[bool, typer.Option("--train-teacher", help="train the teacher first")]
CorrectTeacher = Annotated[
    Literal["auto", "always", "never"] | None, typer.Option(help="estimate and remove the teacher's bias")
]
RecipeName = Annotated[str | None, typer.Option("--recipe", help="see `outgrow list recipes`")]
Epochs = Annotated[int | None, typer.Option(min=1)]
BatchSize = Annotated[int | None, typer.Option("--batch-size", min=1, help="images per step")]
LearningRate = Annotated[float | None, typer.Option("--lr", help="peak learning rate of the student")]
Device = Annotated[
    Literal["auto", "cpu", "cuda", "mps"] | None, typer.Option("--device", help="for teacher and student")
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.FIELD=VALUE", help="change one field of the configuration"),
]

Track = Annotated[
    list[str] | None,
    typer.Option(
        "--track",
        metavar="TRACKER",
        help="log every epoch to tensorboard, wandb, trackio or mlflow; may be repeated",
    ),
]
Log = Annotated[
    LogStyle,
    typer.Option(
        "--log",
        "--log-format",  # torchrun's options begin with --log, and it refuses an abbreviation of several
        help="bars, text, or json (one object per line); auto is bars on a terminal, else text",
    ),
]


def _print_version(value: bool | None) -> bool:
    if value:
        import platform

        import torch

        from outgrow import __version__

        print(f"outgrow {__version__}, torch {torch.__version__}, Python {platform.python_version()}")
        raise typer.Exit
    return bool(value)


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_version,
            is_eager=True,
            help="print the versions of outgrow, torch and Python",
        ),
    ] = False,
) -> None:
    """Knowledge distillation in which the student may outgrow the teacher."""


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="folder for the page and the records")] = Path("outgrow-demo"),
    seeds: Annotated[int, typer.Option(min=2, help="number of students per method")] = 3,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="replace runs of other versions in --out")
    ] = False,
    log: Log = "auto",
) -> None:
    """Two comparisons on handwritten digits: trains teachers and students, writes tables and pages."""
    from outgrow.run.demo import run_demo
    from outgrow.training.progress import make_reporter

    run_demo(out, seeds=seeds, overwrite=overwrite, reporter=make_reporter(log))


@app.command()
def distill(
    data: Data = None,
    teacher: TeacherName = None,
    student: StudentName = None,
    unlabelled: Unlabelled = None,
    out: Annotated[Path | None, typer.Option(help="the run folder")] = None,
    teacher_weights: TeacherWeights = None,
    train_teacher: TrainTeacher = False,
    student_weights: StudentWeights = None,
    correct_teacher: CorrectTeacher = None,
    preset: Annotated[str | None, typer.Option(help="see `outgrow list presets`")] = None,
    loss: Annotated[str | None, typer.Option(help="such as kd, 'dkd(beta=6)' or 'kd + 0.8*crd'")] = None,
    rule: Annotated[str | None, typer.Option(help="such as pair or 'lead(margin=0.3)'")] = None,
    schedule: Annotated[str | None, typer.Option(help="such as linear or 'warmup(until=0.1)'")] = None,
    weight: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER|auto", help="of the distillation; auto chooses it as `outgrow tune` does"
        ),
    ] = None,
    recipe: RecipeName = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="YAML; the config.yaml of a run repeats it")
    ] = None,
    sets: Sets = None,
    label: Label = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    lr: LearningRate = None,
    device: Device = None,
    seed: Annotated[int | None, typer.Option(min=0)] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="continue the run in --out from its last checkpoint")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the run in --out")] = False,
    track: Track = None,
    log: Log = "auto",
) -> None:
    """Distil a teacher into a student on your own data."""
    from outgrow.run import distill as run
    from outgrow.training.config import assignments, merge
    from outgrow.training.progress import make_reporter

    shared = flags_layer(
        data=data,
        label=label,
        unlabelled=unlabelled,
        teacher=teacher,
        teacher_weights=teacher_weights,
        train_teacher=train_teacher,
        correct_teacher=correct_teacher,
        student=student,
        student_weights=student_weights,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        device=device,
    )
    number = None if weight in (None, "auto") else weight
    method = without_none(
        {"preset": preset, "loss": loss, "rule": rule, "schedule": schedule, "weight": number}
    )
    own = without_none({"method": method or None, "seed": seed, "out": None if out is None else str(out)})
    own |= {"track": track} if track else {}
    resolved = resolve(recipe, config, loss, merge(shared, own, assignments(sets or [])))
    if resolved.data.source == "digits" and recipe is None and config is None and data is None:
        raise ValueError(
            "distill: needs --data SRC (or --recipe, or --config), got none; set one, or try `outgrow demo`."
        )
    tuning: tuple[Any, ...] = ()
    if weight == "auto":
        from outgrow.run.tune import tuned

        resolved, tuning = tuned(resolved, resume=resume, overwrite=overwrite, reporter=make_reporter(log))
    run(resolved, resume=resume, overwrite=overwrite, reporter=make_reporter(log), tuning=tuning)


@app.command()
def tune(
    data: Data = None,
    teacher: TeacherName = None,
    student: StudentName = None,
    unlabelled: Unlabelled = None,
    out: Annotated[Path | None, typer.Option(help="folder of the search; an existing one continues")] = None,
    teacher_weights: TeacherWeights = None,
    train_teacher: TrainTeacher = False,
    student_weights: StudentWeights = None,
    correct_teacher: CorrectTeacher = None,
    preset: Annotated[str | None, typer.Option(help="see `outgrow list presets`")] = None,
    loss: Annotated[str | None, typer.Option(help="such as kd, 'dkd(beta=6)' or 'kd + 0.8*crd'")] = None,
    rule: Annotated[str | None, typer.Option(help="such as pair or 'lead(margin=0.3)'")] = None,
    over: Annotated[
        str, typer.Option(metavar="LIST", help="what to choose: weight, temperature, lr")
    ] = "weight,temperature",
    trials: Annotated[int, typer.Option(min=2, help="number of trainings")] = 12,
    recipe: RecipeName = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="YAML, such as the config.yaml of a run")
    ] = None,
    sets: Sets = None,
    label: Label = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    lr: LearningRate = None,
    device: Device = None,
    seed: Annotated[int | None, typer.Option(min=0)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the price and stop")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the search in --out")] = False,
    log: Log = "auto",
) -> None:
    """Choose the weight and the temperature of the distillation on held-out training images."""
    from outgrow.run.plan import split_list
    from outgrow.run.tune import tune as search
    from outgrow.training.config import assignments, merge
    from outgrow.training.progress import make_reporter

    if not (data or recipe or config):
        raise ValueError("tune: needs --data SRC (or --recipe, or --config), got none; name the images.")
    if out is None:
        raise ValueError("tune: needs --out FOLDER for its trials, got none; set it.")
    shared = flags_layer(
        data=data,
        label=label,
        unlabelled=unlabelled,
        teacher=teacher,
        teacher_weights=teacher_weights,
        train_teacher=train_teacher,
        correct_teacher=correct_teacher,
        student=student,
        student_weights=student_weights,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        device=device,
    )
    method = without_none({"preset": preset, "loss": loss, "rule": rule})
    own = without_none({"method": method or None, "seed": seed})
    resolved = resolve(recipe, config, loss, merge(shared, own, assignments(sets or [])))
    search(
        resolved,
        out=out,
        trials=trials,
        over=split_list(over),
        overwrite=overwrite,
        dry_run=dry_run,
        reporter=make_reporter(log),
    )


@app.command()
def compare(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[RUN]...", help="finished runs to compare, instead of training"),
    ] = None,
    data: Data = None,
    teacher: TeacherName = None,
    student: StudentName = None,
    unlabelled: Unlabelled = None,
    methods: Annotated[
        str | None,
        typer.Option(
            metavar="LIST", help="presets (default: none,kd,outgrow; none,kd with --losses or --rules)"
        ),
    ] = None,
    losses: Annotated[
        str | None, typer.Option(metavar="LIST", help="such as 'kd,dkd(beta=6)', each with preset kd")
    ] = None,
    rules: Annotated[
        str | None, typer.Option(metavar="LIST", help="such as pair,swap, each with preset kd")
    ] = None,
    pairs: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="TEACHER->STUDENT,... instead of --teacher and --student"),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(metavar="N", help="a number of seeds (default 3), or a list such as 4,7")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="folder for runs, tables and page; an existing one continues")
    ] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(help="a method to compare with, may be repeated (default: none and kd)"),
    ] = None,
    teacher_weights: TeacherWeights = None,
    train_teacher: TrainTeacher = False,
    same_teacher: Annotated[
        bool, typer.Option("--same-teacher", help="train one teacher for all seeds, not one per seed")
    ] = False,
    student_weights: StudentWeights = None,
    correct_teacher: CorrectTeacher = None,
    recipe: RecipeName = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="YAML: a configuration with a section compare")
    ] = None,
    sets: Sets = None,
    label: Label = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    lr: LearningRate = None,
    device: Device = None,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="compute the teacher again in every run")
    ] = False,
    executor: Annotated[
        str, typer.Option(help="local, ray or submitit, with options: 'ray(num_gpus=1)'")
    ] = "local",
    workers: Annotated[int, typer.Option(min=1, help="number of runs at a time")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the plan and stop")] = False,
    anyway: Annotated[
        bool,
        typer.Option("--anyway", help="compare finished runs whose conditions differ; the table shows how"),
    ] = False,
    title: Annotated[str | None, typer.Option(help="heading of the page")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace other runs in --out")] = False,
    track: Track = None,
    log: Log = "auto",
) -> None:
    """Compare methods over several seeds, or finished runs: a table and a page with intervals and tests."""
    from outgrow.run.compare import compare_runs, run_compare
    from outgrow.run.plan import make_plan, methods_layer, parse_seeds, read_options, read_plan_file
    from outgrow.run.recipes import RECIPES
    from outgrow.training.config import assignments, merge, override

    shared = flags_layer(
        data=data,
        label=label,
        unlabelled=unlabelled,
        teacher=teacher,
        teacher_weights=teacher_weights,
        train_teacher=train_teacher,
        correct_teacher=correct_teacher,
        student=student,
        student_weights=student_weights,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        device=device,
    )
    flags = merge(shared, {"track": track} if track else {}, assignments(sets or []))
    if anyway and not runs:
        raise ValueError(
            "--anyway: needs finished runs to compare, got none; name their folders, or leave it out."
        )
    if runs:
        work = same_teacher or no_cache or dry_run or executor != "local" or workers > 1
        if flags or methods or losses or rules or pairs or seeds or config or recipe or work:
            raise ValueError(
                f"compare: needs finished runs, or options for training, got both: the runs {', '.join(map(str, runs))}; leave "
                "out one of them."
            )
        compare_runs(runs, out=out, baselines=baseline or (), anyway=anyway, title=title, style=log)
        return
    if out is None:
        raise ValueError(
            "compare: needs --out FOLDER for its runs, got none; set it, or pass folders of finished runs."
        )
    saved, section = read_plan_file(config) if config else ({}, {})
    if not (data or recipe or config):
        raise ValueError(
            "compare: needs --data SRC (or --recipe, or --config), got none; set one, or try `outgrow demo`."
        )
    base = override(base_layer(recipe, saved), flags)
    constants = RECIPES[base["recipe"]].losses
    options = {
        "methods": methods_layer(methods, losses, rules, constants) or None,
        "pairs": pairs,
        "seeds": None if seeds is None else parse_seeds(seeds),
        "baselines": baseline or None,
        "same_teacher": same_teacher or None,
        "cache": False if no_cache else None,
    }
    plan = make_plan(base, read_options({**section, **without_none(options)}), out)
    run_compare(
        plan,
        executor=executor,
        workers=workers,
        dry_run=dry_run,
        overwrite=overwrite,
        title=title,
        style=log,
    )


@app.command()
def audit(
    data: Data = None,
    teacher: TeacherName = None,
    teacher_weights: TeacherWeights = None,
    label: Label = None,
    recipe: RecipeName = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="YAML, such as the config.yaml of a run")
    ] = None,
    sets: Sets = None,
    rows: Annotated[int, typer.Option(help="training rows that are looked at, and held-out ones")] = 2000,
    out: Annotated[Path | None, typer.Option(help="folder for the page, the numbers and the list")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the audit in --out")] = False,
    log: Log = "auto",
) -> None:
    """Say before any training, in minutes, whether a teacher is worth listening to."""
    from outgrow.run.audit import audit_teacher
    from outgrow.training.config import assignments, merge
    from outgrow.training.progress import make_reporter

    if not (data or recipe or config):
        raise ValueError("audit: needs --data SRC (or --recipe, or --config), got none; name the images.")
    shared = flags_layer(data=data, label=label, teacher=teacher, teacher_weights=teacher_weights)
    own = {"out": None if out is None else str(out)}  # never the folder that a configuration is from
    resolved = resolve(recipe, config, None, merge(shared, assignments(sets or []), own))
    audit_teacher(resolved, rows=rows, overwrite=overwrite, reporter=make_reporter(log))


@app.command()
def evaluate(
    data: Data,
    model: Annotated[str, typer.Option(metavar="MODEL", help="as for distill")],
    weights: Annotated[Path | None, typer.Option(metavar="FILE", help="safetensors, or a torch file")] = None,
    label: Label = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 100,
    workers: Annotated[int, typer.Option(min=0)] = 2,
    sets: OnFaultSet = None,
    log: Log = "auto",
) -> None:
    """Score a model on the test images of a source."""
    from outgrow.run.evaluation import evaluate_model
    from outgrow.training.progress import make_reporter

    assert data is not None
    evaluate_model(
        data,
        model,
        weights=weights,
        label=label,
        batch_size=batch_size,
        workers=workers,
        on_fault=_on_fault("evaluate", sets),
        reporter=make_reporter(log),
    )


def _on_fault(command: str, sets: list[str] | None) -> Literal["refuse", "skip"]:
    """The only field that a command without a run has."""
    from outgrow.training.config import assignments, build_config, leaves

    asked = assignments(sets or [])
    config = build_config(asked)
    if others := [name for name, _ in leaves(asked) if name != "data.on_fault"]:
        raise ValueError(
            f"{command} --set: needs data.on_fault, as it has no other field, got {', '.join(others)}; leave it out."
        )
    return config.data.on_fault


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="the folder of a run (distill --out)")],
    out: Annotated[Path | None, typer.Option(help="folder for the files (default: RUN/export)")] = None,
    format: Annotated[
        Literal["safetensors", "onnx", "torch", "all"], typer.Option(help="safetensors, .onnx, .pt2, or all")
    ] = "safetensors",
    quantize: Annotated[
        Literal["int8"] | None, typer.Option(help="also write an 8-bit ONNX file, and measure its accuracy")
    ] = None,
    images: Annotated[
        list[Path] | None,
        typer.Option(help="an image to compare on if the run's data are not available; may be repeated"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the export in --out")] = False,
    push: Annotated[
        str | None, typer.Option(metavar="REPO", help="upload the folder to the Hugging Face hub")
    ] = None,
    log: Log = "auto",
) -> None:
    """Export the student of a run: weights for its own library, ONNX, or a torch program."""
    from outgrow.run.export import export_run
    from outgrow.training.progress import make_reporter

    export_run(
        run,
        out=out,
        format=format,
        quantize=quantize,
        images=images or (),
        overwrite=overwrite,
        push=push,
        reporter=make_reporter(log),
    )


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(metavar="RUN_OR_EXPORT", help="a folder, or a file of an export")],
    images: Annotated[list[str], typer.Argument(help="files, folders, globs")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help=".csv or .json (default: standard output)")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on standard output")] = False,
    top: Annotated[
        int | None, typer.Option(min=1, help="classes per image (default 5), or most boxes (default all)")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 32,
    score: Annotated[
        float | None, typer.Option(min=0, max=1, help="detectors: lowest score of a box (default 0.3)")
    ] = None,
    pictures: Annotated[
        Path | None, typer.Option(metavar="DIR", help="detectors: folder for images with boxes drawn")
    ] = None,
) -> None:
    """Predict the classes (or boxes) of images with the student of a run or an export."""
    from outgrow.run.predict import predict_files

    predict_files(
        model,
        images,
        out=out,
        as_json=as_json,
        top=top,
        batch_size=batch_size,
        score=score,
        pictures=pictures,
        log=lambda text: print(f"outgrow: {text}", file=sys.stderr),
    )


@app.command()
def cache(
    config: Annotated[
        Path, typer.Option(metavar="FILE", help="the config.yaml of the runs that will read it")
    ],
    out: Annotated[Path, typer.Option(help="folder of the cache; runs read it with --set teacher.cache=DIR")],
    epochs: Annotated[
        int | None, typer.Option(min=1, help="number of epochs to cache (default: those of the run)")
    ] = None,
    sets: Sets = None,
    log: Log = "auto",
) -> None:
    """Compute the teacher's logits once for runs that share its views; with --set teacher.cache_features=true, also the
    features that the losses read."""
    from outgrow.machine.files import counted, readable
    from outgrow.run import fill_cache
    from outgrow.training.config import assignments, merge
    from outgrow.training.progress import make_reporter

    reporter = make_reporter(log)
    resolved = resolve(None, config, None, merge(assignments(sets or []), {"teacher": {"cache": str(out)}}))
    filled = fill_cache(resolved, epochs=epochs, reporter=reporter)
    reporter.show(f"{filled['folder']}: {counted(filled['epochs'], 'epoch')}, {readable(filled['bytes'])}")
    reporter.event("result", **filled)


@app.command()
def report(
    folder: Annotated[
        Path, typer.Argument(help="a folder with METHOD/seedK/record.json, or the --out of compare")
    ],
    title: Annotated[str | None, typer.Option(help="heading of the page")] = None,
    log: Log = "auto",
) -> None:
    """Write the table and the page of `compare` for a folder of METHOD/seedK runs into that folder."""
    from outgrow.report.gather import gather_study
    from outgrow.run.compare import compare_runs, report_gathered
    from outgrow.run.plan import PLAN_FILE

    if (folder / PLAN_FILE).is_file():
        compare_runs([folder], out=folder, title=title, style=log)
        return
    report_gathered(gather_study(folder), out=folder, title=title or folder.resolve().name, style=log)


@app.command("list")
def list_(
    what: Annotated[
        Literal[
            "presets",
            "losses",
            "rules",
            "trusts",
            "schedules",
            "models",
            "recipes",
            "fields",
            "features",
            "data",
        ],
        typer.Argument(help="what to list"),
    ],
    of: Annotated[
        str | None,
        typer.Argument(
            metavar="[PART|MODEL|SRC]",
            help="a model for features, a source for data, a part of the names for all others",
        ),
    ] = None,
    label: Label = None,
    sets: OnFaultSet = None,
) -> None:
    """List presets, losses, rules, trusts, schedules, models, recipes, the fields of a configuration, the features of a MODEL, or
    the contents of a data source SRC (with a sheet of example images, outgrow-data.png)."""
    from outgrow.run.listing import listing

    if what != "data" and (label is not None or sets):
        raise ValueError(
            f"list {what}: needs no --label and no --set, which are for list data; leave them out."
        )
    for line in listing(what, of, label=label, on_fault=_on_fault("list data", sets)):
        print(line)


DONE, FAILED, REFUSED, DIVERGED, MACHINE, INTERRUPTED = 0, 1, 2, 3, 4, 130
"""Exit codes: success; an unexpected error (with a log file); a request that cannot be done; a loss that is not
finite; a limit of the machine (disk full, out of memory); interrupted by Ctrl-C."""


MACHINE_ERRORS = frozenset(
    getattr(errno, name)
    for name in (
        "ENOSPC",
        "EDQUOT",
        "EROFS",
        "EACCES",
        "EPERM",
        "EIO",
        "EFBIG",
        "EMFILE",
        "ENFILE",
        "ENOMEM",
        "ESTALE",
    )
)
"""Errors that a full disk, missing rights or other limits of the machine cause."""


def main() -> None:
    """The entry point. Errors are shown as one message and an exit code, without a traceback."""
    import warnings

    warnings.showwarning = _show_warning
    sys.exit(_run())


def _run() -> int:
    from outgrow.training.processes import leave
    from outgrow.training.watch import Ended, Reason, Watch, lost_another

    watch = Watch(_show, lost=MACHINE, terminated=INTERRUPTED)
    with watch():
        try:
            code = app(standalone_mode=False)
            leave()
        except Ended:
            return watch.lost_others()
        except BaseException as error:
            if lost_another(error):
                return watch.lost_others(error)
            text, number = _reason(error)
            return watch.failed(Reason(text, number)) if text else number
    return code if isinstance(code, int) else DONE


def _reason(error: BaseException) -> tuple[str, int]:
    """The message for ``error``, and the exit code."""
    from outgrow.machine.files import NotWritten
    from outgrow.training.guard import NonFiniteLoss

    match error:
        case typer.Abort() | KeyboardInterrupt():
            return "interrupted; --resume continues a run from its last checkpoint", INTERRUPTED
        case Exception() if hasattr(error, "exit_code") and hasattr(error, "show"):
            # a usage error; not by class, as newer versions of Typer have their own copy of Click
            error.show()
            return "", int(error.exit_code)
        case ValueError():
            return str(error), REFUSED
        case NonFiniteLoss():
            return str(error), DIVERGED
        case NotWritten():
            return f"{error.strerror}{_goes_on()}", MACHINE
        case BrokenPipeError():  # the reader of the pipe (head, less) has ended
            sys.stderr.close()
            return "", DONE
        case OSError() if error.errno in MACHINE_ERRORS:
            path = error.filename or "a file"
            return (
                f"needs to read or write {path}, got {error.strerror}; free some room or change its rights. Files "
                f"written before are complete{_goes_on()}.",
                MACHINE,
            )
        case Exception() if _out_of_memory(error):
            return (
                f"needs more memory than this machine has free, got {_first_line(error)}; lower train.batch_size or the "
                "size of the images.",
                MACHINE,
            )
        case Exception():
            return f"an unexpected error, {type(error).__name__}: {_first_line(error)}; {_log(error)}", FAILED
    raise error


def _goes_on() -> str:
    """How what was begun continues."""
    command = next(iter(sys.argv[1:]), "")
    if command == "distill":
        return "; --resume continues the run"
    return "; the same command continues" if command in ("compare", "demo", "cache") else ""


def _show(text: str) -> None:
    safe = f"outgrow: {text}".encode(sys.stderr.encoding or "utf-8", "backslashreplace")
    print(safe.decode(sys.stderr.encoding or "utf-8"), file=sys.stderr, flush=True)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or "no message").splitlines()[0]


def _out_of_memory(error: BaseException) -> bool:
    return (
        isinstance(error, MemoryError)
        or "out of memory" in str(error)
        or "can't allocate memory" in str(error)
    )


def _log(error: BaseException) -> str:
    """Write the traceback to a file; returns the end of the message, with its path."""
    import platform
    import tempfile
    import traceback

    text = "".join(traceback.format_exception(error))
    head = f"command: {' '.join(sys.argv)}\npython {platform.python_version()}, {platform.platform()}\n\n"
    try:
        with tempfile.NamedTemporaryFile(
            "w",
            prefix="outgrow-error-",
            suffix=".log",
            delete=False,
            encoding="utf-8",
            errors="backslashreplace",
        ) as file:
            file.write(head + text)
        return f"please report it with the file {file.name}, which has the details."
    except OSError:
        return f"no log file could be written; the details are:\n{text}"


_SHOWN: set[str] = set()


def _show_warning(message: Any, category: type[Warning], *_: Any, **__: Any) -> None:
    """Show a warning as one line, without its source line, and only once."""
    if issubclass(category, DeprecationWarning | PendingDeprecationWarning) or str(message) in _SHOWN:
        return
    from outgrow.training.processes import is_main

    _SHOWN.add(str(message))
    if is_main():
        _show(f"warning: {message}")
