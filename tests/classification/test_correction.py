"""The correction of a teacher in a run: what is said of the views that it is fitted on."""

import torch

from outgrow.classification import correction
from outgrow.classification.data import open_run_data, train_loader
from outgrow.knowledge import wrong_rows
from outgrow.models import create_model
from outgrow.models.taps import PENULTIMATE
from outgrow.teacher import Teacher
from outgrow.teacher.correction import CorrectionReport
from outgrow.teacher.correction_fit import Candidate
from outgrow.training.config import build_config
from outgrow.training.progress import Reporter
from outgrow.training.task import RunContext


def test_of_a_blended_view_either_label_is_right(monkeypatch):
    """As in training, where the share of wrong rows is shown beside it."""
    kept = Candidate("as it is", "none", None, 1.0, 0.5)

    def fit(self, *_, **__):  # takes seconds, and is of no interest here
        self.report = CorrectionReport((kept,), kept, kept, "", 60)

    monkeypatch.setattr(correction.BiasCorrection, "fit", fit)
    data_options = {"source": "digits", "train_rows": 60, "workers": 0, "augment": {"mixup": 1.0}}
    config = build_config({"data": data_options, "teacher": {"train": True, "rows": "disjoint"}})
    data, device = open_run_data(config), torch.device("cpu")
    torch.manual_seed(0)
    network = create_model("cifar/resnet8", classes=data.classes)
    teacher = Teacher(network, taps=(PENULTIMATE,))
    views = train_loader(config, config.train, data.train, [network], device)
    run = RunContext(config, device, Reporter())
    _, facts = correction.fit_correction(run, data, teacher, network, views, foreign=False)
    outputs, target = correction._outputs_on_views(run, teacher, views)
    wrong = wrong_rows(outputs.logits, target)
    assert facts["wrong_rate"] == float(wrong.float().mean())
    assert int(wrong.sum()) < int((outputs.logits.argmax(1) != target.label).sum())


def test_what_a_run_has_not_written_is_not_read_again(tmp_path):
    """Teachers of equal weights have no file of weights: a run that goes on does not warn of it."""
    run = RunContext(build_config({}), torch.device("cpu"), Reporter(), tmp_path, True)
    (tmp_path / "checkpoint.pt").touch()
    assert correction.kept(run, "mixture") is None
    (tmp_path / "mixture.safetensors").touch()
    assert correction.kept(run, "mixture") == tmp_path / "mixture.safetensors"
    (tmp_path / "checkpoint.pt").unlink()
    assert correction.kept(run, "mixture") is None
