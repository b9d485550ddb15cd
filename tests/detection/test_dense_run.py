"""Whole runs of RetinaNet, FCOS and SSDLite on real images: files, evaluation, prediction, export, audit."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

from outgrow.detection.export import matched, onnx_finder, write_detector_onnx
from outgrow.detection.families.create import create_detector, load_detector, save_detector
from outgrow.models.portable import OnnxModel
from outgrow.models.taps import BOX
from outgrow.run import distill
from outgrow.run.audit import audit_teacher
from outgrow.run.evaluation import evaluate_model
from outgrow.run.export import export_run
from outgrow.run.listing import listing
from outgrow.run.predict import predict_files
from outgrow.run.rehearsal import Trials, rehearse
from outgrow.training.config import build_config, merge
from outgrow.training.progress import TextReporter
from tests.detection.test_dense import NAMES as SMALL
from tests.detection.test_dense import detector, scenes
from tests.detection.test_run import cells, layer, small, weights  # noqa: F401

ON = "timm/mobilenetv1_025_128?size=96"
NAMES = {
    "retinanet": f"retinanet:{ON}&channels=16&anchors=2",
    "fcos": f"fcos:{ON}&channels=64",
    "ssdlite": f"ssdlite:{ON}&channels=32",
}


def config_of(student, teacher, source, weights, out, **method):  # noqa: F811
    """Two epochs on six images. The teacher is trained first."""
    change = {"student": {"name": student}, "teacher": {"name": teacher}}
    return build_config(merge(layer(source, weights, out, **method).model_dump(), change))


@pytest.fixture(scope="module", params=NAMES)
def run(request, small, weights, tmp_path_factory):  # noqa: F811
    name = NAMES[request.param]
    out = tmp_path_factory.mktemp(request.param)
    return name, distill(config_of(name, name, small, weights, out, loss="kd + box", rule="pair")), out


def test_a_run_and_what_follows_from_it(run, small, tmp_path):  # noqa: F811
    name, record, out = run
    assert set(record["epochs"][0]["terms"]) == {"task", "kd", "box"}
    assert all(epoch["terms"]["kd"] > 0 for epoch in record["epochs"])
    assert record["student"]["name"] == name
    assert record["detection"]["numbers"]["teacher"] is not None
    assert "box AP" in (out / "index.html").read_text()
    assert load_detector(out / "student.safetensors").classes == ("RBC", "WBC", "Platelets")

    scores = evaluate_model(small, name, weights=out / "student.safetensors", workers=0)
    assert scores["ap"] == pytest.approx(record["student"]["ap"], abs=1e-6)

    image = next(Path(small.split(":")[1]).rglob("*.jpg"))
    for model in (out, out / "student.safetensors"):
        predict_files(model, [str(image)], out=tmp_path / "boxes.json", score=0.0, top=3, as_json=True)
        assert len(json.loads((tmp_path / "boxes.json").read_text())) == 1
        (tmp_path / "boxes.json").unlink()

    if find_spec("onnx") is None:  # an extra, which CI does not have
        exported = export_run(out, out=tmp_path / "export")
        assert set(exported["files"]) == {"model.safetensors"}
    else:
        exported = export_run(out, out=tmp_path / "export", format="all")
        assert set(exported["files"]) == {"model.safetensors", "model.onnx"}
        assert any("torch.export cannot trace" in note for note in exported["notes"])
    for file in exported["files"].values():
        assert "found by only one of the two" in file["check"]


@pytest.mark.parametrize("family", NAMES)
def test_an_onnx_file_finds_the_same_boxes(family, tmp_path):
    """On images of several sizes, with scores that differ."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    made = detector(family).eval()
    # at first scores and overlaps are nearly equal, and rounding decides who suppresses whom
    with torch.no_grad():
        for name, weight in made.net.named_parameters():
            if "head" in name and weight.dim() == 4:
                nn.init.kaiming_normal_(weight)
    images = scenes().images
    write_detector_onnx(made, tmp_path / "model.onnx", images[0])
    find = onnx_finder(OnnxModel(tmp_path / "model.onnx"))
    for image in images:
        ours, theirs = made.detect([image])[0], find(image)
        here, there = matched(ours, theirs)
        # boxes that overlap by the threshold, within rounding, may suppress each other in one of the two only
        assert len(here) >= 0.97 * max(len(ours.label), len(theirs.label)) > 9
        torch.testing.assert_close(ours.boxes[here], theirs.boxes[there], rtol=1e-4, atol=1e-2)
        torch.testing.assert_close(ours.score[here], theirs.score[there], rtol=1e-3, atol=1e-4)


def test_features_across_families_and_logits_refused(small, weights, tmp_path, capsys):  # noqa: F811
    student, teacher = NAMES["fcos"], NAMES["retinanet"]
    config = config_of(student, teacher, small, weights, None, loss="fitnet(student='p4', teacher='p4')")
    torch.manual_seed(0)
    save_detector(create_detector(teacher, ("RBC", "WBC", "Platelets")), tmp_path / "teacher.safetensors")
    given = {"teacher": {"weights": str(tmp_path / "teacher.safetensors"), "train": False}}
    config = build_config(merge(config.model_dump(), {**given, "train": {"epochs": 1}}))
    record = distill(config, reporter=TextReporter())
    assert set(record["epochs"][0]["terms"]) == {"task", "fitnet"}
    assert record["epochs"][0]["wrong_rate"] is None  # it has said nothing of the rows
    said = capsys.readouterr().out
    assert "  epoch   1/1" in said
    assert "teacher wrong" not in said
    for loss, named in (("kd", "kd"), ("kd + box + fitnet", "kd, box"), ("box", "box")):
        refused = build_config(merge(config.model_dump(), {"method": {"loss": loss}}))
        with pytest.raises(
            ValueError,
            match=f"^{named}: needs a teacher that answers for the student's rows, got retinanet anchors for a student of "
            "fcos anchors; choose two detectors of one family, or distil features only",
        ):
            distill(refused)
    other = build_config(
        merge(
            config.model_dump(),
            {"method": {"loss": "kd"}, "student": {"name": teacher.replace("size=96", "size=64")}},
        )
    )
    with pytest.raises(ValueError, match=r"kd: needs .*: size 96 and 64.*set size and max_size alike"):
        distill(other)


@pytest.mark.parametrize("family", ["retinanet", "ssdlite"])
def test_an_audit_and_a_rehearsal(family, small, weights, tmp_path):  # noqa: F811
    torch.manual_seed(0)
    save_detector(
        create_detector(NAMES[family], ("WBC", "x", "RBC", "Platelets")), tmp_path / "t.safetensors"
    )
    config = config_of(NAMES[family], NAMES[family], small, weights, None, loss="kd + box")
    given = {"teacher": {"weights": str(tmp_path / "t.safetensors"), "train": False}}
    config = build_config(merge(config.model_dump(), given))
    found = audit_teacher(config, rows=20)
    assert found.teacher.classes == 4
    assert rehearse(config, Trials()).student > 0


def test_a_listing_of_levels():
    lines = list(listing("features", SMALL["retinanet"]))
    assert [line.split()[0] for line in lines[1:]] == ["p3", "p4", "p5", "p6", "p7", BOX]
