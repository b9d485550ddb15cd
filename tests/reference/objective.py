"""The paper's total, the released code's and one with rows that have no label, row by row in plain Python floats."""

import math

from tests.reference import rules


def log_softmax(logits, temperature=1.0):
    largest = max(logits) / temperature
    total = largest + math.log(sum(math.exp(z / temperature - largest) for z in logits))
    return [z / temperature - total for z in logits]


def kl(teacher, log_student):
    return sum(t * (math.log(t) - s) for t, s in zip(teacher, log_student, strict=True) if t > 0)


def split_means(student, teacher, label, rule, temperature):
    """Means over right rows and over wrong rows of T^2 KL, the latter against the corrected teacher."""
    easy, hard = [], []
    for s, z, y in zip(student, teacher, label, strict=True):
        log_student = log_softmax(s, temperature)
        t = rules.softmax(z, temperature)
        if z[y] == max(z):
            easy.append(temperature**2 * kl(t, log_student))
        else:
            hard.append(temperature**2 * kl(rule(t, y), log_student))
    return sum(easy) / max(len(easy), 1), sum(hard) / max(len(hard), 1)


def mean_cross_entropy(student, label):
    return -sum(log_softmax(s)[y] for s, y in zip(student, label, strict=True)) / len(label)


def paper(student, teacher, label, progress, temperature=4.0):
    easy, hard = split_means(student, teacher, label, rules.pair, temperature)
    return (1 - progress) * (mean_cross_entropy(student, label) + easy) + progress * hard


def released(student, teacher, label, progress, temperature=5.0):
    easy, hard = split_means(student, teacher, label, rules.swap, temperature)
    blend = math.cos(math.pi * progress / 2) ** 2 * easy + math.sin(math.pi * progress / 2) ** 2 * hard
    return 0.5 * mean_cross_entropy(student, label) + 0.5 * blend


def total(student, teacher, label, rule, weights, *, normalize="rows", drop=False, temperature=4.0):
    """Cross-entropy and T^2 KL where a label may be None (there is none) or "ignore" (the row is not there).

    Also the share of labelled rows that are wrong, and of all rows that have no label.
    """
    rows = [row for row in zip(student, teacher, label, strict=True) if row[2] != "ignore"]
    labelled = [(s, z, y) for s, z, y in rows if y is not None]
    wrong = [z[y] < max(z) for _, z, y in labelled]
    task = -sum(log_softmax(s)[y] for s, _, y in labelled) / max(len(labelled), 1)
    easy, hard = [], []
    for s, z, y in rows:
        t, log_student = rules.softmax(z, temperature), log_softmax(s, temperature)
        if y is None or z[y] == max(z):  # where nobody knows better, the teacher is believed
            easy.append(temperature**2 * kl(t, log_student))
        elif not drop:
            hard.append(temperature**2 * kl(rule(t, y), log_student))
    of_easy, of_hard = (len(rows),) * 2 if normalize == "rows" else (len(easy), len(hard))
    w_task, w_easy, w_hard = weights
    value = w_task * task + w_easy * sum(easy) / max(of_easy, 1) + w_hard * sum(hard) / max(of_hard, 1)
    unlabelled = (len(rows) - len(labelled)) / max(len(rows), 1)
    return value, sum(wrong) / max(len(labelled), 1), unlabelled
