"""Several teachers as one: what helps gets weight, what does not gets none."""

import pytest
import torch
from torch import nn

import outgrow
from outgrow.outputs import Outputs, Target
from outgrow.teacher import MixedTeacher, Mixture, NoTeacher
from outgrow.teacher.mixture import stacking_weights
from tests.reference import beliefs as reference
from tests.teacher.test_correction import labels, teacher_like


def calibrated(label, classes=6, seed=0, noise=1.2):
    """Logits that are exactly the log-posterior of the noise that was added to them."""
    generator = torch.Generator().manual_seed(seed)
    seen = torch.nn.functional.one_hot(label, classes) + noise * torch.randn(
        len(label), classes, generator=generator
    )
    return seen / noise**2


def nll(logits, label):
    return torch.nn.functional.cross_entropy(logits, label).item()


class TestWeights:
    def data(self, rows=80):
        label = labels(rows)
        return label, [
            calibrated(label, seed=seed, noise=noise) for seed, noise in ((1, 0.8), (2, 0.9), (3, 1.4))
        ]

    def test_they_are_those_of_a_general_solver(self):
        from scipy.optimize import minimize

        label, teachers = self.data()
        log_p = torch.stack([t.log_softmax(1).gather(1, label[:, None])[:, 0] for t in teachers], 1)
        ours = stacking_weights(log_p, torch.ones(len(label)))
        rows = [teacher.tolist() for teacher in teachers]
        solution = minimize(
            lambda w: -reference.mixture_likelihood(rows, w.tolist(), label.tolist()),
            x0=[1 / 3] * 3,
            bounds=[(0, 1)] * 3,
            constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
            method="SLSQP",
            options={"ftol": 1e-12},
        )
        assert -reference.mixture_likelihood(rows, ours.tolist(), label.tolist()) <= solution.fun + 1e-5
        assert ours.tolist() == pytest.approx(solution.x.tolist(), abs=5e-3)

    def test_a_row_of_twice_the_weight_is_two_rows(self):
        log_p = torch.rand(20, 3, generator=torch.Generator().manual_seed(0)).log()
        weight = torch.tensor([1.0, 2.0]).repeat(10)
        twice = torch.cat([log_p, log_p[1::2]])
        torch.testing.assert_close(
            stacking_weights(log_p, weight), stacking_weights(twice, torch.ones(30)), rtol=1e-4, atol=1e-4
        )

    def test_a_label_that_all_rule_out_says_nothing(self):
        log_p = torch.tensor([[0.9, 0.2], [0.8, 0.3]]).log()
        more = torch.cat([log_p, torch.full((1, 2), -torch.inf)])
        assert torch.equal(stacking_weights(log_p, torch.ones(2)), stacking_weights(more, torch.ones(3)))
        assert stacking_weights(more[2:], torch.ones(1)).tolist() == [0.5, 0.5]

    @pytest.mark.parametrize(
        "p, best",
        [
            ([[0.75, 0.25]] * 3 + [[0.0, 0.25]], [0.625, 0.375]),
            ([[0.5, 0.0]] * 3 + [[0.0, 0.5]], [0.75, 0.25]),
            ([[0.0, 0.01]] * 4, [0.0, 1.0]),
            ([[0.0, 0.0], [0.2, 0.1]], [1.0, 0.0]),
        ],
    )
    def test_a_teacher_that_rules_labels_out_gets_what_is_most_likely(self, p, best):
        found = stacking_weights(torch.tensor(p).log(), torch.ones(len(p)))
        assert found.tolist() == pytest.approx(best, abs=2e-3)
        assert found.sum() == 1

    def test_a_row_without_weight_says_nothing(self):
        """Also one whose label no teacher with weight thinks possible."""
        log_p = torch.tensor([[0.9, 0.0], [0.8, 0.0], [0.0, 0.5]]).log()
        assert stacking_weights(log_p, torch.tensor([1.0, 1.0, 0.0])).tolist() == [1.0, 0.0]
        assert stacking_weights(log_p, torch.zeros(3)).tolist() == [0.5, 0.5]

    def test_the_only_teacher_that_thinks_a_label_possible_keeps_its_weight(self):
        """Without it the mixture would give that label probability zero: the worst likelihood there is."""
        p = torch.tensor([[0.9, 0.1, 0.1]] * 5000 + [[0.0, 0.5, 0.0]])
        found = stacking_weights(p.log(), torch.ones(len(p)))
        assert 0 < found[1] < 1e-3
        assert found[2] == 0
        assert ((p.double() @ found) > 0).all()


class TestFit:
    def test_a_useless_second_teacher_gets_no_weight(self):
        label = labels(3000)
        good, useless = calibrated(label, noise=0.7), calibrated(labels(3000, seed=5), seed=5)
        mixture = Mixture(2).fit([good, useless], label)
        assert mixture.report.weights[1] < 0.01
        assert mixture.report.nll == pytest.approx(mixture.report.alone[0], abs=1e-3)

    def test_a_duplicate_changes_nothing(self):
        label = labels(600)
        one, two = calibrated(label, noise=0.7), calibrated(label, seed=4, noise=0.8)
        pair = Mixture(2).fit([one, two], label)
        three = Mixture(3).fit([one, two, one], label)
        index = torch.arange(600)
        torch.testing.assert_close(
            three([one, two, one], index=index).logits,
            pair([one, two], index=index).logits,
            rtol=1e-3,
            atol=1e-3,
        )
        alone = Mixture(2).fit([one, one], label)([one, one], index=index).logits
        torch.testing.assert_close(alone, one.log_softmax(1), rtol=1e-5, atol=1e-5)

    def test_logits_of_minus_infinity(self):
        label = labels(400)
        sure, unsure = calibrated(label, noise=0.7), calibrated(label, seed=4, noise=0.8)
        sure[torch.arange(0, 400, 8), label[::8]] = -torch.inf
        mixture = Mixture(2).fit([sure, unsure], label)
        assert torch.isfinite(mixture.weights).all()
        torch.testing.assert_close(mixture.weights.sum(1), torch.ones(6))
        assert mixture.report.alone[0] == torch.inf
        assert mixture.report.alone[1] == pytest.approx(nll(unsure, label), abs=1e-5)
        assert mixture.report.nll < mixture.report.alone[1]
        assert mixture([sure, unsure]).logits.isfinite().all()

    def test_two_that_know_different_classes_are_better_than_either(self):
        label = labels(1500)
        sharp, blunt = calibrated(label, noise=0.3), torch.zeros(1500, 6)
        first = torch.where((label < 3)[:, None], sharp, blunt)
        second = torch.where((label < 3)[:, None], blunt, sharp)
        mixture = Mixture(2).fit([first, second], label)
        assert mixture.report.nll < min(mixture.report.alone) - 0.1
        assert mixture.report.weights == pytest.approx([0.5, 0.5], abs=0.05)
        assert "together" in str(mixture.report)

    def test_no_row_has_weights_that_have_seen_its_label(self):
        label = labels(100)
        teachers = [calibrated(label, seed=seed, noise=1.0) for seed in (1, 2)]
        first = Mixture(2).fit(teachers, label)
        changed = label.clone()
        changed[17] = (label[17] + 1) % 6
        second = Mixture(2).fit(teachers, changed)
        row = torch.tensor([17])
        one = [teacher[row] for teacher in teachers]
        assert torch.equal(first(one, index=row).logits, second(one, index=row).logits)
        assert not torch.equal(first(one).logits, second(one).logits)
        assert first.report.nll == pytest.approx(
            nll(first(teachers, index=torch.arange(100)).logits, label), abs=1e-5
        )

    def test_rows_that_were_not_fitted_have_the_mean_of_the_weights(self):
        label = labels(100)
        teachers = [calibrated(label, seed=seed) for seed in (1, 2)]
        mixture = Mixture(2).fit(teachers, label)
        literal = reference.mixture([t[0].tolist() for t in teachers], mixture.weights[:5].mean(0).tolist())
        for index in (None, torch.tensor([100]), torch.tensor([-1])):
            found = mixture([t[:1] for t in teachers], index=index).logits.exp()[0].tolist()
            assert found == pytest.approx(literal, abs=1e-6)

    def test_mixed_labels_and_rows_without_one(self):
        label = labels(200)
        teachers = [calibrated(label, seed=seed) for seed in (1, 2)]
        whole = Mixture(2).fit(teachers, label)
        blended = Target(label.flip(0), partner=label, mix=torch.zeros(200))
        torch.testing.assert_close(Mixture(2).fit(teachers, blended).weights, whole.weights)
        more = [torch.cat([t, torch.randn(7, 6)]) for t in teachers]
        lacking = torch.cat([label, torch.full((7,), outgrow.UNLABELLED)])
        torch.testing.assert_close(Mixture(2).fit(more, lacking).weights, whole.weights)

    def noisy(self, rows, share, seed=9):
        """True labels, labels of which a share is any other class, and how they come about."""
        true = labels(rows)
        generator = torch.Generator().manual_seed(seed)
        wrong = torch.rand(rows, generator=generator) < share
        given = torch.where(wrong, (true + torch.randint(1, 6, (rows,), generator=generator)) % 6, true)
        noise = torch.full((6, 6), share / 5).fill_diagonal_(1 - share)
        return true, given, noise

    def test_with_noise_the_given_labels_are_likeliest(self):
        true, given, noise = self.noisy(400, 0.3)
        teachers = [calibrated(true, seed=seed, noise=width) for seed, width in ((1, 0.5), (2, 0.6))]
        mixture = Mixture(2).fit(teachers, given, noise=noise)
        rows = [teacher.tolist() for teacher in teachers]
        for fold in range(5):
            fitted = (mixture.fold_of != fold).nonzero()[:, 0].tolist()
            some = [[row[i] for i in fitted] for row in rows]

            def likelihood(weight, some=some, fitted=fitted):
                return reference.mixture_likelihood(
                    some, [weight, 1 - weight], given[fitted].tolist(), noise.tolist()
                )

            found = float(mixture.weights[fold, 0])
            best = max((step / 50 for step in range(51)), key=likelihood)
            assert likelihood(found) >= likelihood(best) - 1e-5
        literal = [
            reference.mixture_likelihood(
                [[row[i]] for row in rows],
                mixture.weights[mixture.fold_of[i]].tolist(),
                [int(given[i])],
                noise.tolist(),
            )
            for i in range(400)
        ]
        assert mixture.report.nll == pytest.approx(-sum(literal) / 400, abs=1e-5)
        alone = [-reference.mixture_likelihood([row], [1.0], given.tolist(), noise.tolist()) for row in rows]
        assert mixture.report.alone == pytest.approx(alone, abs=1e-5)
        assert str(mixture.report)

    def test_noise_that_never_happens_changes_nothing(self):
        label = labels(200)
        teachers = [calibrated(label, seed=seed) for seed in (1, 2)]
        whole = Mixture(2).fit(teachers, label)
        same = Mixture(2).fit(teachers, label, noise=torch.eye(6))
        torch.testing.assert_close(same.weights, whole.weights, rtol=1e-5, atol=1e-6)
        assert same.report.nll == pytest.approx(whole.report.nll, abs=1e-9)

    def test_a_teacher_that_is_sure_and_right_is_not_blamed_for_wrong_labels(self):
        """Wrong labels ruin the likelihood of a sure teacher. The weights are those that right labels would give."""
        true, given, noise = self.noisy(4000, 0.3)
        sure, unsure = calibrated(true, seed=1, noise=0.35), calibrated(true, seed=2, noise=0.7)
        right = Mixture(2).fit([sure, unsure], true).report.weights[0]
        blamed = Mixture(2).fit([sure, unsure], given).report.weights[0]
        known = Mixture(2).fit([sure, unsure], given, noise=noise).report.weights[0]
        assert right > 0.9
        assert known == pytest.approx(right, abs=0.08)
        assert blamed < known - 0.2

    def test_noise_of_other_classes_is_refused(self):
        label = labels(100)
        teachers = [calibrated(label, seed=seed) for seed in (1, 2)]
        for noise in (torch.eye(5), torch.ones(6, 6), torch.full((6,), 1 / 6)):
            with pytest.raises(
                ValueError, match=r"Mixture.fit: needs noise\[true, given\] of 6 x 6 classes, .*got .*; take"
            ):
                Mixture(2).fit(teachers, label, noise=noise)

    def test_an_image_with_more_views_weighs_no_more(self):
        """Copies of some rows under the same index are views of one image: the weights stay."""
        label = labels(200)
        teachers = [calibrated(label, seed=seed) for seed in (1, 2)]
        index = torch.arange(200)
        views = torch.cat([index, index[:60], index[:60], index[:60]])
        whole = Mixture(2).fit(teachers, label, index)
        more = Mixture(2).fit([t[views] for t in teachers], label[views], views)
        torch.testing.assert_close(more.weights, whole.weights, rtol=1e-4, atol=1e-4)
        assert more.report.nll == pytest.approx(whole.report.nll, abs=1e-5)
        as_images = Mixture(2).fit([t[views] for t in teachers], label[views], torch.arange(len(views)))
        assert not torch.allclose(as_images.weights[-1], whole.weights[-1], atol=1e-2)

    def test_save_and_load(self, tmp_path):
        label = labels(100)
        teachers = [calibrated(label, seed=seed) for seed in (1, 2)]
        mixture = Mixture(2).fit(teachers, label)
        mixture.save(tmp_path / "mixture.safetensors")
        loaded = Mixture.load(tmp_path / "mixture.safetensors")
        index = torch.arange(100)
        assert torch.equal(loaded(teachers, index=index).logits, mixture(teachers, index=index).logits)
        assert loaded.report == mixture.report
        correction = outgrow.BiasCorrection(6).fit(teacher_like(label, 6).flip(1), label)
        correction.save(tmp_path / "correction.safetensors")
        with pytest.raises(
            ValueError, match=r"Mixture.load: needs a file that save\(\) wrote, .*; fit the mixture"
        ):
            Mixture.load(tmp_path / "correction.safetensors")


class Counted(NoTeacher):
    calls = 0

    def forward(self, images, *, index=None):
        self.calls += 1
        return super().forward(images, index=index)


class TestTeacher:
    def test_it_is_the_mean_of_probabilities_in_log_space(self):
        torch.manual_seed(0)
        nets = [nn.Linear(4, 3), nn.Linear(4, 3)]
        teacher = MixedTeacher([outgrow.Teacher(net) for net in nets], [3.0, 1.0])
        images = torch.randn(5, 4)
        found = teacher(images, index=torch.arange(5)).logits
        assert not found.requires_grad
        for row in range(5):
            literal = reference.mixture([net(images[row]).tolist() for net in nets], [0.75, 0.25])
            assert found[row].exp().tolist() == pytest.approx(literal, abs=1e-6)

    def test_extreme_and_half_precision_logits(self):
        far = torch.tensor([[1e3, -1e3, 0.0], [0.0, -torch.inf, 5.0]])
        mixed = Mixture.of([1.0, 1.0])([far.to(torch.bfloat16), far]).logits
        assert mixed.dtype == torch.float32
        assert mixed[0].isfinite().all()
        assert mixed[1].isfinite().tolist() == [True, False, True]

    def test_a_teacher_without_weight_is_not_computed_and_one_alone_is_as_it_is(self):
        useless = Counted(2)
        net = nn.Linear(4, 2)
        images = torch.randn(3, 4)
        alone = MixedTeacher([outgrow.Teacher(net), useless], [1.0, 0.0])(images)
        assert torch.equal(alone.logits, net(images))
        assert useless.calls == 0

    def test_of_all_outputs_those_without_weight_are_passed_over(self):
        """Wherever they stand: first, too."""
        rows = [torch.randn(4, 3) for _ in range(3)]
        mixture = Mixture.of([0.0, 1.0, 3.0])
        assert mixture.used == [1, 2]
        found = mixture(rows).logits
        assert torch.equal(found, mixture(rows[1:]).logits)
        for row in range(4):
            literal = reference.mixture([one[row].tolist() for one in rows], [0.0, 0.25, 0.75])
            assert found[row].exp().tolist() == pytest.approx(literal, abs=1e-6)
        assert torch.equal(Mixture.of([0.0, 1.0])(rows[:2]).logits, rows[1])

    def test_epochs_are_announced_to_all(self):
        class Told(NoTeacher):
            def at(self, epoch):
                self.told = epoch

        both = [Told(2), Told(2)]
        MixedTeacher(both, [1.0, 1.0]).at(3)
        assert [one.told for one in both] == [3, 3]

    def test_errors(self):
        with pytest.raises(ValueError, match="one weight for each teacher, got 2 for 1"):
            MixedTeacher([NoTeacher(2)], [1.0, 1.0])
        for weights in ([0.0, 0.0], [1.0, -1.0], [float("nan")], []):
            with pytest.raises(ValueError, match=r"weights of 0 or more, not all 0, got .*; \[1, 1\] is"):
                Mixture.of(weights)
        with pytest.raises(
            ValueError, match=r"logits of 2 teachers .* got 2 of shapes \[\(9, 3\), \(9, 4\)\]; correct"
        ):
            Mixture(2).fit([torch.zeros(9, 3), torch.zeros(9, 4)], torch.zeros(9, dtype=torch.long))
        with pytest.raises(ValueError, match=r"Mixture.fit: needs at least 10 images for 5 folds, got 9"):
            Mixture(2).fit([torch.zeros(9, 3)] * 2, torch.zeros(9, dtype=torch.long))
        with pytest.raises(ValueError, match=r"needs weights, got none; call .fit"):
            Mixture(2)([torch.zeros(1, 2)] * 2)
        with pytest.raises(ValueError, match="outputs of 2 teachers, got 1"):
            Mixture.of([1.0, 1.0])([Outputs(torch.zeros(1, 2))])
