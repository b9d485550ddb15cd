"""The bias of a teacher: what is systematic is found, what is not is left alone."""

import pytest
import torch

import outgrow
from outgrow import PENULTIMATE, Outputs, Target
from outgrow.teacher.correction import BiasCorrection, CorrectedTeacher
from outgrow.teacher.folds import as_index


def teacher_like(label, classes, *, strength=3.0, seed=0):
    """Logits that are right most of the time."""
    generator = torch.Generator().manual_seed(seed)
    noise = 1.2 * torch.randn(len(label), classes, generator=generator)
    return noise + strength * torch.nn.functional.one_hot(label, classes)


def labels(rows=600, classes=6, seed=0):
    return torch.randint(classes, (rows,), generator=torch.Generator().manual_seed(seed))


def accuracy(logits, label):
    return (logits.argmax(dim=1) == label).float().mean().item()


def test_a_permuted_teacher_is_put_right():
    label = labels()
    logits = teacher_like(label, 6)
    permuted = logits[:, torch.tensor([3, 0, 5, 1, 2, 4])]
    correction = BiasCorrection(6).fit(permuted, label, torch.arange(600))
    assert correction.source == "logits"
    assert accuracy(permuted, label) < 0.2
    mapped = correction(permuted, index=torch.arange(600)).logits
    assert accuracy(mapped, label) > accuracy(logits, label) - 0.02
    assert correction.report.chosen.accuracy == pytest.approx(accuracy(mapped, label), abs=1e-6)
    fresh = labels(seed=9)
    fresh_logits = teacher_like(fresh, 6, seed=9)[:, torch.tensor([3, 0, 5, 1, 2, 4])]
    assert accuracy(correction(fresh_logits).logits, fresh) > 0.85


def test_random_labels_stay_at_chance_out_of_fold():
    logits, random = teacher_like(labels(), 6), labels(seed=5)
    correction = BiasCorrection(6).fit(logits, random, torch.arange(600))
    believed = correction(logits, index=torch.arange(600)).logits
    assert accuracy(believed, random) < 1 / 6 + 3 * (1 / 6 * 5 / 6 / 600) ** 0.5
    assert all(c.accuracy < 0.25 for c in correction.report.candidates)


def test_no_row_sees_its_own_label():
    """Changing one image's label changes no map that corrects it."""
    label = labels(200)
    logits = teacher_like(label, 6)[:, torch.tensor([3, 0, 5, 1, 2, 4])]
    first = BiasCorrection(6).fit(logits, label, torch.arange(200))
    changed = label.clone()
    changed[17] = (label[17] + 1) % 6
    second = BiasCorrection(6).fit(logits, changed, torch.arange(200))
    assert first.report.chosen.ridge == second.report.chosen.ridge
    row = torch.tensor([17])
    torch.testing.assert_close(first(logits[row], index=row).logits, second(logits[row], index=row).logits)
    assert not torch.allclose(first(logits[row]).logits, second(logits[row]).logits)


def test_a_good_teacher_is_left_alone_bit_for_bit():
    label = labels(400)
    # logits that are exactly the log-posterior of this noise: calibrated and without bias
    logits = teacher_like(label, 6, strength=1.2**2) * (1.2**2 / 1.2**2)
    correction = BiasCorrection(6).fit(logits, label, torch.arange(400))
    assert correction.is_identity
    assert "as it is is used" in correction.report.reason
    assert correction(logits).logits is logits


def test_an_overconfident_teacher_gets_a_temperature():
    label = labels(2000)
    logits = 5 * teacher_like(label, 6, strength=1.44)
    correction = BiasCorrection(6).fit(logits, label)
    assert correction.source == "scale"
    assert torch.equal(correction(logits).logits.argmax(1), logits.argmax(1))
    assert correction.scale[-1].item() == pytest.approx(0.2, rel=0.1)


def test_other_classes_are_mapped():
    """50 classes of the teacher, 10 of the student's: five of the former make one of the latter."""
    fine = labels(3000, 50)
    logits, label = teacher_like(fine, 50, strength=4.0), fine % 10
    correction = BiasCorrection(10).fit(logits, label, torch.arange(3000))
    mapped = correction(logits, index=torch.arange(3000))
    assert mapped.logits.shape == (3000, 10)
    assert accuracy(mapped.logits, label) > 0.75
    assert correction.report.raw is None
    knowledge = outgrow.rectify(mapped, label, rule="pair")
    assert knowledge.wrong.float().mean() < 0.25


def test_features_are_used_where_they_say_more():
    label = labels(1500)
    logits = teacher_like(label // 3, 2, strength=3.0)
    features = teacher_like(label, 6)
    correction = BiasCorrection(6).fit(Outputs(logits, {PENULTIMATE: features}), label)
    assert correction.source == "features"
    mapped = correction(Outputs(logits, {PENULTIMATE: features}))
    assert accuracy(mapped.logits, label) > 0.8
    with pytest.raises(ValueError, match=r"was fitted on features\['penultimate'\], got none"):
        correction(logits)


def test_a_memorised_teacher_is_left_alone_with_a_warning():
    label, other = labels(500), labels(500, seed=4)
    seen = teacher_like(label, 6, strength=8.0)
    unseen = teacher_like(other, 6, strength=1.0, seed=4)
    with pytest.warns(UserWarning, match="it has memorised the former"):
        correction = BiasCorrection(6).fit(seen, label, held_out=(unseen, other))
    assert correction.is_identity
    seen_right, unseen_right = correction.report.memory
    assert seen_right > unseen_right + 0.02
    honest = teacher_like(other, 6, strength=8.0, seed=4)
    left = BiasCorrection(6).fit(
        seen, label, held_out=(honest, other)
    )  # no warning: warnings are errors here
    assert left.report.memory is None


def test_what_a_teacher_has_memorised_is_kept_in_the_file(tmp_path):
    label, other = labels(500), labels(500, seed=4)
    seen, unseen = teacher_like(label, 6, strength=8.0), teacher_like(other, 6, strength=1.0, seed=4)
    with pytest.warns(UserWarning, match="it has memorised the former"):
        correction = BiasCorrection(6).fit(seen, label, held_out=(unseen, other))
    correction.save(tmp_path / "correction.safetensors")
    assert BiasCorrection.load(tmp_path / "correction.safetensors").report == correction.report


@pytest.mark.parametrize("rows, strength, held", [(600, 0.15, 15), (4000, 0.05, 400)])
def test_a_teacher_near_chance_has_not_memorised(rows, strength, held):
    """Right on 12 % of many rows and on none of 15: chance does that in one case of seven. Right on none of 400 is no chance,
    but on the fitted rows it is hardly better than chance: it has nothing to remember."""
    label = labels(rows, 10)
    logits = teacher_like(label, 10, strength=strength)
    assert 0.10 < accuracy(logits, label) < 0.18
    other = labels(held, 10, seed=3)
    wrong = -10.0 * torch.nn.functional.one_hot(other, 10).float()
    correction = BiasCorrection(10).fit(logits, label, held_out=(wrong, other))  # a warning would be an error
    assert correction.report.memory is None
    assert "memorised" not in correction.report.reason


def test_a_weaker_ridge_than_0_3_is_tried_and_found():
    """Noise-free logits of other classes: the less penalty the better."""
    label = labels(4000, 4)
    logits = (
        6.0
        * torch.nn.functional.one_hot(label, 4).float()
        @ torch.randn(4, 7, generator=torch.Generator().manual_seed(1))
    )
    logits += 0.01 * torch.randn(4000, 7, generator=torch.Generator().manual_seed(2))
    report = BiasCorrection(4).fit(logits, label).report
    assert report.chosen.ridge < 0.3


def test_rows_that_were_not_fitted_get_the_mean_of_the_fold_maps():
    """So do rows of an index never seen, and all rows without an index. It is not a sixth fit on all rows."""
    label = labels(200)
    logits = teacher_like(label, 6)[:, torch.tensor([3, 0, 5, 1, 2, 4])]
    fitted = torch.arange(200) % 7 > 0  # as with a validation split: its numbers lie between the others
    index = torch.arange(200)
    correction = BiasCorrection(6).fit(logits[fitted], label[fitted], index[fitted])
    assert correction.source == "logits"
    of_folds = []
    for fold in range(5):
        row = (correction.fold_of == fold).nonzero()[:1, 0]
        of_folds.append(correction(logits, index=row.expand(200)).logits)
    mean = torch.stack(of_folds).mean(0)
    torch.testing.assert_close(correction(logits).logits, mean)
    for unseen in (index[~fitted], torch.full((5,), 200), torch.full((5,), 10**6), torch.full((5,), -1)):
        rows = slice(0, len(unseen))
        torch.testing.assert_close(correction(logits[rows], index=unseen).logits, mean[rows])
    assert not torch.allclose(correction(logits[fitted], index=index[fitted]).logits, mean[fitted])


def test_views_of_an_image_share_its_fold_and_its_weight():
    label = labels(100).repeat(3)
    index = torch.arange(100).repeat(3)
    logits = teacher_like(label, 6)[:, torch.tensor([1, 0, 2, 3, 4, 5])]
    correction = BiasCorrection(6).fit(logits, label, index)
    assert correction.report.num_images == 100
    assert len(correction.fold_of) == 100
    assert sorted(correction.fold_of.bincount().tolist()) == [20] * 5


def test_ignored_and_unknown_rows():
    label = labels(100)
    logits = teacher_like(label, 6)[:, torch.tensor([1, 0, 2, 3, 4, 5])]
    label[:10] = outgrow.IGNORE
    correction = BiasCorrection(6).fit(logits, label, torch.arange(100))
    everything = correction(logits).logits
    unknown = torch.tensor([3, 5000, -1])  # ignored, beyond the table, negative
    torch.testing.assert_close(correction(logits[:3], index=unknown).logits, everything[:3])


def test_rows_without_a_label_are_left_out():
    """As if they were not there: they have no label to fit to, and may be corrected all the same."""
    label = labels(120)
    logits = teacher_like(label, 6)[:, torch.tensor([1, 0, 2, 3, 4, 5])]
    has = torch.arange(120) % 6 > 0
    lacking = torch.where(has, label, outgrow.UNLABELLED)
    correction = BiasCorrection(6).fit(logits, lacking, torch.arange(120))
    alone = BiasCorrection(6).fit(logits[has], label[has], torch.arange(120)[has])
    assert correction.report == alone.report
    assert correction.report.num_images == 100
    index = torch.arange(120)
    torch.testing.assert_close(correction(logits, index=index).logits, alone(logits, index=index).logits)
    with pytest.raises(ValueError, match=r"BiasCorrection.fit: needs labels in 0..5, got -2; num_classes is"):
        BiasCorrection(6).fit(logits, torch.where(has, label, -2))
    with pytest.raises(ValueError, match=r"BiasCorrection.fit: needs labels in 0..5, got 6; num_classes is"):
        BiasCorrection(6).fit(logits, torch.where(has, label, 6))


def test_save_and_load(tmp_path):
    label = labels()
    logits = teacher_like(label, 6)[:, torch.tensor([3, 0, 5, 1, 2, 4])]
    correction = BiasCorrection(6).fit(logits, label)
    correction.save(tmp_path / "correction.safetensors")
    loaded = BiasCorrection.load(tmp_path / "correction.safetensors")
    index = torch.arange(600)
    assert torch.equal(loaded(logits, index=index).logits, correction(logits, index=index).logits)
    assert str(loaded.report) == str(correction.report)
    assert "<- chosen" in str(loaded.report)


def features_like(label, classes, *, seed=0):
    """Features that lie far from 0, as after a ReLU, and say the label."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(label), 16, generator=generator)
    return 20 + noise + 2 * torch.randn(classes, 16, generator=generator)[label]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_rounds_nothing_of_the_map(dtype):
    """A loop calls teacher and student under it; what the network says may be rounded, not the map of that."""
    label = labels(200, 3)
    outputs = Outputs(torch.zeros(200, 3), {PENULTIMATE: features_like(label, 3)})
    correction = BiasCorrection(3).fit(outputs, label)
    assert correction.source == "features"
    plain = correction(outputs, index=torch.arange(200)).logits
    with torch.autocast("cpu", dtype):
        under = correction(outputs, index=torch.arange(200)).logits
    assert torch.equal(under, plain)


@pytest.mark.parametrize("source", ["logits", "features"])
def test_outputs_in_double_are_corrected(source):
    label = labels(200, 3)
    logits = teacher_like(label, 3)[:, torch.tensor([1, 2, 0])]
    features = {PENULTIMATE: features_like(label, 3)} if source == "features" else {}
    correction = BiasCorrection(3).fit(Outputs(logits, features), label)
    assert correction.source == source
    double = Outputs(logits.double(), {name: value.double() for name, value in features.items()})
    found, single = correction(double).logits, correction(Outputs(logits, features)).logits
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.float(), single, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("index", [torch.tensor([1]), torch.arange(4)])
def test_an_index_of_one_row_is_not_that_of_all(index):
    label = labels(60, 3)
    logits, other = teacher_like(label, 3)[:, torch.tensor([1, 2, 0])], teacher_like(label, 3, seed=1)
    correction = BiasCorrection(3).fit(logits, label)
    mixture = outgrow.teacher.Mixture(2).fit([teacher_like(label, 3), other], label)
    assert len(mixture.used) == 2
    for call in (
        lambda: correction(logits[:3], index=index),
        lambda: mixture([logits[:3], other[:3]], index=index),
    ):
        with pytest.raises(ValueError, match="needs a tensor with one whole number for each of 3 rows"):
            call()


@pytest.mark.parametrize(
    "index", [[0, 1, 2], torch.arange(3.0), torch.arange(3)[:, None], torch.ones(3) > 0, None]
)
def test_an_index_is_a_tensor_of_whole_numbers(index):
    with pytest.raises(ValueError, match="needs a tensor with one whole number for each of 3 rows"):
        as_index(index, 3)


def test_corrected_teacher_is_a_teacher():
    label = labels()
    logits = teacher_like(label, 6)
    permuted = logits[:, torch.tensor([3, 0, 5, 1, 2, 4])]
    correction = BiasCorrection(6).fit(permuted, label)
    teacher = CorrectedTeacher(outgrow.Teacher(torch.nn.Identity()), correction)
    index = torch.arange(600)
    assert torch.equal(teacher(permuted, index=index).logits, correction(permuted, index=index).logits)
    assert torch.equal(teacher(permuted).logits, correction(permuted).logits)


class TestErrors:
    def test_not_fitted(self):
        with pytest.raises(ValueError, match="needs to be fitted"):
            BiasCorrection(3)(torch.zeros(2, 3))

    def test_too_few_images(self):
        with pytest.raises(ValueError, match="at least 10 images for 5 folds, got 4"):
            BiasCorrection(3).fit(torch.zeros(4, 3), torch.zeros(4, dtype=torch.long))

    def test_labels_out_of_range(self):
        with pytest.raises(ValueError, match=r"labels in 0..2, got [345]; num_classes is"):
            BiasCorrection(3).fit(torch.zeros(40, 3), torch.full((40,), 5))

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_logits_that_are_not_finite(self, value):
        logits = teacher_like(labels(40, 3), 3)
        logits[7, 1] = value
        with pytest.raises(ValueError, match="needs finite logits, got NaN or infinity in row 7"):
            BiasCorrection(3).fit(logits, labels(40, 3))

    def test_probabilities_are_warned_of(self):
        with pytest.warns(UserWarning, match="teacher: needs logits, got rows .* which are probabilities"):
            BiasCorrection(3).fit(teacher_like(labels(40, 3), 3).softmax(dim=1), labels(40, 3))

    def test_indices_below_0(self):
        """They mean no image of the training set where a correction is used."""
        with pytest.raises(ValueError, match="needs indices from 0, got -1"):
            BiasCorrection(3).fit(teacher_like(labels(40, 3), 3), labels(40, 3), torch.arange(40) - 1)

    def test_held_out_rows_of_other_classes(self):
        logits, label = teacher_like(labels(40, 3), 3), labels(40, 3)
        for other in ((torch.zeros(9, 5), torch.zeros(9).long()), (torch.zeros(9, 3), torch.full((9,), 7))):
            with pytest.raises(
                ValueError, match="needs held-out outputs and labels of the teacher's 3 classes"
            ):
                BiasCorrection(3).fit(logits, label, held_out=other)

    @pytest.mark.parametrize("strength", [1.0, 30.0])
    def test_the_outputs_of_another_teacher(self, strength):
        label = labels(200, 3)
        logits = teacher_like(label, 3) * strength
        moved = logits if strength > 1 else logits[:, [1, 2, 0]]
        correction = BiasCorrection(3).fit(moved, label)
        assert correction.source == ("scale" if strength > 1 else "logits")
        with pytest.raises(ValueError, match="outputs of the teacher that it was fitted to, 3 a row, got 4"):
            correction(torch.zeros(2, 4))

    def test_lengths(self):
        with pytest.raises(ValueError, match="40 rows, 39 labels"):
            BiasCorrection(3).fit(torch.zeros(40, 3), torch.zeros(39, dtype=torch.long))


def test_mixed_labels_are_fitted_by_their_shares():
    label = labels()
    logits = teacher_like(label, 6)[:, torch.tensor([3, 0, 5, 1, 2, 4])]
    whole = BiasCorrection(6).fit(logits, label)
    mixed = BiasCorrection(6).fit(logits, Target(label.flip(0), partner=label, mix=torch.zeros(600)))
    torch.testing.assert_close(mixed(logits).logits, whole(logits).logits, rtol=1e-3, atol=1e-3)


def test_a_temperature_turns_nothing_upside_down():
    """Logits that speak against the label get a scale near zero, never a negative one."""
    label = labels(600)
    correction = BiasCorrection(6).fit(-teacher_like(label, 6), labels(600, seed=3))
    assert not correction.is_identity
    assert (correction.scale >= 0).all()
    alone = next(c for c in correction.report.candidates if c.name == "temperature alone")
    assert alone.nll == pytest.approx(float(torch.log(torch.tensor(6.0))), abs=0.03)


class TestFile:
    @pytest.fixture
    def saved(self, tmp_path):
        logits, label = torch.randn(60, 3, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 3
        correction = BiasCorrection(3).fit(logits + 4 * torch.eye(3)[(label + 1) % 3], label)
        assert not correction.is_identity
        correction.save(tmp_path / "new" / "correction.safetensors")
        return tmp_path / "new" / "correction.safetensors", correction

    def test_one_file_with_the_usual_rights(self, saved):
        path, _ = saved
        assert [p.name for p in path.parent.iterdir()] == [path.name]
        (path.parent / "usual").touch()
        assert path.stat().st_mode == (path.parent / "usual").stat().st_mode

    def test_damage_is_refused_wherever_it_is(self, saved):
        path, correction = saved
        whole = path.read_bytes()
        refused = 0
        for place in range(0, len(whole), 7):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
            try:
                loaded = BiasCorrection.load(path)
                assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in correction.state_dict().items())
            except ValueError as error:
                refused += "BiasCorrection.load: needs" in str(error)
        assert refused > 0.98 * len(whole) / 7
        path.write_bytes(whole[:-5])
        with pytest.raises(ValueError, match="needs an intact safetensors file"):
            BiasCorrection.load(path)

    def test_other_files_are_refused(self, tmp_path):
        from outgrow.models import create_model, save_student

        save_student(create_model("cifar/resnet8", 3), tmp_path / "student.safetensors")
        with pytest.raises(
            ValueError, match=r"needs a file that save\(\) wrote, .*; fit the correction again"
        ):
            BiasCorrection.load(tmp_path / "student.safetensors")
        with pytest.raises(ValueError, match="which does not exist"):
            BiasCorrection.load(tmp_path / "lacking.safetensors")
