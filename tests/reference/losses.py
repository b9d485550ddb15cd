"""The losses, written from the papers, in float64, without the library's helpers.

Gradients come from autograd through these literal forms, so a value and its gradient have another
route than the library's.
"""

import math

import torch


def softmax(z):
    powers = z.exp()
    return powers / powers.sum(dim=-1, keepdim=True)


def kd(student, teacher, label, temperature=4.0):
    rows = []
    for s, z in zip(student, teacher, strict=True):
        p, t = softmax(s / temperature), softmax(z / temperature)
        rows.append(temperature**2 * sum(t[c] * (t[c] / p[c]).log() for c in range(len(s))))
    return torch.stack(rows)


def dkd(student, teacher, label, alpha=1.0, beta=8.0, temperature=4.0):
    rows = []
    for s, z, y in zip(student, teacher, label.tolist(), strict=True):
        p, t = softmax(s / temperature), softmax(z / temperature)
        binary = t[y] * (t[y] / p[y]).log() + (1 - t[y]) * ((1 - t[y]) / (1 - p[y])).log()
        rest = 0.0
        for c in range(len(s)):
            if c != y:
                t_hat, p_hat = t[c] / (1 - t[y]), p[c] / (1 - p[y])
                rest = rest + t_hat * (t_hat / p_hat).log()
        rows.append(temperature**2 * (alpha * binary + beta * rest))
    return torch.stack(rows)


def nkd(student, teacher, label, gamma=1.5, temperature=1.0):
    rows = []
    for s, z, y in zip(student, teacher, label.tolist(), strict=True):
        p, t = softmax(s), softmax(z)
        others = [c for c in range(len(s)) if c != y]
        p_hat, t_hat = softmax(s[others] / temperature), softmax(z[others] / temperature)
        rest = sum(t_hat[i] * p_hat[i].log() for i in range(len(others)))
        rows.append(-t[y] * p[y].log() - gamma * temperature**2 * rest)
    return torch.stack(rows)


def ttm(student, teacher, label, exponent=0.2):
    rows = []
    for s, z in zip(student, teacher, strict=True):
        p, powers = softmax(s), softmax(z) ** exponent
        q = powers / powers.sum()
        rows.append(sum(q[c] * (q[c] / p[c]).log() for c in range(len(s))))
    return torch.stack(rows)


def wttm(student, teacher, label, exponent=0.2):
    weights = torch.stack([sum(t**exponent for t in softmax(z)) for z in teacher])
    return weights * ttm(student, teacher, label, exponent)


def normkd(student, teacher, label, temperature=2.0):
    rows = []
    for s, z in zip(student, teacher, strict=True):
        own, theirs = temperature * s.std(), temperature * z.std()
        p, t = softmax(s / own), softmax(z / theirs)
        rows.append(theirs**2 * sum(t[c] * (t[c] / p[c]).log() for c in range(len(s))))
    return torch.stack(rows)


def ctkd(student, teacher, label, theta=1.0, start=1.0, scale=20.0):
    return kd(student, teacher, label, start + scale / (1 + math.exp(-theta)))


def wsl(student, teacher, label, temperature=2.0):
    rows = []
    for s, z, y in zip(student, teacher, label.tolist(), strict=True):
        own, theirs = -softmax(s)[y].log().item(), -softmax(z)[y].log().item()
        weight = 1 - math.exp(-own / (theirs + 1e-7))  # 1e-7: the authors' code
        p, t = softmax(s / temperature), softmax(z / temperature)
        rows.append(temperature**2 * weight * sum(-t[c] * p[c].log() for c in range(len(s))))
    return torch.stack(rows)


def rld(student, teacher, label, alpha=1.0, beta=8.0, temperature=4.0):
    rows = []
    for s, z, y in zip(student, teacher, label.tolist(), strict=True):
        p, t = softmax(s / temperature), softmax(z / temperature)
        best = max(t)
        value = alpha * (best * (best / p[y]).log() + (1 - best) * ((1 - best) / (1 - p[y])).log())
        behind = [c for c in range(len(z)) if z[c] < z[y]]
        if behind:
            p_hat, t_hat = p[behind] / sum(p[behind]), t[behind] / sum(t[behind])
            for i in range(len(behind)):
                value = value + beta * t_hat[i] * (t_hat[i] / p_hat[i]).log()
        rows.append(temperature**2 * value)
    return torch.stack(rows)


def rc(student, teacher, label, temperature=4.0):
    corrected = []
    for s, y in zip(student.tolist(), label.tolist(), strict=True):
        corrected.append([s[c] + (max(s) if c == y else 0.0) for c in range(len(s))])
    corrected = torch.tensor(corrected, dtype=student.dtype)
    return kd(student, corrected, label, temperature)


def exchanged(logits, label):
    rows = []
    for row, y in zip(logits, label.tolist(), strict=True):
        order = list(range(len(row)))
        top = max(order, key=lambda c: (row[c].item(), c == y))
        order[y], order[top] = order[top], order[y]
        rows.append(row[order])
    return torch.stack(rows)


def sld(student, teacher, label, temperatures=(1, 2, 3, 4, 5, 6)):
    """Late in the training, with both teachers."""
    total = 0.0
    for temperature in temperatures:
        total = total + kd(student, exchanged(teacher, label), label, temperature)
        total = total + kd(student, exchanged(student, label), label, temperature)
    return total


def slam(student, teacher, label, accuracy=0.5, top=None):
    rows = []
    for s, z in zip(student, teacher, strict=True):
        p, t = softmax(s), softmax(z)
        k = len(s) if top is None else top
        best = sorted(range(len(z)), key=lambda c: -z[c].item())[:k]
        alpha = max(accuracy, 1 / k)
        value = 0.0
        for c in range(len(s)):
            mixed = alpha * p[c]
            if c in best:
                mixed = mixed + (1 - alpha) / (k - 1) * (1 - p[c])
            value = value - t[c] * mixed.log()
        rows.append(value)
    return torch.stack(rows)


def semiparametric(student, teacher, label, temperature=2.0, floor=0.01):
    """w is q to the power 1 / T, normalised; its derivative in q is written out."""
    rows = []
    for s, z, y in zip(student, teacher, label.tolist(), strict=True):
        q, w, p = softmax(z), softmax(z / temperature), softmax(s / temperature)
        value = sum(w[c] * (w[c] / p[c]).log() for c in range(len(s)))
        if y >= 0:
            for c in range(len(s)):
                # d w_c / d q_j = (w_c / T) ((c == j) - w_j) / q_j
                slope = 0.0
                for j in range(len(s)):
                    relative = (1.0 if j == y else 0.0) / max(q[j].item(), floor) - 1
                    slope = slope + w[c] / temperature * ((1.0 if c == j else 0.0) - w[j]) * relative
                value = value - slope * p[c].log()
        rows.append(temperature**2 * value)
    return torch.stack(rows)


def ppi(student, teacher, label, temperature=1.0):
    value = kd(student, teacher, label, temperature)
    with_label = [value[i] for i in range(len(label)) if label[i] >= 0]
    without = [value[i] for i in range(len(label)) if label[i] < 0]
    if not with_label or not without:
        return 0.0 * value.sum()
    return sum(without) / len(without) - sum(with_label) / len(with_label)


def jsd(student, teacher, label, beta=0.5, temperature=4.0):
    rows = []
    for s, z in zip(student, teacher, strict=True):
        p, t = softmax(s / temperature), softmax(z / temperature)
        m = beta * t + (1 - beta) * p
        from_teacher = sum(t[c] * (t[c] / m[c]).log() for c in range(len(s)))
        from_student = sum(p[c] * (p[c] / m[c]).log() for c in range(len(s)))
        rows.append(temperature**2 * (beta * from_teacher + (1 - beta) * from_student))
    return torch.stack(rows)


def reverse_kl(student, teacher, label, temperature=4.0):
    return kd(teacher, student, label, temperature)


def pearson(a, b):
    a, b = a - a.mean(), b - b.mean()
    return (a * b).sum() / (a.norm() * b.norm())


def dist(student, teacher, label, beta=1.0, gamma=1.0, temperature=4.0):
    p, t = softmax(student / temperature), softmax(teacher / temperature)
    inter = sum(1 - pearson(p[i], t[i]) for i in range(len(p))) / len(p)
    intra = sum(1 - pearson(p[:, c], t[:, c]) for c in range(p.shape[1])) / p.shape[1]
    return temperature**2 * (beta * inter + gamma * intra)


def zscore(z):
    return (z - z.mean()) / (z.std() + 1e-7)


def standardize(student, teacher, label, temperature=2.0):
    student = torch.stack([zscore(s) for s in student])
    teacher = torch.stack([zscore(z) for z in teacher])
    return kd(student, teacher, label, temperature)


def crd_negatives(uniform, own, samples):
    """Which of ``samples`` (numbers to labels, None where unknown) each uniform number in [0, 1) picks.

    Candidates are the samples of other classes than ``own``, all of them for a row without a label; in the order
    of class and place, those without a label first.
    """
    place = {number: i for i, number in enumerate(samples)}
    candidates = [n for n, label in samples.items() if own is None or label is None or label != own]
    candidates.sort(key=lambda n: (-1 if samples[n] is None else samples[n], place[n]))
    return [candidates[int(u * len(candidates))] for u in uniform]


def crd(own, other, student_memory, teacher_memory, index, label, samples, uniform, temperature=0.07, z=None):
    """Equations 17 to 19: each row's value, and the constants Z (from this batch where none are given).

    ``own`` and ``other`` are unit vectors of the rows, the memories dictionaries by sample number.
    """
    total, found = [0.0] * len(own), []
    for side, (anchors, memory) in enumerate(((own, teacher_memory), (other, student_memory))):
        scores = []
        for anchor, number, y, u in zip(anchors, index, label, uniform, strict=True):
            drawn = [number, *crd_negatives(u, y, samples)]
            scores.append([(sum(anchor * memory[n]) / temperature).exp() for n in drawn])
        if z is None:
            flat = [score.item() for row in scores for score in row]
            found.append(sum(flat) / len(flat) * len(samples))
        else:
            found.append(z[side])
        for i, (positive, *negatives) in enumerate(scores):
            noise = len(negatives) / len(samples)
            total[i] = total[i] - (positive / found[side] / (positive / found[side] + noise)).log()
            for score in negatives:
                total[i] = total[i] - (noise / (score / found[side] + noise)).log()
    return torch.stack(total), found


def cross_entropy(student, label):
    return -torch.stack([s[y] - s.exp().sum().log() for s, y in zip(student, label.tolist(), strict=True)])


ROWS = {
    "kd": kd,
    "dkd": dkd,
    "standardize": standardize,
    "nkd": nkd,
    "ttm": ttm,
    "wttm": wttm,
    "normkd": normkd,
    "ctkd": ctkd,
    "wsl": wsl,
    "rld": rld,
    "rc": rc,
    "sld": sld,
    "slam": slam,
    "semiparametric": semiparametric,
    "jsd": jsd,
    "reverse_kl": reverse_kl,
}
BATCH = {"dist": dist, "ppi": ppi}
