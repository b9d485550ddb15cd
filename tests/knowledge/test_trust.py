"""How far a teacher is trusted on a row: by values written out, without reading a label, through the objective."""

import itertools
import math

import pytest
import torch

import outgrow
from outgrow import IGNORE, UNLABELLED, Objective, Rectifier, Target
from outgrow.knowledge import TRUSTS, Confidence, Reliability, make_trust, rectify
from outgrow.knowledge.trust import LEAST_INFORMED, _rid_of_noise
from tests.reference import objective as reference
from tests.reference import rules


def batch(rows=12, classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    teacher = 2 * torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    label = torch.randint(classes, (rows,), generator=generator)
    label[rows // 2 :] = UNLABELLED
    label[rows - 1] = IGNORE
    return student.requires_grad_(), teacher, label


def literal_confidence(logits):
    return [max(rules.softmax(row, 1.0)) for row in logits.tolist()]


def literal_isotonic(at, right, weight, x):
    """Pool adjacent violators in plain Python, then linear between the means of the pools."""
    pools = []
    for a in sorted(set(at)):
        same = [i for i in range(len(at)) if at[i] == a]
        mass = sum(weight[i] for i in same)
        pools.append([sum(weight[i] * right[i] for i in same) / mass, mass, [a]])
        while len(pools) > 1 and pools[-2][0] >= pools[-1][0]:
            last = pools.pop()
            mass = pools[-1][1] + last[1]
            pools[-1] = [
                (pools[-1][0] * pools[-1][1] + last[0] * last[1]) / mass,
                mass,
                pools[-1][2] + last[2],
            ]
    points = [(a, value) for value, _, members in pools for a in members]
    if x <= points[0][0]:
        return points[0][1]
    for (a, low), (b, high) in itertools.pairwise(points):
        if x <= b:
            return low + (x - a) / (b - a) * (high - low)
    return points[-1][1]


class TestConfidence:
    @pytest.mark.parametrize("rows", ["unlabelled", "all"])
    @pytest.mark.parametrize("threshold", [0.3, 0.6, 0.95])
    def test_values(self, rows, threshold):
        _, teacher, label = batch()
        knowledge = Confidence(threshold, rows)(rectify(teacher, label))
        for i, sure in enumerate(literal_confidence(teacher)):
            y = int(label[i])
            judged = y == UNLABELLED or (rows == "all" and y >= 0)
            expected = 0.0 if y == IGNORE or (judged and sure < threshold) else 1.0
            assert knowledge.weight[i] == expected
        assert knowledge.partial

    def test_a_nan_is_not_hidden(self):
        logits = torch.tensor([[0.0, math.nan], [0.0, 9.0]])
        assert torch.isnan(outgrow.knowledge.trust.confidence(logits)[0])
        below = outgrow.knowledge.trust.confidence(logits) < 0.8
        assert not below[0]

    @pytest.mark.parametrize("threshold", [0.0, 1.1, math.nan])
    def test_thresholds_that_make_no_sense(self, threshold):
        with pytest.raises(ValueError, match=r"needs a threshold in \(0, 1\], got .*; 0.8"):
            Confidence(threshold)


def fit_case(rows=60, seed=3):
    """Rows with a true curve: right with probability growing in the confidence; two views of each image."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(rows, 3, generator=generator)
    label = logits.argmax(dim=1)
    sure = logits.softmax(dim=1).amax(dim=1)
    wrong = torch.rand(rows, generator=generator) > sure
    label[wrong] = (label[wrong] + 1) % 3
    index = torch.arange(rows) // 2 + 5
    index[0] = 7  # an image with three views, one with a single one
    return logits, label, index


class TestReliability:
    def test_values_of_rows_that_were_not_fitted(self):
        logits, label, index = fit_case()
        fitted = Reliability().fit(logits, label, index)
        at = literal_confidence(logits)
        right = [float(row[y] == max(row)) for row, y in zip(logits.tolist(), label.tolist(), strict=True)]
        weight = [1 / index.tolist().count(i) for i in index.tolist()]
        other = fit_case(seed=9)[0]
        expected = [literal_isotonic(at, right, weight, x) for x in literal_confidence(other)]
        assert fitted.probability(other).tolist() == pytest.approx(expected, abs=1e-5)
        assert 0 < min(expected) < max(expected) <= 1

    def test_values_of_fitted_rows_are_out_of_fold(self):
        """The curve of a row is that of the folds without its image."""
        logits, label, index = fit_case()
        fitted = Reliability(folds=4).fit(logits, label, index)
        at = literal_confidence(logits)
        right = [float(row[y] == max(row)) for row, y in zip(logits.tolist(), label.tolist(), strict=True)]
        found = fitted.probability(logits, index)
        fold_of = {int(i): int(fitted.fold_of[i]) for i in index}
        assert set(fold_of.values()) == {0, 1, 2, 3}
        for i in range(len(index)):
            others = [j for j in range(len(index)) if fold_of[int(index[j])] != fold_of[int(index[i])]]
            weight = [1 / index.tolist().count(int(index[j])) for j in others]
            expected = literal_isotonic([at[j] for j in others], [right[j] for j in others], weight, at[i])
            assert found[i] == pytest.approx(expected, abs=1e-5)

    @pytest.mark.parametrize("kind", ["one rate", "between classes"])
    def test_wrong_labels_do_not_make_a_teacher_look_wrong(self, kind):
        """The curve of noisy labels with their noise is that of the true labels."""
        generator = torch.Generator().manual_seed(1)
        rows, classes = 40_000, 4
        logits = 2 * torch.randn(rows, classes, generator=generator)
        true = torch.multinomial(logits.softmax(dim=1), 1, generator=generator)[:, 0]
        noise = torch.full((classes, classes), 0.1) + 0.6 * torch.eye(classes)
        if kind == "between classes":  # each class is mistaken for the next, one of them often
            kept = torch.tensor([0.6, 0.9, 0.7, 1.0])
            noise = torch.diag(kept) + torch.diag(1 - kept).roll(1, dims=1)
        given = torch.multinomial(noise[true], 1, generator=generator)[:, 0]
        asked = torch.tensor(
            [[0.0, 0.0, 0.1, 0.0], [1.0, 0.0, 0.0, 0.0], [4.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 9.0]]
        )
        right = Reliability().fit(logits, true).probability(asked)
        trusted = Reliability().fit(logits, given).probability(asked)
        found = Reliability().fit(logits, given, noise=noise).probability(asked)
        assert (right - trusted)[2:].min() > 0.1
        torch.testing.assert_close(found, right, rtol=0, atol=0.05)

    def test_agreement_is_solved_for_being_right(self):
        """Literally, class by class, with noise that is not symmetric; the last class is bounded."""
        noise = torch.tensor([[0.7, 0.2, 0.1], [0.0, 0.9, 0.1], [0.2, 0.68, 0.12]])
        agrees, top = torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0, 0.0]), torch.tensor([0, 0, 1, 1, 2, 2])
        expected = []
        for a, j in zip(agrees.tolist(), top.tolist(), strict=True):
            chance = sum(float(noise[c, j]) for c in range(3) if c != j) / 2
            expected.append((a - chance) / max(float(noise[j, j]) - chance, LEAST_INFORMED))
        assert _rid_of_noise(agrees, top, noise).tolist() == pytest.approx(expected)
        # all right, in expectation: a share Q[j, j] agrees
        for j, kept in enumerate([0.7, 0.9]):
            shares = _rid_of_noise(torch.tensor([1.0, 0.0]), torch.tensor([j, j]), noise)
            assert kept * shares[0] + (1 - kept) * shares[1] == pytest.approx(1.0)

    def test_noise_of_other_classes_is_refused(self):
        logits, label, index = fit_case()
        with pytest.raises(ValueError, match=r"reliability: needs noise of 3 x 3 classes, got \(2, 2\)"):
            Reliability().fit(logits, label, index, noise=torch.eye(2))

    def test_no_weight_has_seen_its_own_label(self):
        logits, label, index = fit_case()
        index = torch.arange(len(label))
        before = Reliability().fit(logits, label, index).probability(logits, index)
        for i in (0, 17, 41):
            flipped = label.clone()
            flipped[i] = (flipped[i] + 1) % 3
            after = Reliability().fit(logits, flipped, index).probability(logits, index)
            assert after[i] == before[i]
            assert not torch.equal(after, before)

    def test_labels_are_not_read_when_weights_are_computed(self):
        logits, label, index = fit_case()
        fitted = Reliability(rows="all").fit(logits, label, index)
        one = fitted(rectify(logits, Target(label, index=index), rule="identity")).weight
        other = fitted(rectify(logits, Target((label + 1) % 3, index=index), rule="identity")).weight
        assert torch.equal(one, other)

    def test_a_labelled_row_gets_the_weight_of_the_folds_without_it(self):
        """In a step too: of rows="all" by the index of the target; rows without a label have the curve of all."""
        logits, label, index = fit_case()
        fitted = Reliability(rows="all").fit(logits, label, index)
        goal = label.clone()
        goal[::4] = UNLABELLED
        number = torch.where(goal == UNLABELLED, index + 1000, index)
        weight = fitted(rectify(logits, Target(goal, index=number), rule="identity")).weight
        out_of_fold, of_all = fitted.probability(logits, index), fitted.probability(logits)
        assert torch.equal(weight, torch.where(goal == UNLABELLED, of_all, out_of_fold))
        assert not torch.equal(out_of_fold[goal >= 0], of_all[goal >= 0])

    def test_unlabelled_rows_are_left_out_of_the_fit(self):
        logits, label, index = fit_case()
        fitted = Reliability().fit(logits, label, index)
        more = torch.cat([logits, 5 * logits[:7]])
        target = torch.cat([label, torch.full((7,), UNLABELLED)])
        again = Reliability().fit(more, target, torch.cat([index, index[:7] + 100]))
        assert torch.equal(fitted.at, again.at)
        assert torch.equal(fitted.value, again.value)

    @pytest.mark.parametrize("rows", ["unlabelled", "all"])
    def test_which_rows_are_weighed(self, rows):
        logits, label, index = fit_case()
        fitted = Reliability(rows=rows).fit(logits, label, index)
        goal = label.clone()
        goal[::3], goal[1] = UNLABELLED, IGNORE
        knowledge = fitted(rectify(logits, Target(goal, index=index + 1000)))
        found = fitted.probability(logits)
        for i in range(len(goal)):
            y = int(goal[i])
            judged = y == UNLABELLED or (rows == "all" and y >= 0)
            assert knowledge.weight[i] == (0 if y == IGNORE else found[i] if judged else 1)

    def test_a_teacher_that_is_always_right_weighs_all_alike(self):
        logits, _, index = fit_case()
        fitted = Reliability().fit(logits, logits.argmax(dim=1), index)
        assert (fitted.probability(3 * logits) == 1).all()

    def test_half_precision_and_no_rows(self):
        logits, label, index = fit_case()
        fitted = Reliability().fit(logits, label, index)
        assert fitted.probability(logits.half()).dtype == torch.float32
        assert fitted.probability(logits[:0]).shape == (0,)
        knowledge = fitted(rectify(logits[:0], label[:0]))
        assert knowledge.weight.shape == (0,)

    def test_its_state_comes_back(self):
        logits, label, index = fit_case()
        fitted = Reliability().fit(logits, label, index)
        again = Reliability().fit(logits, label, index)
        again.load_state_dict(fitted.state_dict())
        assert torch.equal(again.probability(logits, index), fitted.probability(logits, index))
        assert "how often the teacher is right" in str(fitted)

    def test_what_it_refuses(self):
        logits, label, _ = fit_case()
        with pytest.raises(ValueError, match=r"needs at least 10 labelled images for 5 folds, got 4; give"):
            Reliability().fit(logits[:8], label[:8], torch.arange(8) // 2)
        with pytest.raises(ValueError, match=r"reliability: needs labels in 0..\d+, got 99; check"):
            Reliability().fit(logits, torch.full_like(label, 99))
        with pytest.raises(ValueError, match=r"needs to be fitted, got none; call .fit"):
            Reliability().probability(logits)
        with pytest.raises(ValueError, match="needs at least 2 folds, got 1"):
            Reliability(folds=1)


class TestUnderTheObjective:
    @pytest.mark.parametrize("normalize", ["rows", "subset"])
    @pytest.mark.parametrize("rows", ["unlabelled", "all"])
    @pytest.mark.parametrize("fast", [True, False])
    @pytest.mark.parametrize("lacking", [True, False])
    def test_value_gradient_and_statistics(self, normalize, rows, fast, lacking):
        student, teacher, label = batch()
        if not lacking:
            label = torch.arange(len(label)) % 4
        target = Target(label)
        trust = make_trust(f"confidence(0.6, rows={rows})")
        result = Objective("kd", normalize=normalize, fast=fast)(
            student, Rectifier("identity", trust=trust)(teacher, target), target, 0.0
        )

        def literal(s):
            task, labelled, sums, counts = 0.0, 0, [0.0, 0.0], [0.0, 0.0]
            taking, left_out = 0, 0
            for row, z, y in zip(s, teacher.tolist(), label.tolist(), strict=True):
                if y == IGNORE:
                    continue
                taking += 1
                if y >= 0:
                    labelled += 1
                    task -= reference.log_softmax(row)[y]
                judged = y < 0 or rows == "all"
                weight = 0.0 if judged and max(rules.softmax(z, 1.0)) < 0.6 else 1.0
                left_out += weight == 0
                hard = y >= 0 and z[y] < max(z)
                kl = 16 * reference.kl(rules.softmax(z, 4.0), reference.log_softmax(row, 4.0))
                sums[hard] += weight * kl
                counts[hard] += weight
            if normalize == "rows":
                kd = sum(sums) / taking
            else:
                kd = sum(part / max(count, 1) for part, count in zip(sums, counts, strict=True))
            return task / max(labelled, 1) + kd, left_out / taking

        value, left_out = literal(student.tolist())
        assert left_out > 0 or not (lacking or rows == "all")
        assert result.total.item() == pytest.approx(value, rel=1e-9)
        assert result.stats["left_out"].item() == pytest.approx(left_out)
        assert result.stats["trust"].item() == pytest.approx(1 - left_out)
        (gradient,) = torch.autograd.grad(result.total, student)
        for i, c in [(0, 0), (4, 1), (7, 3), (10, 2), (11, 0)]:
            numeric = []
            for step in (1e-6, -1e-6):
                moved = student.tolist()
                moved[i][c] += step
                numeric.append(literal(moved)[0])
            assert gradient[i, c].item() == pytest.approx((numeric[0] - numeric[1]) / 2e-6, abs=1e-7)

    def test_reliability_weighs_the_gradient_of_a_row(self):
        logits, label, index = fit_case()
        fitted = Reliability().fit(logits, label, index)
        student, teacher, goal = batch(classes=3)
        plain, weighed = (
            torch.autograd.grad(
                Objective("kd", task_weight=0.0)(
                    student, Rectifier("identity", trust=t)(teacher, goal), goal, 0.0
                ).total,
                student,
            )[0]
            for t in (None, fitted)
        )
        factor = torch.where(goal == UNLABELLED, fitted.probability(teacher).double(), 1.0)
        assert 0 < factor.min() < 1
        torch.testing.assert_close(weighed, factor[:, None] * plain)

    def test_rows_left_out_poison_nothing(self):
        """A row that is left out may hold anything finite; its gradient is exactly zero."""
        student, teacher, label = batch()
        with torch.no_grad():
            student[7] = torch.tensor([1e300, -1e300, 0.0, 0.0])
        teacher[7] = 0.0
        knowledge = Rectifier("identity", trust=Confidence(0.5))(teacher, label)
        result = Objective("kd")(student, knowledge, label, 0.0)
        (gradient,) = torch.autograd.grad(result.total, student)
        assert gradient.isfinite().all()
        assert (gradient[7] == 0).all()

    @pytest.mark.parametrize("fast", ["eager", False])
    def test_a_labelled_row_left_out_poisons_nothing_where_all_have_a_label(self, fast):
        """Its own loss would overflow, and 0 times that is no number."""
        student, teacher = torch.randn(4, 3), 4 * torch.eye(4, 3)
        student[3] = torch.tensor([3e38, -3e38, 0.0])
        student.requires_grad_()
        teacher[3] = 0.0
        label = torch.tensor([0, 1, 2, 0])
        knowledge = Rectifier("identity", trust="confidence(0.5, rows=all)")(teacher, label)
        result = Objective("kd", task_weight=0.0, fast=fast)(student, knowledge, label, 0.0)
        (gradient,) = torch.autograd.grad(result.total, student)
        assert result.total.isfinite()
        assert gradient.isfinite().all()
        assert (gradient[3] == 0).all()

    def test_without_a_trust_nothing_is_said_of_it(self):
        student, teacher, label = batch()
        result = Objective("kd")(student, rectify(teacher, label), label, 0.0)
        assert not {"trust", "left_out"} & result.stats.keys()

    def test_it_goes_on_after_the_rule(self):
        _, teacher, label = batch()
        knowledge = Rectifier("drop", trust="confidence(0.6, rows=all)")(teacher, label)
        dropped = rectify(teacher, label, rule="drop").weight
        trusted = Rectifier("identity", trust="confidence(0.6, rows=all)")(teacher, label).weight
        assert torch.equal(knowledge.weight, dropped * trusted)


def test_by_name():
    assert set(TRUSTS) == {"confidence", "reliability"}
    assert make_trust("confidence(0.9)") == Confidence(0.9)
    assert make_trust("reliability(rows=all)").rows == "all"
    rectify_, _ = outgrow.preset("kd", trust="confidence(0.7)")
    assert rectify_.trust == Confidence(0.7)
    with pytest.raises(ValueError, match="trust: needs one of confidence, reliability; got 'trusted'"):
        make_trust("trusted")
    with pytest.raises(ValueError, match="trust: needs one name without a weight"):
        make_trust("0.5*confidence(0.7)")
