"""``outgrow evaluate`` says how far its numbers depend on which images were tested."""

import json
from dataclasses import asdict

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from outgrow.data import open_data
from outgrow.detection import evaluation as detection
from outgrow.detection.data import open_boxes
from outgrow.detection.families.create import create_detector, save_detector
from outgrow.detection.intervals import resample
from outgrow.detection.scores import coco_scores
from outgrow.models import create_model, save_student
from outgrow.run import cli
from outgrow.run.evaluation import evaluate_model, summary
from outgrow.teacher.counts import interval
from outgrow.training.progress import TextReporter
from tests.detection.test_scores import imitate

DETECTOR = "fasterrcnn:timm/mobilenetv1_025_128?size=96&levels=3-5&rois=16&proposals=60&channels=8&head=16"


def colours(folder, each):
    """A source with so many pictures of each colour in each split, and the weights of a net that knows their names."""
    for split in ("train", "val"):
        for number, name in enumerate(("green", "red")):
            for k in range(each):
                path = folder / "photos" / split / name / f"{k}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (32, 32), (200 * number, 9 * k, 99 * (split == "val"))).save(path)
    network = create_model("cifar/resnet8", 2)
    network.classes = ("green", "red")
    save_student(network, folder / "net.safetensors")
    return f"folder:{folder / 'photos'}", folder / "net.safetensors"


class TestClassifier:
    def test_classes_that_the_data_lack_are_no_answers_and_that_is_said(self, tmp_path, capsys):
        """Without them a model may be right more often than `outgrow predict` is."""
        source, _ = colours(tmp_path, 2)
        network = create_model("cifar/resnet8", 4)
        network.classes = ("blue", "green", "red", "white")
        with torch.no_grad():
            head = [one for one in network.modules() if isinstance(one, torch.nn.Linear)][-1]
            head.weight.zero_()
            head.bias.copy_(torch.tensor([9.0, 1.0, 0.0, 5.0]))
        file = tmp_path / "four.safetensors"
        save_student(network, file)
        result = evaluate_model(source, "cifar/resnet8", weights=file, workers=0, reporter=TextReporter())
        assert result["top1"] == 50.0
        said = capsys.readouterr().out
        assert (
            "2 of its 4 classes are not in the data (blue, white); it chooses among the other 2, and predict among all"
            in said
        )

    def test_top1_and_top5_have_wilsons_interval(self, tmp_path, capsys):
        file = tmp_path / "net.safetensors"
        torch.manual_seed(0)
        network = create_model("cifar/resnet8", 10)
        network.classes = open_data("digits").classes
        save_student(network, file)
        result = evaluate_model("digits", "cifar/resnet8", weights=file, workers=0, reporter=TextReporter())
        images = len(open_data("digits").test)
        assert set(result["intervals"]) == {"top1", "top5"}
        ends = {}
        for key, found in result["intervals"].items():
            low, high = interval(round(result[key] * images / 100), images)
            assert found == {"low": low, "high": high, "images": images, "reason": None}
            assert low < result[key] < high
            ends[key] = f"{result[key]:.2f} % [{low:.1f}, {high:.1f}]"
        *_, line, last = capsys.readouterr().out.splitlines()
        assert line.startswith(f"cifar/resnet8: top-1 {ends['top1']}, top-5 {ends['top5']}, nll ")
        last = json.loads(last)
        assert last.pop("time") >= 0
        assert last == {"event": "result", **result}

    def test_five_classes_are_always_among_the_top_five(self, tmp_path):
        source, weights = colours(tmp_path, 3)
        result = evaluate_model(source, "cifar/resnet8", weights=weights, workers=0)
        assert result["top5"] == 100
        assert result["intervals"]["top5"] == {
            "low": None,
            "high": None,
            "images": 6,
            "reason": "2 classes",
        }
        assert "top-5 100.00 % (2 classes: no interval)" in summary(result)


class TestFaults:
    """A source with a fault that a run leaves out can be evaluated on like that run."""

    @pytest.fixture
    def photos(self, tmp_path):
        source, _ = colours(tmp_path, 2)
        path = tmp_path / "photos" / "val" / "red" / "1.png"
        path.write_bytes(path.read_bytes()[:40])
        return source

    def run(self, photos, tmp_path, *options):
        words = ["evaluate", "--data", photos, "--model", "cifar/resnet8", "--workers", "0"]
        words += ["--weights", str(tmp_path / "net.safetensors"), "--log", "json", *options]
        return CliRunner().invoke(cli.app, words, catch_exceptions=False).stdout

    @pytest.mark.filterwarnings("ignore:data. left out 1 of 4 images")
    def test_a_broken_image_is_left_out_where_that_is_asked(self, photos, tmp_path):
        with pytest.raises(ValueError, match=r"needs images that Pillow can decode"):
            self.run(photos, tmp_path)
        out = self.run(photos, tmp_path, "--set", "data.on_fault=skip")
        assert json.loads(out.splitlines()[-1])["images"] == 3

    def test_another_field_is_refused(self, photos, tmp_path):
        with pytest.raises(ValueError, match=r"evaluate --set: needs data.on_fault.* got data.size; leave"):
            self.run(photos, tmp_path, "--set", "data.on_fault=skip", "--set", "data.size=64")

    def test_boxes_may_have_faults_too(self, monkeypatch, capsys):
        def opened(source, *, on_fault):
            raise ValueError(on_fault)

        monkeypatch.setattr(detection, "open_boxes", opened)
        with pytest.raises(ValueError, match=r"^skip$"):
            evaluate_model("coco:a:b", DETECTOR, label="kind", on_fault="skip", reporter=TextReporter())
        assert capsys.readouterr().out == "warning: --label has no effect on a detector\n"


class TestDetector:
    @pytest.fixture
    def score(self, shared_data, tmp_path, monkeypatch):
        """The result of a detector that finds what ``imitate`` says, on the first test images of the blood cells."""
        whole = json.loads((shared_data / "bccd/annotations/instances_test.json").read_text())
        file = tmp_path / "net.safetensors"
        detector = create_detector(DETECTOR, ("RBC", "WBC", "Platelets"))
        save_detector(detector, file)

        def result(images):
            kept = whole["images"][:images]
            ids = {image["id"] for image in kept}
            boxes = [one for one in whole["annotations"] if one["image_id"] in ids]
            (tmp_path / "instances_test.json").write_text(
                json.dumps({**whole, "images": kept, "annotations": boxes})
            )
            source = f"coco:{shared_data / 'bccd'}:{tmp_path}"
            data = open_boxes(source)
            truth = data.test.annotations, data.test.image_ids, data.category_ids
            found = imitate(*truth, 0)
            monkeypatch.setattr(
                detection,
                "evaluate_detector",
                lambda *_, **__: detection.Found(found, coco_scores(*truth, found)),
            )
            return evaluate_model(source, DETECTOR, weights=file, workers=0), resample(*truth, found)

        return result

    def test_its_aps_have_those_of_the_draws(self, score):
        result, drawn = score(72)
        found = result["intervals"]
        assert found.pop("per_class") == {name: asdict(one) for name, one in drawn.per_class.items()}
        assert found == {name: asdict(one) for name, one in drawn.intervals.items()}
        assert {"ap", "ap50", "ap75"} <= set(found)
        assert found["ap"]["low"] < result["ap"] < found["ap"]["high"]
        shown = {"box AP": "ap", "AP50": "ap50", "AP75": "ap75"}
        numbers = ", ".join(
            f"{name} {result[key]:.2f} [{found[key]['low']:.1f}, {found[key]['high']:.1f}]"
            for name, key in shown.items()
        )
        assert f": {numbers} on 72 images" in summary(result)

    def test_few_images_have_none_and_say_why(self, score):
        result, _ = score(4)
        assert result["intervals"]["ap"] == {"low": None, "high": None, "images": 4, "reason": "4 images"}
        assert f"box AP {result['ap']:.2f} (4 images: no interval), AP50" in summary(result)


def test_what_has_no_number_is_said():
    about = {"model": "a", "images": 2, "parameters": 3}
    nothing = {"metric": "ap", "ap": None, "ap50": None, "ap75": None, "intervals": {"per_class": {}}}
    assert summary({**about, **nothing}).startswith("a: box AP none (no such object), AP50 none")
    one = {"low": 1.0, "high": 2.0, "images": 2, "reason": None}
    infinite = {"metric": "top1", "top1": 1.5, "top5": 1.5, "nll": None}
    line = summary({**about, **infinite, "intervals": {"top1": one, "top5": one}})
    assert (
        line == "a: top-1 1.50 % [1.0, 2.0], top-5 1.50 % [1.0, 2.0], nll infinite on 2 images (3 parameters)"
    )
