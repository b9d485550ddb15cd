"""The losses on features and relations, written from the papers in plain loops and float64.

Losses on maps get lists of maps (images, channels, height, width), the parameters and buffers of their
adapters by name, and whether they are in training. What they hold is as in the library; what is done
with it is written anew. Gradients come from autograd through these forms.
"""

import math

import torch

# --- pieces -------------------------------------------------------------------------------------


def pooled(feature, height, width):
    """Mean over equal blocks; the sizes here divide."""
    images, channels, tall, wide = feature.shape
    blocks = feature.reshape(images, channels, height, tall // height, width, wide // width)
    return blocks.sum(dim=(3, 5)) / ((tall // height) * (wide // width))


def smaller(a, b):
    height, width = min(a.shape[2], b.shape[2]), min(a.shape[3], b.shape[3])
    return pooled(a, height, width), pooled(b, height, width)


def conv1x1(feature, weight, bias=None):
    out = torch.stack([sum(w[c, 0, 0] * feature[:, c] for c in range(len(w))) for w in weight], dim=1)
    return out if bias is None else out + bias[:, None, None]


def conv3x3(feature, weight, bias=None):
    images, channels, height, width = feature.shape
    wide = feature.new_zeros(images, channels, height + 2, width + 2)
    wide[:, :, 1:-1, 1:-1] = feature
    out = 0.0
    for i in range(3):
        for j in range(3):
            out = out + torch.einsum(
                "oc,nchw->nohw", weight[:, :, i, j], wide[:, :, i : i + height, j : j + width]
            )
    return out if bias is None else out + bias[:, None, None]


def batch_norm(feature, state, name, training):
    if training:
        mean = feature.mean(dim=(0, 2, 3))
        variance = ((feature - mean[:, None, None]) ** 2).mean(dim=(0, 2, 3))
    else:
        mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    scaled = (feature - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt()
    return scaled * state[f"{name}.weight"][:, None, None] + state[f"{name}.bias"][:, None, None]


def length(vector):
    return (vector * vector).sum().sqrt()


# --- losses on maps: one value an image, one pair of maps -------------------------------------------


def at_pair(student, teacher, power=2):
    student, teacher = smaller(student, teacher)
    values = []
    for s, t in zip(student, teacher, strict=True):
        a = (sum(channel**power for channel in s) / len(s)).flatten()
        b = (sum(channel**power for channel in t) / len(t)).flatten()
        values.append(((a / length(a) - b / length(b)) ** 2).mean())
    return torch.stack(values)


def nst_pair(student, teacher):
    student, teacher = smaller(student, teacher)
    values = []
    for s, t in zip(student, teacher, strict=True):
        s = [c.flatten() / length(c) for c in s]
        t = [c.flatten() / length(c) for c in t]
        kernel = lambda a, b: sum((x @ y) ** 2 for x in a for y in b) / (len(a) * len(b))  # noqa: E731
        values.append(kernel(t, t) + kernel(s, s) - 2 * kernel(s, t))
    return torch.stack(values)


def fitnet_pair(student, teacher):
    return torch.stack([((s - t) ** 2).sum() / s.numel() for s, t in zip(student, teacher, strict=True)])


def ofd_pair(student, teacher, margin):
    values = []
    for s, t in zip(student, teacher, strict=True):
        value = 0.0
        for c in range(len(s)):
            for a, b in zip(s[c].flatten(), t[c].flatten(), strict=True):
                if b > 0:
                    value = value + (a - b) ** 2
                elif b > margin[c]:
                    value = value + (a - b) ** 2 * (a > b)
                else:
                    value = value + (a - margin[c]) ** 2 * (a > margin[c])
        values.append(value)
    return torch.stack(values)


def negative_mean(maps):
    """The expected negative response of each channel over several maps."""
    channels = maps[0].shape[1]
    values = [torch.cat([m[:, c].flatten() for m in maps]) for c in range(channels)]
    return [v[v < 0].mean() if (v < 0).any() else torch.tensor(0.0) for v in values]


def vid_pair(mean, teacher, variance):
    values = []
    for m, t in zip(mean, teacher, strict=True):
        terms = [(t[c] - m[c]) ** 2 / (2 * variance[c]) + variance[c].sqrt().log() for c in range(len(t))]
        values.append(torch.stack(terms).mean())
    return torch.stack(values)


def reviewkd_pair(student, teacher):
    weights, values = [1.0], [((student - teacher) ** 2).mean(dim=(1, 2, 3))]
    for side in (4, 2, 1):
        if side < student.shape[2]:
            weights.append(weights[-1] / 2)
            difference = pooled(student, side, side) - pooled(teacher, side, side)
            values.append((difference**2).mean(dim=(1, 2, 3)))
    return sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)


def cwd_pair(student, teacher, temperature=1.0):
    values = []
    for s, t in zip(student, teacher, strict=True):
        value = 0.0
        for a, b in zip(s, t, strict=True):
            p, q = (a.flatten() / temperature).exp(), (b.flatten() / temperature).exp()
            p, q = p / p.sum(), q / q.sum()
            value = value + (q * (q / p).log()).sum()
        values.append(temperature**2 * value / len(s))
    return torch.stack(values)


def pkd_pair(student, teacher):
    def standard(feature):
        out = []
        for c in range(feature.shape[1]):
            x = feature[:, c]
            out.append((x - x.mean()) / ((x - x.mean()) ** 2).mean().sqrt())
        return torch.stack(out, dim=1)

    s, t = standard(student), standard(teacher)
    return torch.stack([((a - b) ** 2).mean() / 2 for a, b in zip(s, t, strict=True)])


def right_vectors(feature, count):
    """Of one image (channels, height, width), by the eigenvectors of channels x channels."""
    matrix = feature.flatten(1).T  # positions x channels
    power, vectors = torch.linalg.eigh(matrix.T @ matrix)
    order = power.argsort(descending=True)[:count]
    return [vectors[:, i] for i in order], [power[i].sqrt() for i in order]


def kdsvd_image(student, teacher, k):
    """Lists of one image's maps by stage."""
    value, before = 0.0, None
    for s, t in zip(student, teacher, strict=True):
        own, _ = right_vectors(s, k + 3)
        other, size = right_vectors(t, k)
        size = [x / sum(y**2 for y in size).sqrt() for x in size]
        now = []
        for v, x in zip(other, size, strict=True):
            v = v if v[v.abs().argmax()] > 0 else -v
            best = max(own, key=lambda u: abs(float((u @ v).detach())))
            best = best if best @ v > 0 else -best
            now.append((x * best, x * v))
        for pair, previous in zip(now, before or [], strict=before is not None):
            (a, b), (c, d) = pair, previous
            for i in range(len(a)):
                for j in range(len(c)):
                    value = (
                        value + ((-((a[i] - c[j]) ** 2) / 8).exp() - (-((b[i] - d[j]) ** 2) / 8).exp()) ** 2
                    )
        before = now
    return value


# --- losses on maps: all stages and their adapters ---------------------------------------------------


def at(student, teacher, state, training, seen):
    return sum(at_pair(s, t) for s, t in zip(student, teacher, strict=True))


def nst(student, teacher, state, training, seen):
    return sum(nst_pair(s, t) for s, t in zip(student, teacher, strict=True))


def kdsvd(student, teacher, state, training, seen, k=1):
    images = range(len(student[0]))
    return torch.stack([kdsvd_image([s[i] for s in student], [t[i] for t in teacher], k) for i in images])


def fitnet(student, teacher, state, training, seen):
    own = conv1x1(student[0], state["connectors.0.0.weight"])
    own = batch_norm(own, state, "connectors.0.1", training)
    return fitnet_pair(own * (own > 0), teacher[0])


def ofd(student, teacher, state, training, seen):
    """``seen``: for each stage the teacher's maps so far, of which the margins are the mean."""
    value = 0.0
    for i, (s, t) in enumerate(zip(student, teacher, strict=True)):
        own = batch_norm(conv1x1(s, state[f"connectors.{i}.0.weight"]), state, f"connectors.{i}.1", training)
        value = value + ofd_pair(own, t, negative_mean(seen[i])) * 0.5 ** (len(student) - 1 - i)
    return value


def vid(student, teacher, state, training, seen, eps=1e-5):
    value = 0.0
    for i, (s, t) in enumerate(zip(student, teacher, strict=True)):
        own, t = smaller(s, t)
        for layer in (0, 2, 4):
            own = conv1x1(own, state[f"regressors.{i}.{layer}.weight"])
            own = own * (own > 0) if layer < 4 else own
        value = value + vid_pair(own, t, (1 + state[f"log_scales.{i}"].exp()).log() + eps)
    return value


def nearest(feature, height, width):
    rows = [i * feature.shape[2] // height for i in range(height)]
    columns = [j * feature.shape[3] // width for j in range(width)]
    return feature[:, :, rows][:, :, :, columns]


def reviewkd(student, teacher, state, training, seen):
    value, deeper = 0.0, None
    for i in reversed(range(len(student))):
        name = f"fusions.{i}"
        own = batch_norm(
            conv1x1(student[i], state[f"{name}.reduce.0.weight"]), state, f"{name}.reduce.1", training
        )
        if deeper is not None:
            deeper = nearest(deeper, own.shape[2], own.shape[3])
            score = conv1x1(
                torch.cat([own, deeper], dim=1), state[f"{name}.blend.weight"], state[f"{name}.blend.bias"]
            )
            share = 1 / (1 + (-score).exp())
            own = share[:, 0:1] * own + share[:, 1:2] * deeper
        own = deeper = nearest(own, teacher[i].shape[2], teacher[i].shape[3])
        made = batch_norm(conv3x3(own, state[f"{name}.expand.0.weight"]), state, f"{name}.expand.1", training)
        value = value + reviewkd_pair(made, teacher[i])
    return value


def mgd(student, teacher, state, training, seen, mask=1.0):
    own = student[0]
    if "connectors.0.weight" in state:
        own = conv1x1(own, state["connectors.0.weight"], state["connectors.0.bias"])
    own = conv3x3(own * mask, state["generators.0.0.weight"], state["generators.0.0.bias"])
    own = conv3x3(own * (own > 0), state["generators.0.2.weight"], state["generators.0.2.bias"])
    return torch.stack([((s - t) ** 2).sum() for s, t in zip(own, teacher[0], strict=True)])


def fgd(student, teacher, state, training, seen, alpha, beta, gamma, relation, temperature):
    """FGD's equations 1 to 12, position by position; ``seen`` has the boxes of each image as shares of the map."""

    def masks(feature):
        channels, height, width = feature.shape
        spatial = sum(feature[c].abs() for c in range(channels)) / channels
        channel = torch.stack([feature[c].abs().sum() / (height * width) for c in range(channels)])
        spatial, channel = (spatial / temperature).exp(), (channel / temperature).exp()
        return height * width * spatial / spatial.sum(), channels * channel / channel.sum()

    def with_context(feature, name):
        weight = lambda key: state[f"{name}.0.{key}"]  # noqa: E731
        scores = (weight("attend.weight")[0] * feature).sum(dim=0) + weight("attend.bias")
        scores = scores.exp() / scores.exp().sum()
        context = (feature * scores).sum(dim=(1, 2))
        hidden = weight("transform.0.weight")[:, :, 0, 0] @ context + weight("transform.0.bias")
        hidden = (hidden - hidden.mean()) / (((hidden - hidden.mean()) ** 2).mean() + 1e-5).sqrt()
        hidden = hidden * weight("transform.1.weight")[:, 0, 0] + weight("transform.1.bias")[:, 0, 0]
        hidden = hidden * (hidden > 0)
        added = weight("transform.3.weight")[:, :, 0, 0] @ hidden + weight("transform.3.bias")
        return feature + added[:, None, None]

    own = student[0]
    if "connectors.0.weight" in state:
        own = conv1x1(own, state["connectors.0.weight"], state["connectors.0.bias"])
    values = []
    for s, t, boxes in zip(own, teacher[0], seen.tolist(), strict=True):
        channels, height, width = t.shape
        inside = [[0.0] * width for _ in range(height)]
        for left, top, right, bottom in boxes:
            if right <= left or bottom <= top:
                continue
            rows = range(math.floor(top * height), math.ceil(bottom * height))
            columns = range(math.floor(left * width), math.ceil(right * width))
            for i in rows:
                for j in columns:
                    inside[i][j] = max(inside[i][j], 1 / (len(rows) * len(columns)))
        background = sum(share == 0 for line in inside for share in line)
        (at_s, ac_s), (at_t, ac_t) = masks(s), masks(t)
        total = gamma * ((at_s - at_t).abs().sum() + (ac_s - ac_t).abs().sum())
        for i in range(height):
            for j in range(width):
                weight = alpha * inside[i][j] if inside[i][j] else beta / background
                for c in range(channels):
                    total = total + weight * at_t[i, j] * ac_t[c] * (t[c, i, j] - s[c, i, j]) ** 2
        apart = (with_context(t, "other") - with_context(s, "own")) ** 2
        values.append(total + relation * apart.sum())
    return torch.stack(values)


def cwd(student, teacher, state, training, seen):
    return cwd_pair(student[0], teacher[0])


def pkd(student, teacher, state, training, seen):
    return sum(pkd_pair(s, t) for s, t in zip(student, teacher, strict=True))


# --- relations: a scalar of two matrices of rows ------------------------------------------------------


def huber(x):
    return 0.5 * x**2 if abs(float(x.detach())) < 1 else abs(x) - 0.5


def rkd(student, teacher, distance=25.0, angle=50.0):
    rows = range(len(student))

    def relations(x):
        d = {(i, j): length(x[i] - x[j]) for i in rows for j in rows if i != j}
        mean = sum(d.values()) / max(len(d), 1)
        cosine = {}
        for i in rows:
            for j in rows:
                for k in rows:
                    if i != j and i != k:
                        cosine[i, j, k] = ((x[j] - x[i]) @ (x[k] - x[i])) / (d[i, j] * d[i, k])
        return {key: value / mean for key, value in d.items()}, cosine

    (own, own_angle), (other, other_angle) = relations(student), relations(teacher)
    n = len(student)
    zero = student.sum() * 0
    by_distance = sum((huber(own[key] - other[key]) for key in own), zero) / n**2
    by_angle = sum((huber(own_angle[key] - other_angle[key]) for key in own_angle), zero) / n**3
    return distance * by_distance + angle * by_angle


def cosine(x, y):
    return (x @ y) / (length(x) * length(y))


def pkt(student, teacher):
    n = len(student)

    def conditional(x):
        kernel = [[(cosine(x[i], x[j]) + 1) / 2 for j in range(n)] for i in range(n)]
        return [[kernel[i][j] / sum(kernel[i]) for j in range(n)] for i in range(n)]

    own, other = conditional(student), conditional(teacher)
    total = sum(
        other[i][j] * ((other[i][j] + 1e-7) / (own[i][j] + 1e-7)).log() for i in range(n) for j in range(n)
    )
    return total / n**2


def sp(student, teacher):
    def similarity(x):
        gram = torch.stack([torch.stack([a @ b for b in x]) for a in x])
        return torch.stack([row / length(row) for row in gram])

    return ((similarity(student) - similarity(teacher)) ** 2).sum() / len(student) ** 2


def cc(student, teacher, gamma=0.4, order=2):
    def correlation(x, y):
        terms = [(2 * gamma) ** q / math.factorial(q) * cosine(x, y) ** q for q in range(order + 1)]
        return math.exp(-2 * gamma) * sum(terms)

    n = len(student)
    pairs = [(i, j) for i in range(n) for j in range(n)]
    return (
        sum(
            (correlation(student[i], student[j]) - correlation(teacher[i], teacher[j])) ** 2 for i, j in pairs
        )
        / n**2
    )


IMAGE = {
    "fitnet": fitnet,
    "at": at,
    "nst": nst,
    "kdsvd": kdsvd,
    "ofd": ofd,
    "vid": vid,
    "reviewkd": reviewkd,
    "mgd": mgd,
    "cwd": cwd,
    "pkd": pkd,
}
BATCH = {"rkd": rkd, "pkt": pkt, "sp": sp, "cc": cc}

STAGES = {
    "fitnet": ["layer2"],
    "mgd": ["layer2"],
    "cwd": ["layer2"],
    "reviewkd": ["layer1", "layer2", "penultimate"],
}
"""Which of the contract's features a loss compares where no paths are given; others the two layers."""
