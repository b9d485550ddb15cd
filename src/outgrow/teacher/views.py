"""One belief for each image: the mean of a teacher's probabilities over several views of it.

teacher = AveragedTeacher(teacher, num_indices)
for images, index in views_of_several_epochs:
    teacher.add(images, index)
teacher(images, index=index)                # the beliefs in the images, whatever the views
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from outgrow.models.taps import PENULTIMATE
from outgrow.outputs import Outputs, lift
from outgrow.teacher.teacher import BaseTeacher


class AveragedTeacher(BaseTeacher):
    """``teacher``, whose belief in a known image is the mean of its probabilities over the views that were added, as logits.

    Probabilities are averaged, at temperature 1, and handed on as the logarithm of the mean, which a loss softens. Penultimate
    features, where the teacher has them, are averaged too, for a correction; the outputs have no others. Images
    that were not added (unlabelled, validation and test images), and all images without ``index``, have the belief in the view
    at hand. Do not use it with views that blend two images.

    >>> teacher = AveragedTeacher(nn.Identity(), 1)
    >>> for view in torch.tensor([[[0.2, 0.8]], [[0.6, 0.4]]]).log():
    ...     teacher.add(view, torch.tensor([0]))
    >>> teacher(torch.zeros(1, 2), index=torch.tensor([0])).logits.exp()
    tensor([[0.4000, 0.6000]])
    """

    log_sum: Tensor
    features: Tensor
    count: Tensor

    def __init__(self, teacher: nn.Module, num_indices: int, *, keep_features: bool = True) -> None:
        super().__init__()
        self.teacher, self.keep_features = teacher, keep_features
        # not in the state: it follows from the teacher and the views, up to rounding
        self.register_buffer("count", torch.zeros(num_indices, dtype=torch.int64), persistent=False)
        for name in ("log_sum", "features"):
            self.register_buffer(name, torch.empty(0), persistent=False)

    @torch.no_grad()
    def add(self, images: Float[Tensor, "..."], index: Int[Tensor, " rows"]) -> None:
        """Add one view of each image. ``index`` names an image once."""
        outputs = _outputs(self.teacher(images))
        log_p = lift(outputs.logits).log_softmax(dim=1)
        feature = lift(outputs.features[PENULTIMATE]).flatten(1) if self._keeps(outputs) else None
        if not len(self.log_sum):
            size = len(self.count)
            self.count = self.count.to(log_p.device)
            self.log_sum = log_p.new_full((size, log_p.shape[1]), -torch.inf)
            if feature is not None:
                self.features = feature.new_zeros(size, feature.shape[1])
        self.log_sum[index] = torch.logaddexp(self.log_sum[index], log_p)
        if feature is not None:
            self.features[index] += feature
        self.count[index] += 1

    def known(self, index: Int[Tensor, " rows"]) -> Bool[Tensor, " rows"]:
        """Which images have a belief."""
        inside = (index >= 0) & (index < len(self.count))
        return inside & (self.count[index.clamp(0, len(self.count) - 1)] > 0)

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "..."], *, index: Int[Tensor, " rows"] | None = None) -> Outputs:
        if index is None or not len(index):
            return _outputs(self.teacher(images))
        known = self.known(index)
        if bool(known.all()):
            return self.believed(index)
        found = _outputs(self.teacher(images[~known]))
        if not bool(known.any()):
            return found
        believed = self.believed(index[known])
        features = {
            name: _merged(known, value, found.features[name]) for name, value in believed.features.items()
        }
        return Outputs(_merged(known, believed.logits, found.logits), features)

    def believed(self, index: Int[Tensor, " known"]) -> Outputs:
        """The beliefs in known images."""
        count = self.count[index][:, None]
        features = {PENULTIMATE: self.features[index] / count} if len(self.features) else {}
        return Outputs(self.log_sum[index] - count.log(), features)

    def _keeps(self, outputs: Outputs) -> bool:
        return self.keep_features and PENULTIMATE in outputs.features


def _outputs(value: Outputs | Tensor) -> Outputs:
    return value if isinstance(value, Outputs) else Outputs(value)


def _merged(
    known: Bool[Tensor, " rows"], believed: Float[Tensor, "known width"], found: Float[Tensor, "others ..."]
) -> Float[Tensor, "rows width"]:
    merged = believed.new_empty(len(known), believed.shape[1])
    merged[known], merged[~known] = believed, found.flatten(1).to(believed.dtype)
    return merged
