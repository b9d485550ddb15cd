"""A run with several teachers."""

import json

import pytest
import torch

from outgrow.classification.mixture import joined
from outgrow.detection import task as detection
from outgrow.models import create_model, save_student
from outgrow.outputs import Target
from outgrow.run import distill
from outgrow.run.audit import audit_teacher
from outgrow.run.distillation import _check_task, fill_cache
from outgrow.run.rehearsal import Trials, rehearse
from outgrow.teacher import Mixture
from outgrow.training.config import assignments, build_config, merge
from outgrow.training.record import read_record
from tests.classification.test_names import Notes

RUN = {
    "data": {
        "source": "digits",
        "workers": 0,
        "train_rows": 200,
        "augment": {"crop_padding": 0, "flip": False},
    },
    "student": {"name": "cifar/resnet8"},
    "method": {"preset": "kd"},
    "train": {"epochs": 1, "batch_size": 50},
    "teacher": {"name": "cifar/resnet8"},
}


@pytest.fixture(scope="module")
def teachers(tmp_path_factory) -> dict[str, str]:
    """Files of a teacher trained on other images, one that knows nothing, and one of other classes."""
    folder = tmp_path_factory.mktemp("teachers")
    distill(
        merge(
            RUN,
            {
                "teacher": {"train": True, "rows": "disjoint"},
                "teacher_train": {"epochs": 3, "batch_size": 50},
                "out": str(folder / "run"),
            },
        )
    )
    (folder / "run" / "teacher.safetensors").rename(folder / "good.safetensors")
    torch.manual_seed(0)
    useless = create_model("cifar/resnet8", classes=tuple("0123456789"))
    with torch.no_grad():
        useless.net.fc.weight.zero_()
    save_student(useless, folder / "useless.safetensors")
    save_student(create_model("cifar/resnet8", 7), folder / "foreign.safetensors")
    return {path.stem: str(path) for path in folder.glob("*.safetensors")}


def options(teachers: dict[str, str], *others: str, **more: object) -> dict:
    layer = {
        "teacher": {
            "weights": teachers["good"],
            "others": [{"name": "cifar/resnet8", "weights": teachers[other]} for other in others],
        }
    }
    return merge(RUN, layer, more)


def test_the_useless_one_of_two_gets_no_weight(teachers, tmp_path):
    report = Notes()
    record = distill(options(teachers, "useless", out=str(tmp_path / "run")), reporter=report)
    found = record["mixture"]
    assert [one["weight"] for one in found["members"]] == pytest.approx([1.0, 0.0], abs=0.02)
    assert found["members"][0]["nll_alone"] < found["members"][1]["nll_alone"]
    assert found["nll"] == pytest.approx(found["members"][0]["nll_alone"], abs=1e-2)
    assert record["teacher"]["name"] == "cifar/resnet8 + cifar/resnet8"
    assert record["teacher"]["top1"] == pytest.approx(found["members"][0]["top1"], abs=0.5)
    assert any("together" in text for text in report.said)
    page = (tmp_path / "run" / "index.html").read_text()
    assert "The teachers" in page
    assert "out of fold" in page
    assert read_record(tmp_path / "run" / "record.json").mixture.members[1].weight < 0.02
    assert Mixture.load(tmp_path / "run" / "mixture.safetensors").num_teachers == 2
    alone = distill(options(teachers))
    assert "mixture" not in alone
    if found["members"][1]["weight"] == 0:
        assert record["student"]["nll"] == pytest.approx(alone["student"]["nll"], abs=1e-6)


def test_teachers_of_other_classes_are_mapped_first(teachers, tmp_path):
    record = distill(
        options(teachers, "foreign", method={"preset": "outgrow", "rule": "pair"}, out=str(tmp_path / "run"))
    )
    first, second = record["mixture"]["members"]
    assert second["classes"] == 7
    assert second["correction"]["raw"] is None
    assert second["top1_corrected"] > 15
    assert first["weight"] > second["weight"]
    assert first["weight"] + second["weight"] == pytest.approx(1, abs=1e-6)
    names = {path.name for path in (tmp_path / "run").glob("*.safetensors")}
    assert {"correction.safetensors", "correction-2.safetensors", "mixture.safetensors"} <= names
    assert "The teachers" in (tmp_path / "run" / "index.html").read_text()


def test_a_resumed_run_has_the_same_weights(teachers, tmp_path, monkeypatch):
    settings = options(teachers, "foreign", out=str(tmp_path / "run"))
    distill(settings)
    before = (tmp_path / "run" / "mixture.safetensors").read_bytes()
    monkeypatch.setattr(Mixture, "fit", lambda *_, **__: pytest.fail("fitted again"))
    again = distill(merge(settings, {"train": {"epochs": 2}}), resume=True)
    assert (tmp_path / "run" / "mixture.safetensors").read_bytes() == before
    assert len(again["epochs"]) == 2
    with pytest.raises(ValueError, match="teacher"):  # another second teacher is another run
        distill(
            merge(options(teachers, "useless", out=str(tmp_path / "run")), {"train": {"epochs": 3}}),
            resume=True,
        )


def test_nothing_of_several_teachers_stays_when_a_run_of_one_replaces_it(teachers, tmp_path):
    distill(options(teachers, "foreign", out=str(tmp_path / "run")))
    distill(options(teachers, out=str(tmp_path / "run")), overwrite=True)
    assert {path.name for path in (tmp_path / "run").glob("*.safetensors")} == {"student.safetensors"}


def test_a_cache_has_the_mixed_logits(teachers, tmp_path):
    def cached(*others: str) -> dict:
        return options(
            teachers, *others, teacher={**options(teachers, *others)["teacher"], "cache": str(tmp_path)}
        )

    filled = fill_cache(build_config(cached("foreign")), epochs=1)
    record, computed = distill(cached("foreign")), distill(options(teachers, "foreign"))
    assert record["student"]["nll"] == pytest.approx(computed["student"]["nll"], abs=0.02)
    assert fill_cache(build_config(cached("foreign")), epochs=1)["folder"] == filled["folder"]
    assert fill_cache(build_config(cached("useless")), epochs=1)["folder"] != filled["folder"]


def test_memorised_rows_fit_no_weights(teachers, tmp_path):
    layer = {
        "teacher": {"train": True},
        "teacher_train": {"epochs": 30, "batch_size": 50, "lr": 0.1},
        "out": str(tmp_path / "run"),
    }
    distill(merge(RUN, {"data": {"train_rows": 60}}, layer))
    settings = options({**teachers, "memorised": str(tmp_path / "run" / "teacher.safetensors")}, "memorised")
    with pytest.warns(UserWarning, match=r"needs teachers that were not trained on the training images, got"):
        record = distill(merge(settings, {"data": {"train_rows": 60}}))
    assert [one["weight"] for one in record["mixture"]["members"]] == [0.5, 0.5]
    assert record["mixture"].get("nll") is None


def test_one_that_rules_a_class_out_is_infinitely_unlikely(teachers, tmp_path):
    (tmp_path / "net.py").write_text(
        "import torch\n\n\nclass Net(torch.nn.Module):\n    def __init__(self, n=10):\n        super().__init__()\n"
        "        self.fc = torch.nn.Linear(3, n)\n\n    def forward(self, x):\n        logits = self.fc(x.mean((2, 3)))\n"
        "        return torch.cat([torch.full_like(logits[:, :1], -torch.inf), logits[:, 1:]], dim=1)\n"
    )
    never = create_model(f"py:{tmp_path / 'net.py'}:Net", classes=tuple("0123456789"))
    save_student(never, tmp_path / "never.safetensors")
    other = {"name": never.name, "weights": str(tmp_path / "never.safetensors")}
    layer = {"teacher": {"others": [other], "correct": "never"}, "out": str(tmp_path / "run")}
    found = distill(merge(options(teachers), layer))["mixture"]
    assert found["members"][1]["nll_alone"] is None
    assert found["nll"] == pytest.approx(found["members"][0]["nll_alone"], abs=0.1)
    page = (tmp_path / "run" / "index.html").read_text()
    assert "most likely. Each image has weights" in page
    assert "<td>infinite</td>" in page


def test_a_comparison_rehearses_it(teachers):
    one, two = (rehearse(build_config(options(teachers, *others)), Trials()) for others in ((), ("foreign",)))
    assert two.teacher_pass > 0
    assert one.teacher == two.teacher


def test_from_the_command_line(teachers):
    text = f"teacher.others=[{{name: cifar/resnet8, weights: {teachers['foreign']}}}]"
    config = build_config(RUN, assignments([text]))
    assert config.teacher.others[0].weights == teachers["foreign"]
    assert json.loads(config.model_dump_json())["teacher"]["others"][0]["pretrained"] is False


def test_what_it_cannot(teachers):
    def run(*layers: dict) -> None:
        distill(merge(options(teachers, "useless"), *layers))

    with pytest.raises(
        ValueError, match=r"teacher.others: needs teachers that are there, got one that is to be"
    ):
        run({"teacher": {"train": True, "weights": None}})
    with pytest.raises(
        ValueError, match=r"teacher.others: needs losses that read only logits, got .*; choose"
    ):
        run({"method": {"loss": "kd + fitnet"}})
    with pytest.raises(
        ValueError, match=r"teacher.others\[0\] cifar/resnet8: needs weights, got none; add `weights"
    ):
        run({"teacher": {"others": [{"name": "cifar/resnet8"}]}})
    with pytest.raises(ValueError, match=r"teacher.others\[0\]: needs the name of a model, got 'none'; give"):
        run({"teacher": {"others": [{"weights": "resnet8.safetensors"}]}})
    with pytest.raises(ValueError, match=r"audit: needs one teacher, got 2 .*; audit each"):
        audit_teacher(options(teachers, "useless"), rows=300)
    with pytest.raises(ValueError, match=r"needs the data's 10 classes, got a model with 7"):
        distill(
            options(
                teachers, "foreign", teacher={**options(teachers, "foreign")["teacher"], "correct": "never"}
            )
        )
    with pytest.raises(
        ValueError, match=r"teacher.others: needs images with one label each, got --data coco:x"
    ):
        _check_task(build_config(options(teachers, "useless", data={"source": "coco:x"})), detection.TASK)


def test_a_missing_file_is_found_before_a_teacher_is_computed(teachers):
    report = Notes()
    with pytest.raises(ValueError, match=r"needs a file of weights, got 'nowhere.safetensors'"):
        distill(options({**teachers, "nowhere": "nowhere.safetensors"}, "nowhere"), reporter=report)
    assert not any("top-1" in text for text in report.said)


def test_targets_are_joined():
    one = Target(torch.tensor([1, 2]), index=torch.tensor([5, 6]))
    both = joined([one, one])
    assert both.label.tolist() == [1, 2, 1, 2]
    assert both.index.tolist() == [5, 6, 5, 6]
    assert both.partner is None
