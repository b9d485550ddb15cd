"""The losses, written from the papers, in float64, without the library's helpers.

Gradients come from autograd through these literal forms, so a value and its gradient have another
route than the library's.
"""

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


def crd_side(anchor, memory, samples, z, num_samples, temperature):
    """Equation 18 with the scores of one anchor; samples[0] is its own."""
    negatives = len(samples) - 1
    noise = negatives / num_samples
    scores = [(anchor @ memory[j] / temperature).exp() / z for j in samples]
    value = -(scores[0] / (scores[0] + noise)).log()
    for score in scores[1:]:
        value = value - (noise / (score + noise)).log()
    return value


def cross_entropy(student, label):
    return -torch.stack([s[y] - s.exp().sum().log() for s, y in zip(student, label.tolist(), strict=True)])


ROWS = {"kd": kd, "dkd": dkd, "standardize": standardize}
BATCH = {"dist": dist}

