"""Which taps meet, how shapes are made comparable, and what is refused before the first step."""

import math

import pytest
import torch
from torch import nn

from outgrow import IGNORE, PENULTIMATE, Objective, Outputs, Rectifier, Taps, Target, Term, rectify
from outgrow.losses import LOSSES, Fixture
from outgrow.losses.adapters import (
    BatchNorm,
    Layout,
    MapLoss,
    RelationLoss,
    as_map,
    layout_of,
    match_channels,
    pair_taps,
    pool_to_smaller,
    product,
    resize_to,
    shares,
    unit,
)
from tests import contract

MAPS = [name for name in LOSSES if isinstance(LOSSES[name](), MapLoss)]
RELATIONS = [name for name in LOSSES if isinstance(LOSSES[name](), RelationLoss)]


def test_the_families_are_complete():
    assert set(MAPS) == {"fitnet", "at", "nst", "kdsvd", "ofd", "vid", "reviewkd", "mgd", "cwd", "pkd"}
    assert set(RELATIONS) == {"rkd", "pkt", "sp", "cc"}


class TestLayouts:
    @pytest.mark.parametrize(
        "shape, layout",
        [
            ((2, 64, 8, 8), Layout("map")),
            ((2, 8, 8, 8), Layout("map")),
            ((2, 256, 50, 84), Layout("map")),  # an FPN level
            ((2, 196, 192), Layout("tokens", 0)),
            ((2, 197, 192), Layout("tokens", 1)),  # ViT
            ((2, 198, 192), Layout("tokens", 2)),  # DeiT, distilled
            ((2, 261, 384), Layout("tokens", 5)),  # DINOv2 with registers
            ((2, 64), Layout("vector")),
            ((2, 156, 64), None),  # 12 x 13
            ((2, 3, 4, 4, 4), None),
            ((2,), None),
        ],
    )
    def test_by_shape(self, shape, layout):
        assert layout_of(shape) == layout

    def test_tokens_become_a_grid_without_those_before_it(self):
        grid = torch.arange(2 * 3 * 3 * 5).view(2, 3, 3, 5).float()
        tokens = torch.cat([torch.full((2, 2, 5), -1.0), grid.flatten(1, 2)], dim=1)
        torch.testing.assert_close(as_map(tokens, layout_of(tokens.shape)), grid.permute(0, 3, 1, 2))
        assert as_map(grid[:, 0, 0], Layout("vector")).shape == (2, 5, 1, 1)
        assert as_map(tokens.half(), Layout("tokens", 2)).dtype == torch.float32

    def test_another_grid_than_in_the_dry_run(self):
        layout = layout_of((1, 17, 4))
        assert as_map(torch.zeros(1, 26, 4), layout).shape == (1, 4, 5, 5)
        with pytest.raises(ValueError, match=r"square grid of tokens behind 1 others, got \(1, 21, 4\)"):
            as_map(torch.zeros(1, 21, 4), layout)


class TestPairs:
    def outputs(self, *names, rows=2, **more):
        return contract.of_features(**dict.fromkeys(names, (rows, 3, 4, 4)), **more)

    def test_in_order(self):
        assert pair_taps(self.outputs("a", "b"), self.outputs("x", "y")) == [("a", "x"), ("b", "y")]

    @pytest.mark.parametrize(
        "number, expected", [(1, "6"), (2, "36"), (3, "246"), (4, "2356"), (6, "123456")]
    )
    def test_the_longer_is_thinned_and_keeps_its_last(self, number, expected):
        few, many = self.outputs(*"abcdef"[:number]), self.outputs(*"123456")
        assert [other for _, other in pair_taps(few, many)] == list(expected)
        assert [own for own, _ in pair_taps(many, few)] == list(expected)

    def test_defaults(self):
        own, other = self.outputs(*"abc"), self.outputs(*"wxyz")
        assert pair_taps(own, other, default="last") == [("c", "z")]
        assert pair_taps(own, other, default="middle") == [("b", "y")]
        assert pair_taps(own, other) == [("a", "x"), ("b", "y"), ("c", "z")]

    def test_named_on_one_side_only(self):
        own, other = self.outputs(*"abc"), self.outputs(*"wxyz")
        assert pair_taps(own, other, ["a", "b"], default="last") == [("a", "x"), ("b", "z")]
        assert pair_taps(own, other, "a", "w", default="last") == [("a", "w")]

    def test_the_penultimate_features_crown_a_pyramid(self):
        own, other = (self.outputs("a", penultimate=(2, 7)) for _ in range(2))
        assert pair_taps(own, other, default="pyramid")[1:] == [(PENULTIMATE, PENULTIMATE)]
        assert len(pair_taps(own, other, default="all")) == 1
        assert len(pair_taps(own, other, "a", default="pyramid")) == 1
        proposals = self.outputs("a", penultimate=(30, 7))  # rows of a detector, not images
        assert len(pair_taps(proposals, other, default="pyramid")) == 1

    def test_errors(self):
        own, other = self.outputs(*"abc"), self.outputs("x")
        with pytest.raises(ValueError, match=r"at: needs 'd' of the student, got a, b, c; tap it with"):
            pair_taps(own, other, "d", what="at")
        with pytest.raises(ValueError, match=r"needs a feature of the teacher, got none; tap it"):
            pair_taps(own, Outputs(torch.zeros(2, 5)))
        with pytest.raises(ValueError, match=r"as many taps .* got a, b and x; name them in pairs"):
            pair_taps(own, other, ["a", "b"])


@pytest.mark.parametrize("name", MAPS)
class TestMapLosses:
    def test_what_cannot_be_compared_is_refused_in_setup(self, name):
        built = LOSSES[name]()
        maps = contract.of_features(a=(2, 3, 8, 8), b=(2, 3, 4, 4))
        volumes = contract.of_features(x=(2, 3, 8, 8, 8), y=(2, 3, 4, 4, 4))
        with pytest.raises(
            ValueError,
            match=rf"{name}: needs maps .* \(2, 3, .*'[ab]' and \(2, 3, .*'[xy]'; tap other modules",
        ):
            built.setup(Fixture(maps, volumes, 10))
        others = contract.of_features(x=(5, 3, 8, 8), y=(5, 3, 4, 4))
        with pytest.raises(
            ValueError, match=rf"{name}: needs maps of the same images, got \(2, .* and \(5, "
        ):
            built.setup(Fixture(maps, others, 10))

    def test_without_setup(self, name):
        outputs = contract.outputs(2)
        with pytest.raises(ValueError, match=rf"{name}: needs its .*, got none; call objective.setup"):
            LOSSES[name]()(outputs, outputs, contract.target(2))

    def test_a_loss_without_positions_is_refused(self, name):
        if LOSSES[name]().positions == 1:
            return
        points = contract.of_features(a=(2, 3, 1, 1), b=(2, 3, 1, 1))
        with pytest.raises(
            ValueError, match=rf"{name}: needs maps of at least 2 positions, got \(2, 3, 1, 1\)"
        ):
            LOSSES[name]().setup(Fixture(points, points, 10))

    @pytest.mark.parametrize("direction", ["map to tokens", "tokens to map", "non-square"])
    def test_other_channels_sizes_and_kinds(self, name, direction):
        maps = contract.of_features(a=(3, 4, 8, 8), b=(3, 8, 4, 4), dtype=torch.float32)
        tokens = contract.of_features(x=(3, 17, 6), y=(3, 17, 6), seed=5, dtype=torch.float32)
        wide = contract.of_features(x=(3, 5, 6, 9), y=(3, 7, 3, 5), seed=5, dtype=torch.float32)
        student, teacher = {
            "map to tokens": (maps, tokens),
            "tokens to map": (tokens, maps),
            "non-square": (maps, wide),
        }[direction]
        student, (_, *inputs) = contract.leaves(student)
        objective = Objective(LOSSES[name](), task_weight=0.0)
        objective.setup(student, teacher, num_samples=10)
        goal = contract.target(3)
        value = objective(student, rectify(teacher, goal), goal, 0.0).total
        grads = torch.autograd.grad(value, inputs + list(objective.parameters()), allow_unused=True)
        assert value.isfinite()
        assert any(grad is not None and grad.any() for grad in grads[: len(inputs)])
        assert all(grad is not None and grad.isfinite().all() for grad in grads[len(inputs) :])

    def test_a_detector(self, name):
        """Rows are proposals, features are two FPN levels of two images, one of them without proposals."""
        shapes = {"0": (2, 4, 6, 8), "1": (2, 4, 3, 4)}
        student, teacher = (contract.of_features(**shapes, seed=seed, dtype=torch.float32) for seed in (0, 5))
        logits = [torch.randn(7, 5, generator=torch.Generator().manual_seed(s)) for s in (0, 1)]
        student, (_, *inputs) = contract.leaves(Outputs(logits[0], student.features))
        teacher = Outputs(logits[1], teacher.features)
        goal = Target(
            torch.tensor([0, 1, 2, IGNORE, 4, 0, 1]), image=torch.zeros(7, dtype=torch.long), may_ignore=True
        )
        paths = ["0", "1"]
        objective = Objective(
            {"box": LOSSES["kd"](), "fpn": Term(LOSSES[name](student=paths, teacher=paths), 0.1)}
        )
        objective.setup(student, teacher, num_samples=2)
        result = objective(student, Rectifier("pair")(teacher, goal), goal, 0.25)
        assert result.total.isfinite()
        grads = torch.autograd.grad(result.total, inputs, allow_unused=True)
        assert any(grad is not None for grad in grads)
        assert all(grad is None or grad.isfinite().all() for grad in grads)

    def test_is_resumed_through_its_state(self, name):
        goal, student, teacher = contract.target(4), contract.outputs(4), contract.outputs(4, seed=5)
        built, fresh = contract.loss(name), LOSSES[name]()
        contract.call(built, student, teacher, goal)
        fresh.setup(Fixture(contract.outputs(4, seed=8), contract.outputs(4, seed=9), contract.NUM_SAMPLES))
        fresh.double().load_state_dict(built.state_dict())
        ours, theirs = (contract.call(loss, student, teacher, goal) for loss in (built, fresh))
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", RELATIONS)
class TestRelations:
    def test_rows_that_count_for_nothing_may_hold_anything(self, name):
        student, teacher = contract.outputs(5), contract.outputs(5, seed=5)
        weight = torch.tensor([1.0, 0, 2, 0.5, 0], dtype=torch.float64)
        clean = contract.call(contract.loss(name), student, teacher, contract.target(5), weight)
        student.features[PENULTIMATE][1] = math.nan
        teacher.features[PENULTIMATE][4] = math.inf
        student, (*_, leaf) = contract.leaves(student)
        value = contract.call(contract.loss(name), student, teacher, contract.target(5), weight)
        torch.testing.assert_close(value, clean)
        assert torch.autograd.grad(value, leaf)[0].isfinite().all()

    def test_another_tap_is_flattened(self, name):
        student, teacher, goal = contract.outputs(5), contract.outputs(5, seed=5), contract.target(5)
        value = LOSSES[name](student="layer2", teacher="layer1")(student, teacher, goal)
        flat = [
            Outputs(outputs.logits, {PENULTIMATE: outputs.features[path].flatten(1)})
            for outputs, path in ((student, "layer2"), (teacher, "layer1"))
        ]
        torch.testing.assert_close(value, LOSSES[name]()(*flat, goal))

    def test_errors(self, name):
        outputs = contract.outputs(3)
        with pytest.raises(
            ValueError, match=rf"{name}: needs the teacher's features\['x'\], got .*outgrow.Taps"
        ):
            LOSSES[name](teacher="x").setup(Fixture(outputs, outputs, 10))
        levels = Outputs(outputs.logits, {"p": torch.zeros(2, 4)})
        with pytest.raises(
            ValueError, match=rf"{name}: needs one vector for each of 3 rows, got \(2, 4\) .*'p' and"
        ):
            LOSSES[name](student="p", teacher="p").setup(Fixture(levels, levels, 10))


@pytest.mark.parametrize("name", ["pkt", "sp", "cc"])
def test_a_weight_of_two_is_a_row_seen_twice(name):
    """Not ``rkd``, whose mean distance leaves out a row with itself but not a row with its copy; ``pkt``
    and ``sp`` also divide by a number of rows, in which two copies are two rows."""
    student, teacher, goal = contract.outputs(4), contract.outputs(4, seed=5), contract.target(4)
    weight = torch.tensor([2.0, 1, 1, 2], dtype=torch.float64)
    again = torch.tensor([0, 0, 1, 2, 3, 3])
    value = contract.call(contract.loss(name), student, teacher, goal, weight) / weight.mean()
    twice = contract.take(student, again), contract.take(teacher, again), Target(goal.label[again])
    repeated = contract.call(contract.loss(name), *twice)
    if name != "cc":
        value, repeated = value / shares(weight).square().sum(), repeated * len(again)
    torch.testing.assert_close(value, repeated, rtol=1e-5, atol=1e-8)


class TestPieces:
    def test_sizes(self):
        a, b = torch.arange(16.0).view(1, 1, 4, 4), torch.ones(1, 2, 2, 8)
        small, wide = pool_to_smaller(a, b)
        assert small.shape == (1, 1, 2, 4)
        assert wide.shape == (1, 2, 2, 4)
        torch.testing.assert_close(small[0, 0, 0], torch.tensor([2.0, 3.0, 4.0, 5.0]))
        assert [m.shape[2:] for m in pool_to_smaller(b, a)] == [(2, 4), (2, 4)]
        assert resize_to(a, b).shape == (1, 1, 2, 8)
        assert resize_to(a, a) is a

    def test_channels(self):
        assert isinstance(match_channels(4, 4), nn.Identity)
        assert match_channels(4, 6)(torch.zeros(1, 4, 2, 2)).shape == (1, 6, 2, 2)

    def test_directions(self):
        value = torch.tensor([[3.0, -4.0], [0.0, 0.0], [3e-18, 4e-18], [3e30, 4e30]]).requires_grad_()
        expected = torch.tensor([[0.6, -0.8], [0.0, 0.0], [0.6, 0.8], [0.6, 0.8]])
        torch.testing.assert_close(unit(value), expected)
        assert torch.autograd.grad(unit(value).square().sum(), value)[0].isfinite().all()
        assert unit(torch.zeros(0, 3)).shape == (0, 3)

    def test_shares(self):
        torch.testing.assert_close(shares(torch.tensor([1.0, 3.0])), torch.tensor([0.25, 0.75]))
        assert (shares(torch.zeros(3)) == 0).all()

    def test_one_value_a_channel_does_not_end_an_epoch(self):
        norm = BatchNorm(3)
        torch.testing.assert_close(norm(torch.ones(1, 3, 1, 1)), torch.ones(1, 3, 1, 1), rtol=1e-4, atol=1e-4)
        assert (norm.running_mean == 0).all()
        norm(torch.ones(2, 3, 1, 1))
        assert (norm.running_mean != 0).all()

    def test_products_stay_exact_under_autocast(self):
        a = torch.randn(4, 8)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert (a @ a.mT).dtype == torch.bfloat16
            assert product(a, a.mT).dtype == torch.float32
            torch.testing.assert_close(product(a, a.mT), (a.double() @ a.double().mT).float())

    @pytest.mark.parametrize("name", ["at", "nst", "kdsvd", "cwd", "pkd", *RELATIONS])
    def test_losses_without_connectors_do_not_notice_autocast(self, name):
        student, teacher = (contract.outputs(4, seed=seed, dtype=torch.float32) for seed in (0, 5))
        built, goal = contract.loss(name, torch.float32), contract.target(4)
        plain = contract.call(built, student, teacher, goal)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(contract.call(built, student, teacher, goal), plain)


@pytest.mark.parametrize("source", ["timm", "torchvision"])
def test_nets_that_keep_their_channels_last_are_tapped_as_maps(source):
    if source == "timm":
        from timm.models.swin_transformer import SwinTransformer

        net = SwinTransformer(
            img_size=32,
            patch_size=4,
            window_size=4,
            embed_dim=8,
            depths=(1, 1),
            num_heads=(1, 1),
            num_classes=5,
        )
        stages, convolution = ["layers.0", "layers.1"], "patch_embed.proj"
    else:
        from torchvision.models import SwinTransformer

        net = SwinTransformer([4, 4], 8, [1, 1], [1, 1], [4, 4], num_classes=5)
        stages, convolution = ["features.1", "features.3"], "features.0.0"
    features = Taps(net.eval(), [*stages, convolution])(torch.randn(2, 3, 32, 32)).features
    shapes = [tuple(features[path].shape) for path in (*stages, convolution)]
    assert shapes == [(2, 8, 8, 8), (2, 16, 4, 4), (2, 8, 8, 8)]
    inside = {}
    net.get_submodule(stages[1]).register_forward_hook(lambda _, __, output: inside.update(value=output))
    again = Taps(net, stages)(torch.ones(2, 3, 32, 32)).features[stages[1]]
    torch.testing.assert_close(again, inside["value"].permute(0, 3, 1, 2))


def test_a_real_transformer_and_a_real_convolutional_net():
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    vit = VisionTransformer(img_size=16, patch_size=4, embed_dim=24, depth=4, num_heads=2, num_classes=5)
    cnn = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip
    student = Taps(cnn, ["1", "4", PENULTIMATE])
    teacher = Taps(vit, ["blocks.0", "blocks.1", "blocks.2", "blocks.3", PENULTIMATE]).eval()
    images, label = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 3])
    with torch.no_grad():
        known = teacher(images)
    assert known.features["blocks.0"].shape == (4, 17, 24)
    objective = Objective({name: LOSSES[name]() for name in (*MAPS, *RELATIONS)})
    objective.setup(student(images), known, num_samples=10)
    pairs = [pair[:2] for pair in objective.terms["at"].loss.pairs]
    assert pairs == [("1", "blocks.1"), ("4", "blocks.3")]
    result = objective(student(images), rectify(known, label), label, 0.0)
    result.total.backward()
    assert all(parameter.grad.isfinite().all() for parameter in (*cnn.parameters(), *objective.parameters()))
    assert not any(parameter is other for parameter in objective.parameters() for other in cnn.parameters())
