"""A teacher without a classifier: a backbone of features, with a linear probe."""

import json
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from outgrow import PENULTIMATE, BiasCorrection, Outputs, Taps, Teacher
from outgrow.classification import correction as corrections
from outgrow.classification.evaluation import evaluate_classifier
from outgrow.models import create_model, feature_paths, head_of, load_weights, save_student
from outgrow.models.structure import has_head, heads_of
from outgrow.outputs import Target
from outgrow.run import distill
from outgrow.run.audit import audit_teacher
from outgrow.run.distillation import fill_cache
from outgrow.run.rehearsal import Trials, rehearse
from outgrow.teacher.inference import fold_norms
from outgrow.training.config import build_config, merge
from outgrow.training.progress import Reporter
from tests.classification.test_names import Notes

SIZE = "img_size=32&patch_size=8&depth=2&embed_dim=32&num_heads=2"
VIT = f"timm/vit_tiny_patch16_224?num_classes=0&{SIZE}"
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
}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> Path:
    """Random weights of a backbone, as somebody publishes them: no classifier, no metadata."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("backbone") / "vit.safetensors"
    save_file(create_model(VIT).net.state_dict(), path)
    return path


def options(backbone: Path, *more: dict) -> dict:
    return merge(RUN, {"teacher": {"name": VIT, "weights": str(backbone)}}, *more)


class TestNetwork:
    def test_it_has_features_and_no_logits(self):
        network = create_model(VIT).eval()
        images = torch.rand(3, 3, 32, 32)
        outputs = Taps(network, [*feature_paths(network), PENULTIMATE])(images)
        assert (network.num_classes, network.classes, has_head(network)) == (0, None, False)
        assert network(images).shape == outputs.logits.shape == (3, 0)
        assert torch.equal(outputs.features[PENULTIMATE], network.net(network.prepare(images)))

    @pytest.mark.parametrize("name", ["resnet10t", "tf_efficientnet_lite0", "convnext_atto"])
    def test_the_features_are_what_the_classifier_would_read(self, name):
        torch.manual_seed(0)
        whole = create_model(f"timm/{name}", input_size=64).eval()
        bare = create_model(f"timm/{name}?num_classes=0", input_size=64).eval()
        bare.net.load_state_dict(whole.net.state_dict(), strict=False)
        images = torch.rand(2, 3, 64, 64)
        ours, theirs = (Taps(net, [PENULTIMATE])(images).features[PENULTIMATE] for net in (bare, whole))
        torch.testing.assert_close(ours, theirs)

    def test_backbones_that_are_published_so(self):
        with torch.device("meta"):
            assert create_model("timm/vit_small_patch14_dinov2").num_classes == 0

    def test_a_net_without_the_network_around_it(self):
        import timm

        net = timm.create_model("resnet10t", num_classes=0).eval()
        outputs = Teacher(net, taps=[PENULTIMATE])(torch.rand(2, 3, 32, 32))
        assert outputs.logits.shape == (2, 0)
        assert outputs.features[PENULTIMATE].shape == (2, 512)
        assert heads_of(net) == []
        with pytest.raises(
            ValueError, match=r"head_of: needs a net with a classifier, got .*; build it with"
        ):
            head_of(net)

    def test_features_that_are_not_pooled(self):
        network = create_model("timm/resnet10t?num_classes=0&global_pool=")
        with pytest.raises(ValueError, match=r"needs pooled features .*, got shape \(2, 512, .*\); keep"):
            network(torch.rand(2, 3, 32, 32))

    def test_norms_are_folded(self):
        network = create_model("timm/resnet10t?num_classes=0").eval()
        _, note = fold_norms(network, torch.rand(2, 3, 64, 64), taps=[PENULTIMATE])
        assert re.match(r"[1-9]\d* of \d+ batch norms folded", note)

    def test_as_a_student_it_gets_a_classifier(self):
        assert create_model(VIT, 7).num_classes == 7


class TestWeights:
    def test_a_file_with_a_classifier_gives_its_backbone(self, tmp_path):
        made = create_model(VIT.replace("num_classes=0", "num_classes=6"))
        save_student(made, tmp_path / "w.safetensors")
        network = create_model(VIT, weights=tmp_path / "w.safetensors")
        assert (network.num_classes, network.classes) == (0, None)
        assert any("not used" in note and "head.weight" in note for note in network.notes)
        assert torch.equal(network.net.norm.weight, made.net.norm.weight)

    def test_what_only_training_needs_is_left_out(self, backbone, tmp_path):
        save_file({**load_file(backbone), "mask_token": torch.zeros(1, 32)}, tmp_path / "w.safetensors")
        assert load_weights(create_model(VIT), tmp_path / "w.safetensors", role="exact").head == "none"

    def test_another_net_is_still_refused(self, backbone, tmp_path):
        save_file({**load_file(backbone), "neck.weight": torch.zeros(1, 32)}, tmp_path / "w.safetensors")
        with pytest.raises(ValueError, match=r"1 unexpected in the file \(neck.weight\)"):
            create_model(VIT, weights=tmp_path / "w.safetensors")


class TestProbe:
    def data(self, rows: int = 60, width: int = 5) -> tuple[Outputs, torch.Tensor]:
        torch.manual_seed(0)
        label = torch.arange(3).repeat_interleave(rows // 3)
        features = torch.randn(rows, width) + 2 * F.one_hot(label, width)
        return Outputs(torch.zeros(rows, 0), {PENULTIMATE: features}), label

    def test_it_is_the_regression_that_scikit_learn_fits(self):
        from sklearn.linear_model import LogisticRegression

        outputs, label = self.data()
        probe = BiasCorrection(3).fit(outputs, label)
        x = outputs.features[PENULTIMATE].double()
        mean, deviation = x.mean(0), x.std(0, correction=0)
        scaled = ((x - mean) / deviation).numpy()
        # ours also pulls the bias to zero: a constant input does the same there
        with_one = torch.cat([torch.from_numpy(scaled), torch.ones(len(x), 1, dtype=x.dtype)], 1).numpy()
        ridge = probe.report.chosen.ridge
        for fold in range(5):
            model = LogisticRegression(C=1 / ridge, fit_intercept=False, tol=1e-8, max_iter=1000)
            others = (probe.fold_of != fold).numpy()
            model.fit(with_one[others], label.numpy()[others])
            row = (probe.fold_of == fold).nonzero()[:1, 0]
            ours = probe(outputs, index=row.expand(len(x))).logits.softmax(1)
            assert torch.allclose(ours.double(), torch.from_numpy(model.predict_proba(with_one)), atol=1e-3)

    def test_only_heads_on_the_features_are_tried(self):
        outputs, label = self.data()
        probe = BiasCorrection(3).fit(outputs, label)
        assert {candidate.source for candidate in probe.report.candidates} == {"features"}
        assert probe.report.raw is None
        with pytest.raises(
            ValueError, match=r"needs logits or features\['penultimate'\], got neither; build"
        ):
            BiasCorrection(3).fit(Outputs(torch.zeros(60, 0)), label)

    def test_no_row_is_judged_by_a_probe_that_has_seen_its_label(self):
        """With as many random features as rows a probe knows the labels by heart; out of fold it knows nothing."""
        torch.manual_seed(0)
        label = torch.arange(3).repeat(40)
        outputs = Outputs(torch.zeros(120, 0), {PENULTIMATE: torch.randn(120, 200)})
        probe = BiasCorrection(3).fit(outputs, label)
        seen = (probe(outputs).logits.argmax(1) == label).float().mean()
        unseen = (probe(outputs, index=torch.arange(120)).logits.argmax(1) == label).float().mean()
        assert seen >= 0.9
        assert unseen < 0.55
        assert probe.report.chosen.accuracy == pytest.approx(float(unseen), abs=1e-6)

    def test_every_fold_has_its_share_of_every_class(self):
        label = torch.tensor([0] * 50 + [1] * 10 + [2] * 5)
        torch.manual_seed(1)
        order = torch.randperm(65).repeat(2)  # two views of an image share its fold
        outputs = Outputs(torch.zeros(130, 0), {PENULTIMATE: torch.randn(130, 4)})
        probe = BiasCorrection(3).fit(outputs, Target(label[order], index=order))
        for number, count in enumerate((10, 2, 1)):
            counts = torch.bincount(probe.fold_of[label == number].long(), minlength=5)
            assert counts.tolist() == [count] * 5

    def test_saved_and_read(self, tmp_path):
        outputs, label = self.data()
        probe = BiasCorrection(3).fit(outputs, label)
        probe.save(tmp_path / "p.safetensors")
        again = BiasCorrection.load(tmp_path / "p.safetensors")
        index = torch.arange(60)
        assert torch.equal(again(outputs, index=index).logits, probe(outputs, index=index).logits)


class TestRun:
    @pytest.mark.parametrize(
        "method",
        [
            {"preset": "outgrow", "rule": "pair"},
            {"loss": "kd + fitnet + rkd"},
            {"loss": "dkd", "rule": "swap"},
        ],
    )
    def test_it_teaches_as_any_other(self, backbone, tmp_path, method):
        report = Notes()
        record = distill(options(backbone, {"method": method, "out": str(tmp_path)}), reporter=report)
        assert record["teacher"]["classes"] == 0
        assert record["teacher"]["top1"] == record["teacher"]["top1_corrected"] > 30
        chosen = record["correction"]["chosen"]
        assert chosen["source"] == "features"
        assert chosen["accuracy"] > 0.3
        assert any("fitting a linear probe of its 32 features" in text for text in report.said)
        assert any("with the linear probe: top-1" in text for text in report.said)
        assert "wrong_rate" in record["epochs"][0]
        kept = BiasCorrection.load(tmp_path / "correction.safetensors")
        assert kept.report.chosen.accuracy == chosen["accuracy"]
        assert (tmp_path / "index.html").is_file()

    def test_a_resumed_run_has_the_same_probe(self, backbone, tmp_path, monkeypatch):
        settings = options(backbone, {"out": str(tmp_path)})
        distill(settings)
        before = (tmp_path / "correction.safetensors").read_bytes()
        monkeypatch.setattr(BiasCorrection, "fit", lambda *_, **__: pytest.fail("fitted again"))
        again = distill(merge(settings, {"train": {"epochs": 2}}), resume=True)
        assert (tmp_path / "correction.safetensors").read_bytes() == before
        assert again["correction"]["chosen"]["source"] == "features"
        assert len(again["epochs"]) == 2

    def test_a_damaged_probe_is_fitted_again(self, backbone, tmp_path):
        settings = options(backbone, {"out": str(tmp_path)})
        distill(settings)
        before = (tmp_path / "correction.safetensors").read_bytes()
        (tmp_path / "correction.safetensors").write_bytes(before[:100])
        report = Notes()
        distill(merge(settings, {"train": {"epochs": 2}}), resume=True, reporter=report)
        assert any(text.startswith("warning: ") and "correction.safetensors" in text for text in report.said)
        assert (tmp_path / "correction.safetensors").read_bytes() == before

    def test_a_cache_has_its_logits(self, backbone, tmp_path):
        settings = options(backbone, {"teacher": {"cache": str(tmp_path / "cache")}})
        fill_cache(build_config(settings), epochs=1)
        cached, computed = distill(settings), distill(options(backbone))
        assert cached["student"]["nll"] == pytest.approx(computed["student"]["nll"], abs=0.02)

    def test_more_features_than_fit_are_of_fewer_images(self, backbone, monkeypatch):
        monkeypatch.setattr(corrections, "FEATURE_BYTES", 32 * 4 * 120)
        report = Notes()
        record = distill(options(backbone), reporter=report)
        assert any("fitted on 100 of 200 training views" in text for text in report.said)
        assert record["correction"]["num_images"] == 100

    def test_a_comparison_rehearses_it(self, backbone):
        cost = rehearse(build_config(options(backbone)), Trials())
        assert cost.mapped

    def test_a_teacher_that_is_trained_here_gets_a_classifier(self, backbone):
        layer = {"teacher": {"train": True}, "teacher_train": {"epochs": 1}}
        with pytest.warns(UserWarning, match="the head is new"):
            record = distill(options(backbone, layer))
        assert record["teacher"]["classes"] == 10

    def test_what_it_cannot(self, backbone):
        with pytest.raises(
            ValueError, match=r"needs a classifier, got a backbone without one .*never; leave that"
        ):
            distill(options(backbone, {"teacher": {"correct": "never"}}))
        with pytest.raises(ValueError, match=r"needs weights, got none"):
            distill(merge(RUN, {"teacher": {"name": VIT}}))
        with pytest.raises(
            ValueError, match=r"evaluate .*: needs a classifier, got a backbone .*; evaluate a student"
        ):
            evaluate_classifier(
                "digits", VIT, weights=backbone, label=None, batch_size=10, workers=0, report=Reporter()
            )

    def test_an_audit_fits_one_too(self, backbone, tmp_path):
        plain = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}  # what these random weights like better
        record = audit_teacher(options(backbone, {"out": str(tmp_path), "teacher": plain}), rows=300)
        verdict = next(one for one in record.verdicts if one.kind == "mapped")
        assert "no classifier; with a linear probe" in verdict.text
        assert record.teacher.matched == "by a linear probe"
        assert json.loads((tmp_path / "audit.json").read_text())


class TestBackbonesOfHuggingFace:
    """A model that was saved without a classifier teaches through a probe, as one of timm."""

    SHAPE = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "image_size": 32,
        "patch_size": 8,
    }

    def saved(self, folder: Path, kind: str, **more):
        transformers = pytest.importorskip("transformers")
        torch.manual_seed(0)
        shape = (
            {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
            if kind == "ResNet"
            else self.SHAPE
        )
        config = getattr(transformers, f"{kind}Config")(**shape)
        net = getattr(transformers, f"{kind}Model")(config, **more).eval()
        net.save_pretrained(folder)
        stated = {
            "image_mean": [0.1, 0.2, 0.3],
            "image_std": [0.4, 0.5, 0.6],
            "size": {"height": 32, "width": 32},
        }
        (folder / "preprocessor_config.json").write_text(json.dumps(stated))
        return net

    @pytest.mark.parametrize(
        "kind, more, width",
        [("ViT", {}, 16), ("ViT", {"add_pooling_layer": False}, 16), ("Dinov2", {}, 16), ("ResNet", {}, 16)],
    )
    def test_its_features_are_the_models_own(self, tmp_path, kind, more, width):
        net = self.saved(tmp_path, kind, **more)
        network = create_model(f"hf/{tmp_path}").eval()
        assert (network.num_classes, network.classes, has_head(network)) == (0, None, False)
        images = torch.rand(3, 3, 32, 32)
        found = net(pixel_values=network.prepare(images))
        pooled = None if more else found.pooler_output
        wanted = found.last_hidden_state[:, 0] if pooled is None else pooled.flatten(1)
        outputs = Taps(network, [PENULTIMATE])(images)
        assert outputs.logits.shape == (3, 0)
        torch.testing.assert_close(outputs.features[PENULTIMATE], wanted)
        assert wanted.shape == (3, width)

    def test_as_a_student_it_gets_a_head(self, tmp_path):
        self.saved(tmp_path, "ViT")
        student = create_model(f"hf/{tmp_path}", 3)
        assert student.num_classes == 3
        assert has_head(student)

    def test_weights_of_another_net_are_refused(self, tmp_path):
        self.saved(tmp_path, "ViT")
        state = load_file(tmp_path / "model.safetensors")
        save_file(
            {name: value for name, value in state.items() if "layernorm" not in name},
            tmp_path / "model.safetensors",
            metadata={"format": "pt"},
        )
        with pytest.raises(
            ValueError, match=r"needs weights for all of the backbone, got none for .*layernorm"
        ):
            create_model(f"hf/{tmp_path}")

    def test_a_model_of_images_and_text_is_refused(self, tmp_path):
        transformers = pytest.importorskip("transformers")
        tower = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        config = transformers.CLIPConfig(
            vision_config={**tower, "image_size": 32, "patch_size": 8},
            text_config={**tower, "vocab_size": 100},
            projection_dim=16,
        )
        transformers.CLIPModel(config).save_pretrained(tmp_path)
        with pytest.raises(
            ValueError,
            match=r"needs a model that takes images alone, got CLIPModel, which takes input_ids; save",
        ):
            create_model(f"hf/{tmp_path}")

    def test_a_run(self, tmp_path):
        self.saved(tmp_path / "net", "ViT")
        record = distill(build_config(merge(RUN, {"teacher": {"name": f"hf/{tmp_path / 'net'}"}})))
        assert record["teacher"]["classes"] == 0
        assert record["correction"]["chosen"]["source"] == "features"
