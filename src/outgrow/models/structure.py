"""Find the parts of a net: its classifier, and the modules whose outputs are useful features."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Head = nn.Linear | nn.Conv2d


def head_of(net: nn.Module) -> tuple[str, nn.Module]:
    """The path and the module of the final classifier of ``net``: a linear layer or a 1x1 convolution.

    Uses timm's ``get_classifier`` if there is one. Otherwise it is the last linear layer of ``net``, or its last
    convolution if no layer is linear. A layer with ``net.num_classes`` outputs is preferred, because auxiliary
    layers may come after the head. ``net`` may be a :class:`outgrow.models.Network`; the path is then inside its
    ``net``. Raises ``ValueError`` if there is neither kind of layer, or if ``net`` has no classifier.

    >>> head_of(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 5)))
    ('2', Linear(in_features=8, out_features=5, bias=True))
    """
    if not has_head(net):
        raise ValueError(
            f"head_of: needs a net with a classifier, got {type(bare_net(net)).__name__} with num_classes 0, which returns "
            "features; build it with a number of classes."
        )
    return heads_of(net)[0]


def has_head(net: nn.Module) -> bool:
    """Whether ``net`` ends in a classifier. One with ``num_classes`` 0 returns features (timm's convention, as of DINOv2).

    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(8, 5))
    >>> net.num_classes = 0
    >>> has_head(net)
    False
    """
    return getattr(net, "num_classes", getattr(bare_net(net), "num_classes", None)) != 0


def heads_of(net: nn.Module) -> list[tuple[str, Head]]:
    """Like :func:`head_of`, for nets with several heads (distilled transformers have two) or with none."""
    if not has_head(net):
        return []
    num_classes = getattr(net, "num_classes", None)
    net = bare_net(net)
    named = {id(module): path for path, module in net.named_modules()}
    get_classifier = getattr(net, "get_classifier", None)
    if callable(get_classifier):
        given = get_classifier()
        layers = given if isinstance(given, tuple | list | nn.ModuleList) else [given]
        found = [
            (named[id(layer)], layer) for layer in layers if isinstance(layer, Head) and id(layer) in named
        ]
        if found:
            return found
    labels = getattr(net, "num_labels", None)
    if isinstance(labels, int):
        # of Hugging Face's nets, DeiT and LeViT name each of their heads a classifier
        parts = [(path, part) for path, part in net.named_children() if "classifier" in path]
        last: list[tuple[str, Head]] = [
            (f"{path}.{name}".rstrip("."), layer)
            for path, part in parts
            for name, layer in [*part.named_modules()][-1:]
            if isinstance(layer, nn.Linear) and layer.out_features == labels
        ]
        if len(last) > 1:
            return last
    for kind in (nn.Linear, nn.Conv2d):
        candidates = [(path, m) for path, m in net.named_modules() if isinstance(m, kind)]
        fitting = [(path, m) for path, m in candidates if num_outputs(m) == num_classes]
        if candidates:
            return [(fitting or candidates)[-1]]
    raise ValueError(
        f"head_of: needs a net that ends in a linear layer or a convolution, got {type(net).__name__} with "
        "neither; make the classifier an nn.Linear, or an nn.Conv2d before a global pool."
    )


def num_outputs(head: Head) -> int:
    """The number of classes of a head."""
    return head.out_features if isinstance(head, nn.Linear) else head.out_channels


def num_parameters(net: nn.Module) -> int:
    """The number of learned parameters."""
    return sum(parameter.numel() for parameter in net.parameters())


def replace_heads(net: nn.Module, num_classes: int) -> None:
    """Replace the heads of ``net`` by newly initialised ones with ``num_classes`` outputs.

    Input width, bias, device and dtype stay. ``net.num_classes`` and a Hugging Face configuration are updated if
    they exist.
    """
    trunk = bare_net(net)
    for path, old in heads_of(net):
        parent, _, name = path.rpartition(".")
        setattr(trunk.get_submodule(parent), name, _like(old, num_classes))
    owners: list[Any] = [net] if net is trunk else [net, trunk]
    for owner in owners:
        if isinstance(getattr(owner, "num_classes", None), int):
            owner.num_classes = num_classes
        if isinstance(getattr(owner, "num_labels", None), int):  # Hugging Face
            owner.num_labels = owner.config.num_labels = num_classes


def soften_heads(net: nn.Module) -> None:
    """Initialise the heads with small random weights, for a trunk that is trained already.

    The first logits are then nearly equal. The default initialisation can give logits of tens on trained
    features, and a first loss far above that of uniform predictions.
    """
    for _, head in heads_of(net):
        nn.init.normal_(head.weight, std=0.01)
        if head.bias is not None:
            nn.init.zeros_(head.bias)


def place_heads(net: nn.Module, trained: Mapping[str, Tensor], places: Sequence[int | None]) -> None:
    """Copy rows of trained heads into those of ``net``.

    Row ``i`` becomes row ``places[i]`` of ``trained``, which has the paths of :func:`heads_of`. If
    ``places[i]`` is None, the row stays as it is.
    """
    rows = [row for row, place in enumerate(places) if place is not None]
    sources = [place for place in places if place is not None]
    with torch.no_grad():
        for path, head in heads_of(net):
            for name, parameter in head.named_parameters(recurse=False):
                value = trained[f"{path}.{name}"][sources]
                parameter[rows] = value.to(parameter)


def _like(old: Head, num_classes: int) -> Head:
    bias, at = old.bias is not None, {"device": old.weight.device, "dtype": old.weight.dtype}
    if isinstance(old, nn.Linear):
        return nn.Linear(old.in_features, num_classes, bias=bias, **at)
    size, stride, padding = old.kernel_size, old.stride, old.padding
    return nn.Conv2d(old.in_channels, num_classes, size, stride=stride, padding=padding, bias=bias, **at)  # type: ignore[arg-type]


def bare_net(net: nn.Module) -> nn.Module:
    """The net inside a :class:`Network`, ``torch.compile``, DataParallel or DistributedDataParallel."""
    while True:
        if hasattr(net, "input_spec") and isinstance(inner := getattr(net, "net", None), nn.Module):
            net = inner  # outgrow.models.Network; importing it here would be circular
        elif isinstance(net, nn.DataParallel | nn.parallel.DistributedDataParallel):
            net = net.module
        elif isinstance(inner := getattr(net, "_orig_mod", None), nn.Module):  # torch.compile
            net = inner
        else:
            return net


def feature_paths(network: nn.Module) -> tuple[str, ...]:
    """Module paths in ``network.net`` whose outputs are useful features, from early to late.

    The first of these that exists: the net's own ``feature_paths`` (the CIFAR nets); timm's ``feature_info``;
    ``layer1``, ``layer2`` and so on; the pools of a flat VGG; the parts of the trunk that have parameters. All
    paths exist in the net. Whether their outputs are maps or sequences of tokens depends on the net. ``network``
    may also be a net without the :class:`Network` around it.

    >>> from outgrow.models import create_model
    >>> feature_paths(create_model("cifar/resnet8"))
    ('layer1', 'layer2', 'layer3')
    """
    net = bare_net(network)
    own = getattr(net, "feature_paths", None)
    if isinstance(own, tuple):
        return own
    info = getattr(net, "feature_info", None)
    entries = getattr(info, "info", info)  # timm has a list of dictionaries or an object around it
    modules = dict(net.named_modules())
    if isinstance(entries, list):
        paths = [str(entry.get("module")) for entry in entries if isinstance(entry, dict)]
        if known := tuple(path for path in paths if path in modules):
            return known
    staged = tuple(f"layer{number}" for number in range(1, 9) if f"layer{number}" in modules)
    return staged or _stages(net)


def layer_depths(network: nn.Module) -> dict[nn.Parameter, int]:
    """The depth of each parameter: 0 before the first of :func:`feature_paths`, 1 in the first of them and so on, and one
    more than the last for the heads. Parameters between two of these paths count to the later one.

    >>> from outgrow.models import create_model
    >>> net = create_model("cifar/resnet8").net
    >>> depths = layer_depths(net)
    >>> [depths[layer.weight] for layer in (net.conv1, net.layer2[0].conv1, net.fc)]
    [0, 2, 4]
    """
    net = bare_net(network)
    paths, named = feature_paths(net), list(net.named_parameters())
    at = [[d for d, path in enumerate(paths, start=1) if name.startswith(f"{path}.")] for name, _ in named]
    depths, depth = {}, len(paths)
    for (_, parameter), found in zip(reversed(named), reversed(at), strict=True):
        depth = max(found, default=depth)
        depths[parameter] = depth
    stem = next((place for place, found in enumerate(at) if found), len(named))
    depths.update((parameter, 0) for _, parameter in named[:stem])
    depths.update((p, len(paths) + 1) for _, head in heads_of(net) for p in head.parameters())
    return depths


def _stages(net: nn.Module) -> tuple[str, ...]:
    """The parts of an unknown trunk, in order.

    Descends while one child has nearly all parameters outside the head (``features``, ``encoder``,
    ``encoder.layers``), and returns the children with parameters at that level.
    """
    head = heads_of(net)[0][1] if has_head(net) else None
    # torchvision's convention. Without it VGG's two large linear layers would count as the trunk.
    prefix = "features." if isinstance(getattr(net, "features", None), nn.Sequential) else ""
    while True:
        node = net.get_submodule(prefix.rstrip("."))
        pools = tuple(
            prefix + name for name, child in node.named_children() if isinstance(child, nn.MaxPool2d)
        )
        if isinstance(node, nn.Sequential) and len(pools) >= 3:
            return pools  # a flat VGG: outputs before a pool may be overwritten by an in-place ReLU
        sizes = {prefix + name: _size(child, head) for name, child in node.named_children()}
        sizes = {path: size for path, size in sizes.items() if size}
        composite = {path: size for path, size in sizes.items() if any(net.get_submodule(path).children())}
        if len(composite) >= 2:
            sizes = composite  # single layers beside blocks belong to the stem
        # 0.9: a ResNet's last stage has at most 3/4 of the parameters, a transformer's encoder more than 9/10
        main = next((path for path, size in sizes.items() if size > 0.9 * sum(sizes.values())), None)
        if main is None or not any(_size(child, head) for child in net.get_submodule(main).children()):
            return tuple(sizes)
        prefix = f"{main}."


def _size(module: nn.Module, head: nn.Module | None) -> int:
    """Parameters of ``module`` that are not the head's."""
    excluded = set() if head is None else {id(parameter) for parameter in head.parameters()}
    return sum(parameter.numel() for parameter in module.parameters() if id(parameter) not in excluded)
