"""The teacher and a label that may be wrong: Bayes, as a rule and as the task."""

import math

import pytest
import torch

import outgrow
from outgrow import Objective, Rectifier, Target
from outgrow.knowledge import make_rule, rectify
from outgrow.knowledge.posterior import Posterior, posterior
from outgrow.outputs import UNLABELLED
from tests.knowledge.test_rules import batch
from tests.reference import rules as reference

CLASSES = 5


def noise(seed=0, classes=CLASSES):
    """A matrix [true, given] with most of each row on its class."""
    generator = torch.Generator().manual_seed(seed)
    off = torch.rand(classes, classes, generator=generator, dtype=torch.float64).fill_diagonal_(0)
    return 0.7 * torch.eye(classes, dtype=torch.float64) + 0.3 * off / off.sum(dim=1, keepdim=True)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_every_row_with_a_label_is_the_literal_posterior(temperature):
    logits, label = batch(classes=CLASSES)
    label[::5] = UNLABELLED
    matrix = noise()
    knowledge = Rectifier(Posterior(matrix), temperature, rows="all")(logits, Target(label))
    assert knowledge.temperature is None
    assert torch.equal(knowledge.corrected, label >= 0)
    believed = (outgrow.corrected_logits(knowledge) / temperature).softmax(dim=1)
    for row in range(len(label)):
        t = reference.softmax(logits[row].tolist(), temperature)
        if label[row] >= 0:
            t = reference.posterior(t, int(label[row]), temperature, matrix.tolist())
        assert believed[row].tolist() == pytest.approx(t, abs=1e-12)


def test_noise_of_one_rate_is_a_boost():
    logits, label = batch(classes=CLASSES)
    delta = math.log(0.8 * (CLASSES - 1) / 0.2)
    matrix = torch.full((CLASSES, CLASSES), 0.2 / (CLASSES - 1), dtype=torch.float64).fill_diagonal_(0.8)
    boosted = make_rule(f"boost(delta={delta})")(logits, label, temperature=4.0)
    torch.testing.assert_close(posterior(logits, label, noise=0.2), boosted)
    torch.testing.assert_close(posterior(logits, label, noise=matrix).softmax(1), boosted.softmax(1))


def test_it_is_the_frequency_of_true_classes():
    """Draw images, true classes and wrong labels: among rows of one belief and one label, the posterior is what is true."""
    generator = torch.Generator().manual_seed(0)
    matrix, belief = noise(), torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05], dtype=torch.float64)
    true = torch.multinomial(belief, 200_000, replacement=True, generator=generator)
    given = torch.multinomial(matrix[true], 1, generator=generator)[:, 0]
    for label in range(CLASSES):
        counts = torch.bincount(true[given == label], minlength=CLASSES).double()
        found = posterior(belief.log()[None], torch.tensor([label]), noise=matrix).softmax(1)[0]
        torch.testing.assert_close(counts / counts.sum(), found, rtol=0, atol=0.01)


def test_a_label_that_excludes_classes_rules_them_out():
    sure = torch.eye(3, dtype=torch.float64)
    logits = torch.zeros(1, 3, dtype=torch.float64)
    assert posterior(logits, torch.tensor([2]), noise=sure).softmax(1).tolist() == [[0, 0, 1]]


@pytest.mark.parametrize("kind", ["plain", "blended", "unlabelled"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_task_against_the_posterior(kind, smoothing):
    """Value and gradient of the literal cross-entropy, one row at a time, and no gradient to the teacher."""
    logits, label = batch(rows=12, classes=CLASSES)
    student = torch.randn(12, CLASSES, dtype=torch.float64).requires_grad_()
    matrix, mix = noise(), torch.linspace(0.1, 0.9, 12, dtype=torch.float64)
    if kind == "unlabelled":
        label[3:7] = UNLABELLED
    target = Target(label, may_ignore=kind == "unlabelled")
    if kind == "blended":
        target = Target(label, partner=label.flip(0), mix=mix)
    objective = Objective("kd", task_rule=Posterior(matrix), label_smoothing=smoothing)
    result = objective(student, rectify(logits.requires_grad_(), target), target, 0.0)
    log_p = student - student.exp().sum(dim=1, keepdim=True).log()

    def row_loss(row, given):
        t = reference.posterior(reference.softmax(logits[row].tolist(), 1.0), given, 1.0, matrix.tolist())
        return sum(-((1 - smoothing) * p + smoothing / CLASSES) * log_p[row, c] for c, p in enumerate(t))

    expected = torch.zeros((), dtype=torch.float64)
    for row in range(12):
        if label[row] == UNLABELLED:
            continue
        own = row_loss(row, int(label[row]))
        if kind == "blended":
            own = mix[row] * own + (1 - mix[row]) * row_loss(row, int(label.flip(0)[row]))
        expected = expected + own / (label >= 0).sum()
    torch.testing.assert_close(result.terms["task"], expected.detach())
    plain = Objective("kd")(student, rectify(logits, target), target, 0.0)
    alone = Objective({})(student, rectify(logits, target), target, 0.0)
    gradients = [
        torch.autograd.grad(total, student, retain_graph=True)[0]
        for total in (result.total, expected + plain.total - alone.total)
    ]
    torch.testing.assert_close(*gradients)
    assert logits.grad is None


@pytest.mark.parametrize("rule", ["lead", "label_smooth"])
def test_another_rule_is_the_task_at_temperature_one(rule):
    """Whatever the temperature of the rectifier and of the losses."""
    logits, label = batch(rows=12, classes=CLASSES)
    student = torch.randn(12, CLASSES, dtype=torch.float64)
    objective = Objective("kd", task_rule=make_rule(rule))
    result = objective(student, rectify(logits, label, rule="swap", temperature=4.0), label, 0.0)
    log_p = student.log_softmax(dim=1)
    expected = 0.0
    for row, y in enumerate(label.tolist()):
        wanted = reference.RULES[rule](reference.softmax(logits[row].tolist(), 1.0), y)
        expected -= sum(t * log_p[row, c].item() for c, t in enumerate(wanted)) / 12
    assert result.terms["task"].item() == pytest.approx(expected, rel=1e-9)


def test_the_task_weighs_classes_as_with_labels():
    logits, label = batch(rows=12, classes=CLASSES)
    label[3] = UNLABELLED
    student = torch.randn(12, CLASSES, dtype=torch.float64)
    matrix, weights = noise(), torch.linspace(0.5, 2.0, CLASSES, dtype=torch.float64)
    objective = Objective({}, task_rule=Posterior(matrix), class_weights=weights)
    result = objective(student, rectify(logits, label), label, 0.0)
    expected = 0.0
    for row, y in enumerate(label.tolist()):
        if y != UNLABELLED:
            t = reference.posterior(reference.softmax(logits[row].tolist(), 1.0), y, 1.0, matrix.tolist())
            log_p = student[row].log_softmax(dim=0)
            expected -= sum(float(weights[c]) * t[c] * float(log_p[c]) for c in range(CLASSES)) / 11
    assert result.terms["task"].item() == pytest.approx(expected, rel=1e-9)


def test_a_preset_applies_it_to_all_rows():
    assert outgrow.preset("kd", rule="posterior(noise=0.2)")[0].rows == "all"
    assert outgrow.preset("kd", rule=Posterior(noise()))[0].rows == "all"
    assert outgrow.preset("kd", rule="pair")[0].rows == "wrong"


def test_errors():
    for wrong in (torch.zeros(3, 3), torch.ones(2, 3) / 3, torch.tensor([[0.0, 1.0], [0.0, 1.0]])):
        with pytest.raises(ValueError, match="needs a matrix of probabilities"):
            Posterior(wrong)
    with pytest.raises(ValueError, match="a matrix for 3 classes, got one for 5"):
        rectify(torch.zeros(1, 3), torch.tensor([1]), rule=Posterior(noise()), rows="all").rule(
            torch.zeros(1, 3), torch.tensor([1]), temperature=1.0
        )
