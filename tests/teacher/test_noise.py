"""Labels that are wrong: how many, which for which, and what is then true. Clean labels are found clean."""

import pytest
import torch
import torch.nn.functional as F

from outgrow import PENULTIMATE, BiasCorrection, Outputs, Target
from outgrow.knowledge.posterior import posterior
from outgrow.teacher.noise import BetweenClasses, OneRate

CLASSES = 6


def drawn(rows=1500, rate=0.0, kind="any", spread=0.4, classes=CLASSES, seed=0):
    """Calibrated logits, true classes, and labels of which a share is wrong."""
    generator = torch.Generator().manual_seed(seed)
    true = torch.randint(classes, (rows,), generator=generator)
    logits = (F.one_hot(true, classes) + spread * torch.randn(rows, classes, generator=generator)) / spread**2
    step = torch.randint(1, classes, (rows,), generator=generator) if kind == "any" else 1
    wrong = torch.rand(rows, generator=generator) < rate
    return logits, true, torch.where(wrong, (true + step) % classes, true)


def fitted(logits, label, noise="estimate"):
    return BiasCorrection(logits.shape[1], noise=noise).fit(logits, label)


def likelihood(logits, label):
    return -F.cross_entropy(logits, label).item()


class TestClean:
    @pytest.mark.parametrize("scale", [1.0, 3.0, 0.3])
    @pytest.mark.parametrize("spread", [0.3, 0.8])
    def test_clean_labels_have_no_noise(self, scale, spread):
        """Of calibrated, overconfident and underconfident teachers, good and bad: the correction is that without noise."""
        logits, _, label = drawn(spread=spread)
        correction, plain = fitted(scale * logits, label), fitted(scale * logits, label, "none")
        assert not len(correction.noise_matrix)
        assert correction.noise_report.chosen.kind == "none"
        assert correction.noise_report.wrong == 0
        assert all(c.rate < 0.03 for c in correction.noise_report.candidates if c.pseudo_counts != 10)
        assert torch.equal(correction(logits).logits, plain(logits).logits)
        assert "no noise makes the labels likelier" in str(correction.noise_report)

    def test_a_gain_of_nothing_is_no_noise(self):
        """A teacher that gives classes and no probabilities is as likely with a rate of zero, to the last bits."""
        generator = torch.Generator().manual_seed(0)
        label = torch.randint(CLASSES, (5000,), generator=generator)
        wrong = torch.rand(5000, generator=generator) < 0.3
        said = torch.where(wrong, torch.randint(CLASSES, (5000,), generator=generator), label)
        correction = fitted(10.0 * F.one_hot(said, CLASSES), label)
        assert correction.noise_report.chosen.kind == "none"
        assert not len(correction.noise_matrix)

    def test_a_teacher_with_a_bias_is_corrected_and_its_labels_stay_clean(self):
        logits, _, label = drawn()
        permuted = logits[:, torch.tensor([3, 0, 5, 1, 2, 4])]
        correction = fitted(permuted, label)
        assert not len(correction.noise_matrix)
        assert (correction(permuted).logits.argmax(1) == label).float().mean() > 0.8


class TestNoisy:
    def test_one_rate_is_found(self):
        logits, _, label = drawn(rate=0.2)
        correction = fitted(logits, label)
        report = correction.noise_report
        assert report.chosen.kind == "one rate"
        assert report.wrong == pytest.approx(0.2, abs=0.03)
        matrix = correction.noise_matrix
        torch.testing.assert_close(matrix.sum(dim=1), torch.ones(CLASSES))
        torch.testing.assert_close(matrix.diagonal(), torch.full((CLASSES,), 0.8), rtol=0, atol=0.03)
        assert "one rate" in str(report)

    def test_it_is_looked_for_unless_labels_are_said_to_be_right(self):
        logits, true, label = drawn(rate=0.3, kind="next")
        usual = BiasCorrection(CLASSES).fit(logits, label)
        assert torch.equal(usual(logits).logits, fitted(logits, label)(logits).logits)
        plain = fitted(logits, label, "none")
        assert plain.noise_report is None
        assert likelihood(usual(logits).logits, true) > likelihood(plain(logits).logits, true) + 0.3

    @pytest.mark.parametrize("seed", [1, 2])
    def test_a_teacher_that_separates_the_right_labels_keeps_its_doubt(self, seed):
        """The floor under every label lets a scale grow without end. What is believed does not depend on the teacher's own scale."""
        logits, true, label = drawn(rows=300, rate=0.2, spread=0.25, seed=seed)
        for scale in (0.1, 1.0, 10.0):
            correction = fitted(scale * logits, label)
            assert correction.noise_report.wrong == pytest.approx(0.2, abs=0.03)
            assert float(scale * correction.scale.max()) < 1.2
            believed = correction(scale * logits, index=torch.arange(300)).logits
            assert likelihood(believed, true) > likelihood(logits, true) - 0.01

    @pytest.mark.parametrize(
        ("rate", "kind", "noise"), [(0.2, "any", "estimate"), (0.3, "next", "estimate"), (0.2, "any", 0.2)]
    )
    def test_the_report_names_the_map_in_use(self, rate, kind, noise):
        logits, _, label = drawn(rate=rate, kind=kind)
        correction = fitted(3 * logits, label, noise)
        report, found = correction.report, correction.noise_report
        assert report.chosen == report.candidates[-1]
        assert report.chosen.name.endswith(" + noise")
        assert report.chosen.source == correction.source
        assert report.chosen.nll == found.chosen.nll
        believed = correction(3 * logits, index=torch.arange(len(label))).logits
        assert report.chosen.accuracy == pytest.approx(
            float((believed.argmax(1) == label).float().mean()), abs=1e-6
        )
        assert report.reason == f"{report.chosen.name} is used: {found.reason}"
        assert str(report).count("<- chosen") == 1

    def test_which_class_for_which_is_found(self):
        logits, true, label = drawn(rate=0.3, kind="next")
        correction = fitted(logits, label)
        assert correction.noise_report.chosen.kind == "between classes"
        expected = 0.7 * torch.eye(CLASSES) + 0.3 * torch.eye(CLASSES).roll(1, dims=1)
        assert (correction.noise_matrix - expected).abs().max() < 0.08
        # by the column of the given label: the row of it would say what a true class is taken for
        assert correction.noise_report.wrong == pytest.approx((label != true).float().mean().item(), abs=0.03)

    def test_the_belief_is_in_what_is_true(self):
        """Not in what is given: the map without noise is less certain than the true classes allow."""
        logits, true, label = drawn(rate=0.3, kind="next")
        index = torch.arange(len(label))
        noisy, plain = fitted(logits, label), fitted(logits, label, "none")
        believed = noisy(logits, index=index).logits
        assert likelihood(believed, true) > likelihood(plain(logits, index=index).logits, true) + 0.1
        both = posterior(believed, label, noise=noisy.noise_matrix)
        assert likelihood(both, true) > likelihood(believed, true)
        assert (both.argmax(1) == true).float().mean() > (believed.argmax(1) == true).float().mean()
        assert (both.argmax(1) == true).float().mean() > (label == true).float().mean()

    def test_an_overconfident_teacher_hides_nothing(self):
        logits, _, label = drawn(rate=0.2)
        assert fitted(4 * logits, label).noise_report.wrong == pytest.approx(0.2, abs=0.04)

    def test_a_teacher_of_other_classes(self):
        logits, _, label = drawn(rate=0.2)
        other = F.one_hot(torch.arange(9) % CLASSES, CLASSES).float()
        mapped = logits @ other.T + 0.1 * torch.randn(
            len(label), 9, generator=torch.Generator().manual_seed(3)
        )
        correction = BiasCorrection(CLASSES, noise="estimate").fit(mapped, label)
        assert correction.noise_report.wrong == pytest.approx(0.2, abs=0.05)
        assert correction(mapped).logits.shape == (len(label), CLASSES)

    def test_a_rate_that_is_known(self):
        logits, _, label = drawn(rate=0.2, rows=300)
        correction = fitted(logits, label, 0.2)
        torch.testing.assert_close(correction.noise_matrix.diagonal(), torch.full((CLASSES,), 0.8))
        assert "the rate was given" in correction.noise_report.reason

    def test_the_rows_own_map_has_not_seen_its_label(self):
        logits, _, label = drawn(rate=0.2, rows=300)
        changed = label.clone()
        changed[17] = (label[17] + 1) % CLASSES
        row = torch.tensor([17])
        first, second = fitted(logits, label), fitted(logits, changed)
        torch.testing.assert_close(
            first(logits[row], index=row).logits, second(logits[row], index=row).logits, rtol=1e-4, atol=1e-4
        )

    def test_mixed_labels_are_fitted_by_their_shares(self):
        logits, _, label = drawn(rate=0.2, rows=600)
        blended = Target(label.flip(0), partner=label, mix=torch.zeros(600))
        mixed, whole = fitted(logits, blended), fitted(logits, label)
        torch.testing.assert_close(mixed.noise_matrix, whole.noise_matrix, rtol=1e-2, atol=1e-3)
        assert mixed.noise_report.wrong == pytest.approx(whole.noise_report.wrong, abs=1e-3)

    def test_the_share_of_wrong_labels_of_blended_images(self):
        """Neither the label with the smaller share nor that with the larger one: both, by their shares."""
        logits, _, label = drawn(rate=0.2, rows=1200)
        generator = torch.Generator().manual_seed(1)
        other = torch.randperm(1200, generator=generator)
        mix = torch.rand(1200, generator=generator)
        mix = torch.where(mix < 0.5, mix**4, 1 - (1 - mix) ** 4)  # mostly near 0 or 1
        belief = mix[:, None] * logits.softmax(1) + (1 - mix)[:, None] * logits[other].softmax(1)
        target = Target(label, partner=label[other], mix=mix)
        assert fitted(belief.log(), target).noise_report.wrong == pytest.approx(0.2, abs=0.04)

    def test_save_and_load(self, tmp_path):
        logits, _, label = drawn(rate=0.2, rows=600)
        correction = fitted(logits, label)
        correction.save(tmp_path / "c.safetensors")
        loaded = BiasCorrection.load(tmp_path / "c.safetensors")
        assert torch.equal(loaded.noise_matrix, correction.noise_matrix)
        assert loaded.noise_report == correction.noise_report
        assert torch.equal(loaded(logits).logits, correction(logits).logits)
        assert loaded.state_dict().keys() == BiasCorrection(CLASSES).state_dict().keys()

    def test_a_memorised_teacher_finds_none(self):
        logits, _, label = drawn(rate=0.2)
        seen = 8.0 * F.one_hot(label, CLASSES).float()
        with pytest.warns(UserWarning, match="it has memorised the former"):
            correction = BiasCorrection(CLASSES, noise="estimate").fit(seen, label, held_out=(logits, label))
        assert correction.noise_report is None
        assert not len(correction.noise_matrix)


def test_a_second_fit_keeps_nothing_of_the_first(tmp_path):
    logits, true, label = drawn(60, rate=0.3, classes=2)
    correction = fitted(logits, label, 0.3)
    assert len(correction.noise_matrix)
    by_heart, held = 9.0 * F.one_hot(label, 2), (9.0 * F.one_hot(1 - true, 2), true)
    with pytest.warns(UserWarning, match="it has memorised the former"):
        correction.fit(by_heart, label, held_out=held)
    assert correction.is_identity
    assert correction.noise_report is None
    assert not any(len(value) for value in correction.buffers())
    correction.save(tmp_path / "again.safetensors")
    assert BiasCorrection.load(tmp_path / "again.safetensors").noise_report is None


@pytest.mark.parametrize("pseudo_counts", [10.0, 100.0])
def test_the_prior_of_a_matrix_is_images_of_each_class(pseudo_counts):
    """Where the true classes are certain, the fit is the mean of what was counted and of as many images of the prior."""
    counts = torch.tensor([[30.0, 9.0, 1.0], [0.0, 20.0, 5.0], [2.0, 0.0, 8.0]], dtype=torch.float64)
    prior = OneRate(0.2, 3, fixed=True, device=torch.device("cpu")).matrix()
    noise = BetweenClasses(prior, pseudo_counts)
    optimizer = torch.optim.LBFGS(
        noise.parameters, max_iter=200, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        given = noise.given(torch.eye(3, dtype=torch.float64))
        loss = noise.penalty() - (counts * given.log()).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    expected = (counts + pseudo_counts * prior) / (counts.sum(dim=1, keepdim=True) + pseudo_counts)
    torch.testing.assert_close(noise.matrix(), expected, rtol=1e-4, atol=1e-5)


def test_features():
    logits, _, label = drawn(rate=0.2)
    outputs = Outputs(torch.zeros(len(label), 0), {PENULTIMATE: logits})
    correction = BiasCorrection(CLASSES, noise="estimate").fit(outputs, label)
    assert correction.noise_report.wrong == pytest.approx(0.2, abs=0.05)


def test_a_long_step_of_the_search_leaves_numbers(monkeypatch):
    """The exponential of a scale's logarithm overflows, and a run ends at a record with no number in it."""

    def step(self, closure):
        closure()
        with torch.no_grad():
            self.param_groups[0]["params"][0].fill_(1e4)
        assert closure().isfinite()

    monkeypatch.setattr(torch.optim.LBFGS, "step", step)
    logits, _, label = drawn(rows=100, rate=0.2)
    assert all(c.nll < float("inf") for c in fitted(logits, label).noise_report.candidates)


def test_two_classes_and_one():
    logits, _, label = drawn(classes=2, rate=0.2, spread=0.3)
    assert fitted(logits, label).noise_report.wrong == pytest.approx(0.2, abs=0.05)
    assert OneRate(0.1, 1, fixed=True, device=torch.device("cpu")).matrix().isfinite().all()


def test_errors():
    for noise in (0.0, 1.0):
        with pytest.raises(
            ValueError, match=r"noise needs 'estimate', 'none' or a share between 0 and 1, got"
        ):
            BiasCorrection(3, noise=noise)
