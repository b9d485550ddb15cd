"""The fast path of kd against the plain one: value, gradient, every rule, temperature, shape and dtype.

Its passes answer to the same tests: C where there is a compiler; the eager closed form in blocks; and the
same as a device runs it, where nothing may look at a value, forced onto the CPU.
"""

import dataclasses
import shutil
import subprocess
import sys
import warnings

import pytest
import torch
from benchmarks.memory import peak_extra_bytes
from benchmarks.objective import ours as objective_step

from outgrow import Objective, Outputs, Rectifier, Target, corrected_logits
from outgrow.knowledge import RULES
from outgrow.losses import LOSSES, kd_fast
from outgrow.losses.kd_fast import Scales, dispatch, eager, native
from outgrow.losses.kd_fast.batch import Batch

IN_C = ["identity", "drop", "pair", "swap", "lead", "boost"]
RULE_NAMES = sorted({rule().name for rule in RULES.values()})


def batch(rows, classes, *, dtype=torch.float64, seed=0, kind="mixed", scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    student = (2 * torch.randn(rows, classes, generator=generator, dtype=torch.float64)).to(dtype)
    teacher = (scale * torch.randn(rows, classes, generator=generator, dtype=torch.float64)).to(dtype)
    label = torch.randint(classes, (rows,), generator=generator)
    if kind == "right":
        label = teacher.argmax(dim=1)
    if kind == "wrong":
        label = teacher.argmin(dim=1)
    return student.requires_grad_(), teacher, label


needs_compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in ("gcc", "clang", "cc")), reason="needs a C compiler"
)
WAYS = ["eager", "device", pytest.param("native", marks=needs_compiler)]


@pytest.fixture
def way(request, monkeypatch):
    """Which pass stands behind ``fast=True``."""
    if request.param == "device":
        monkeypatch.setattr(eager, "_may_look", lambda _: False)
        monkeypatch.setattr(dispatch, "on_host", dispatch.on_device)
    if request.param == "eager":
        monkeypatch.setattr(native, "takes", lambda _: False)
    return request.param


def every_way(test):
    """For tests in double: C knows float32 alone."""
    return pytest.mark.parametrize("way", ["eager", "device"], indirect=True)(test)


def run_native(batch, wanted):
    assert native.takes(batch)
    return native.rows(batch, torch.empty_like(batch.student) if wanted else None)


def run_eager(batch, wanted):
    return eager.rows(batch, torch.empty_like(batch.student) if wanted else None)


PASSES = [run_eager, eager.closed_form, pytest.param(run_native, marks=needs_compiler)]


def rows_of(student, teacher, weight, label=None, rule="pair", temperature=4.0, scales=(0.3, 0.2, 0.5)):
    """What a pass is asked."""
    label = torch.zeros(len(student), dtype=torch.long) if label is None else label
    known = Rectifier(rule)(teacher, label)
    return Batch(student, teacher, label, known.wrong, weight, Scales(*scales), known.rule, temperature)


def both(student, teacher, label, rule, temperature, progress=0.3, double=False, **options):
    """Results and gradients of the plain and of the fast path, with an upstream gradient other than 1."""
    if double:
        student, teacher = student.detach().double().requires_grad_(), teacher.double()
    knowledge = Rectifier(rule, temperature)(teacher, label)
    found = []
    for fast in (False,) if double else (False, True):
        objective = Objective(LOSSES["kd"](temperature=temperature), fast=fast, **options)
        assert kd_fast.applies(student, knowledge, knowledge.target)
        result = objective(student, knowledge, label, progress)
        (gradient,) = torch.autograd.grad(1.7 * result.total, student)
        found.append((result, gradient))
    return found


def test_every_rule_of_the_library_is_taken():
    assert len(RULE_NAMES) > 5
    assert set(native.RULES) == {RULES[name] for name in IN_C}
    student, teacher, label = batch(4, 3)
    for name in RULE_NAMES:
        knowledge = Rectifier(name)(teacher, label)
        assert kd_fast.applies(student, knowledge, knowledge.target)
    own = type("Own", (RULES["swap"],), {})()  # a stranger's rule may relate rows
    knowledge = Rectifier(own)(teacher, label)
    assert not kd_fast.applies(student, knowledge, knowledge.target)


@pytest.mark.parametrize("rule", RULE_NAMES)
@pytest.mark.parametrize("temperature", [1.0, 2.0, 3.0, 4.0, 7.0, 8.0, 0.5, 2.5, 20.0])
@pytest.mark.parametrize("normalize", ["rows", "subset"])
@every_way
def test_value_and_gradient(rule, temperature, normalize, way):
    (plain, plain_gradient), (fast, gradient) = both(
        *batch(33, 7), rule, temperature, normalize=normalize, schedule="linear", task_weight=0.7, weight=1.3
    )
    torch.testing.assert_close(fast.total, plain.total, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(gradient, plain_gradient, rtol=1e-9, atol=1e-12)
    assert set(fast.terms) == set(plain.terms)
    assert set(fast.stats) == set(plain.stats)
    for name, value in {**plain.terms, **plain.stats}.items():
        rtol = 1e-6 if name == "wrong_rate" else 1e-9  # the plain path divides in float32
        torch.testing.assert_close(
            {**fast.terms, **fast.stats}[name], value, rtol=rtol, atol=1e-11, check_dtype=False
        )


@pytest.mark.parametrize("kind", ["right", "wrong", "mixed"])
@pytest.mark.parametrize("rows, classes", [(1, 2), (1, 100), (5, 2), (300, 513), (3, 70000)])
@every_way
def test_shapes(kind, rows, classes, way):
    """More than one block, blocks that do not divide the rows, rows longer than a block, two classes."""
    (plain, plain_gradient), (fast, gradient) = both(*batch(rows, classes, kind=kind), "pair", 4.0)
    torch.testing.assert_close(fast.total, plain.total, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradient, plain_gradient, rtol=1e-8, atol=1e-12)


# what label_smooth says of 32000 classes is rounded by itself: no row of it sums to 1 within 1e-6
@pytest.mark.parametrize("rule", [name for name in RULE_NAMES if name != "label_smooth"])
@pytest.mark.parametrize("rows, classes", [(64, 10), (512, 100), (128, 1000), (7, 32000)])
@pytest.mark.parametrize("temperature", [1.0, 2.5, 4.0])
@pytest.mark.parametrize("way", WAYS, indirect=True)
def test_float32_is_as_good_as_promised(rule, rows, classes, temperature, way):
    student, teacher, label = batch(rows, classes, dtype=torch.float32, scale=8.0)
    exact = both(student, teacher, label, rule, temperature, double=True)[0]
    result, gradient = both(student, teacher, label, rule, temperature)[1]
    t = (teacher.double() / temperature).softmax(1)
    log_p = (student.detach().double() / temperature).log_softmax(1)
    bound = (
        temperature**2 * ((t * t.log()).sum(1).abs() + (t * log_p).sum(1).abs()).mean()
        + exact[0].terms["task"]
    )
    assert (result.total.double() - exact[0].total).abs() <= 1e-6 * bound
    assert (gradient.double() - exact[1]).norm() <= 1e-6 * exact[1].norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@every_way
def test_half_precision(dtype, way):
    """Computed in float32; the gradient is rounded to the input's type, once."""
    (plain, plain_gradient), (fast, gradient) = both(*batch(65, 11, dtype=dtype), "pair", 4.0)
    torch.testing.assert_close(fast.total, plain.total, rtol=1e-5, atol=1e-5)
    assert gradient.dtype == dtype
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(gradient.float(), plain_gradient.float(), rtol=4 * eps, atol=eps * 0.05)


@pytest.mark.parametrize("way", WAYS, indirect=True)
def test_a_scaled_loss_in_float16(way):
    """A scaler multiplies the loss so that small gradients survive float16: before they are rounded to it."""
    student, teacher, label = batch(65, 11, dtype=torch.float16)
    knowledge = Rectifier("pair", 4.0)(teacher, label)
    # of one row among very many: without a scale all is below what float16 can hold
    divided, scale = 1e-7, 2.0**23
    found = []
    for fast in (False, True):
        result = Objective("kd", task_weight=divided, weight=divided, fast=fast)(
            student, knowledge, label, 0.3
        )
        found.append(torch.autograd.grad(result.total * scale, student)[0])
    assert found[1].dtype == torch.float16
    assert found[0].abs().max() > 1e-3
    torch.testing.assert_close(found[1].float(), found[0].float(), rtol=4e-3, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 3.0, 4.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("far", ["student", "teacher"])
@pytest.mark.parametrize(
    "way", ["eager", pytest.param("native", marks=needs_compiler)], indirect=True
)  # a device is given no row of weight 0
def test_a_row_without_weight_adds_nothing(temperature, dtype, sign, far, way):
    """Its divergence is infinite, or NaN, where logits are as large as they can be."""
    student, teacher, label = batch(5, 4, dtype=dtype)
    with torch.no_grad():
        {"student": student, "teacher": teacher}[far][1] = sign * torch.tensor([3e38, -3e38, 0, 3e38])
    label[1] = {"student": student, "teacher": teacher}[far][1].argmax()
    weight = torch.tensor([1.0, 0.0, 0.5, 1.0, 0.0])
    found = []
    for fast in (False, True):
        knowledge = dataclasses.replace(
            Rectifier("pair", temperature)(teacher, label), weight=weight, partial=True
        )
        assert kd_fast.applies(student, knowledge, knowledge.target)
        result = Objective(LOSSES["kd"](temperature=temperature), fast=fast)(student, knowledge, label, 0.3)
        (gradient,) = torch.autograd.grad(result.total, student)
        found.append((result, gradient.float()))
    (plain, plain_gradient), (result, gradient) = found
    assert result.total.isfinite()
    torch.testing.assert_close(result.total, plain.total, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result.terms, plain.terms, rtol=1e-5, atol=1e-5)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(gradient, plain_gradient, rtol=8 * eps, atol=max(8 * eps, 1e-5))
    alone = torch.autograd.grad(torch.nn.functional.cross_entropy(student.float(), label), student)[0]
    torch.testing.assert_close(gradient[1], alone[1].float(), rtol=8 * eps, atol=max(eps, 1e-6))


@pytest.mark.parametrize("rule", RULE_NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@every_way
def test_extreme_logits(rule, dtype, way):
    logits = torch.tensor(
        [[1e3, -1e3, 0.0], [-1e3, 1e3, 1e3], [0.0, 1e3, -1e3], [0.0, 0.0, 0.0]], dtype=dtype
    )
    student = logits.flip(0).clone().requires_grad_()
    (plain, plain_gradient), (fast, gradient) = both(student, logits, torch.tensor([1, 0, 0, 2]), rule, 4.0)
    assert gradient.isfinite().all()
    torch.testing.assert_close(fast.total, plain.total, rtol=1e-5, atol=1e-4)
    eps = torch.finfo(dtype).eps  # the plain path rounds every part of a half-precision gradient
    torch.testing.assert_close(gradient, plain_gradient, rtol=8 * eps, atol=max(8 * eps, 1e-5))


@pytest.mark.parametrize("delta", [0.0, 20.0, 100.0, 400.0, 3e3, 1e5])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("scale", [3.0, 300.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("way", WAYS, indirect=True)
def test_a_boost_whose_exponential_overflows(delta, temperature, scale, dtype, way):
    """Also where the label trails by as much, so that neither number can be exponentiated by itself."""
    student, teacher, label = batch(12, 5, dtype=torch.float64, scale=scale, kind="wrong")
    teacher[:3] = torch.arange(5.0) / 5
    teacher[:3].scatter_(1, label[:3, None], -delta)
    teacher = teacher.to(dtype)
    student = student.detach().to(dtype).requires_grad_()
    rule = RULES["boost"](delta=delta)
    exact = both(student, teacher, label, rule, temperature, double=True)[0]
    result, gradient = both(student, teacher, label, rule, temperature)[1]
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-10}
    if dtype == torch.float32 and delta > 100:  # label and top class are told apart by float32's own rounding
        close = {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(result.total.double(), exact[0].total, **close)
    torch.testing.assert_close(gradient.double(), exact[1], **close)


def test_zero_at_a_match():
    student, _, label = batch(20, 6)
    knowledge = Rectifier("identity")(student.detach().clone(), label)
    result = Objective("kd", task_weight=0.0)(student, knowledge, label, 0.0)
    assert result.total.abs() < 1e-12
    assert torch.autograd.grad(result.total, student)[0].abs().max() < 1e-14


def test_where_it_does_not_apply():
    student, teacher, label = batch(6, 4)

    def applies(target, num_rows=6, **options):
        knowledge = Rectifier(**options)(teacher[:num_rows], target)
        return kd_fast.applies(student[:num_rows], knowledge, knowledge.target)

    assert applies(label)
    assert not applies(label, rows="all")
    assert not applies(Target(label, partner=label, mix=torch.ones(6)))
    assert not applies(Target(label, may_ignore=True))
    ignored = label.clone()
    ignored[0] = -100
    assert not applies(ignored)
    assert not applies(label[:0], num_rows=0)


@pytest.mark.parametrize("loss", ["dkd", "standardize", "kd + dkd", "kd + kd(temperature=4)"])
def test_other_objectives_keep_to_the_plain_path(loss, monkeypatch):
    monkeypatch.setattr(kd_fast, "fused", lambda *_, **__: pytest.fail("the fast path ran"))
    student, teacher, label = batch(6, 4)
    objective = Objective(loss)
    knowledge = Rectifier("pair", objective.temperature or 4.0)(teacher, label)
    assert objective(student, knowledge, label, 0.0).total.isfinite()
    # and the trap is armed: the objective that may take the fast path does
    with pytest.raises(pytest.fail.Exception):
        Objective("kd")(student, Rectifier("pair")(teacher, label), label, 0.0)


@pytest.mark.parametrize("rule", RULE_NAMES)
@pytest.mark.parametrize("way", WAYS, indirect=True)
def test_extreme_logits_in_float32(rule, way):
    logits = torch.tensor([[1e3, -1e3, 0.0], [-1e3, 1e3, 1e3], [0.0, 1e3, -1e3], [0.0, 0.0, 0.0]])
    student, label = logits.flip(0).clone().requires_grad_(), torch.tensor([1, 0, 0, 2])
    (plain, plain_gradient), (fast, gradient) = both(student, logits, label, rule, 4.0)
    torch.testing.assert_close(fast.total, plain.total, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(gradient, plain_gradient, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["right", "wrong", "mixed"])
@pytest.mark.parametrize("rows, classes", [(1, 2), (1, 100), (5, 2), (300, 513), (3, 70000)])
@pytest.mark.parametrize("way", WAYS, indirect=True)
def test_shapes_in_float32(kind, rows, classes, way):
    student, teacher, label = batch(rows, classes, dtype=torch.float32, kind=kind)
    (plain, plain_gradient), (fast, gradient) = both(student, teacher, label, "pair", 4.0)
    torch.testing.assert_close(fast.total, plain.total, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, plain_gradient, rtol=1e-4, atol=1e-6)


@needs_compiler
class TestCompiled:
    """``Objective(fast="compiled")`` on a CPU: the pass in C, and when it steps aside."""

    def test_what_it_takes(self):
        student, teacher, _ = batch(6, 4, dtype=torch.float32)
        weight = torch.ones(6)
        asked = rows_of(student, teacher, weight)
        assert native.takes(asked)
        assert native.reads(asked)
        assert not native.takes(rows_of(student, teacher, weight.double()))
        assert not native.takes(rows_of(student, teacher, weight, rule="sort"))
        for other in (
            rows_of(student.bfloat16(), teacher, weight),
            rows_of(student, teacher.double(), weight),
            rows_of(student[:, ::2], teacher[:, ::2], weight),
        ):  # copied, block by block
            assert native.takes(other)
            assert not native.reads(other)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
    def test_rows_that_are_not_float32_in_one_piece_are_copied_in_blocks(self, dtype, monkeypatch):
        whole, teacher, label = batch(37, 22, dtype=dtype)
        student, teacher, label = whole.detach()[:, ::2].requires_grad_(), teacher[:, ::2], label // 2
        knowledge, seen, own = Rectifier("pair")(teacher, label), [], native.rows
        monkeypatch.setattr(native, "SHARE", 60)
        monkeypatch.setattr(native, "rows", lambda *x: seen.append(len(x[0].label)) or own(*x))
        monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
        found = []
        for fast in (False, True):
            total = Objective("kd", fast=fast)(student, knowledge, label, 0.3).total
            (gradient,) = torch.autograd.grad(total, student)
            assert gradient.dtype == dtype
            found.append((total.detach(), gradient.float()))
        assert seen == [5] * 7 + [2]
        eps = max(torch.finfo(dtype).eps, 1e-5)
        torch.testing.assert_close(found[1], found[0], rtol=4 * eps, atol=eps * 0.05)

    def test_through_the_objective(self, monkeypatch):
        student, teacher, label = batch(40, 9, dtype=torch.float32)
        knowledge = Rectifier("pair")(teacher, label)
        called, own = [], native.rows
        monkeypatch.setattr(native, "rows", lambda *x: called.append(1) or own(*x))
        results = [
            Objective("kd", fast=fast)(student, knowledge, label, 0.3) for fast in (True, "eager", "compiled")
        ]
        assert called == [1, 1]
        gradients = [torch.autograd.grad(result.total, student)[0] for result in results]
        for result, gradient in zip(results[1:], gradients[1:], strict=True):
            torch.testing.assert_close(result.total, results[0].total)
            torch.testing.assert_close(gradient, gradients[0])

    def test_threads_share_the_rows(self, monkeypatch):
        student, teacher, label = batch(37, 11, dtype=torch.float32)
        monkeypatch.setattr(native, "SHARE", 1)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
        knowledge, found = Rectifier("pair")(teacher, label), []
        for fast in (False, "compiled"):
            total = Objective("kd", fast=fast)(student, knowledge, label, 0.3).total
            found.append((total.detach(), torch.autograd.grad(total, student)[0]))
        torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)

    def test_without_a_compiler_it_says_so_and_goes_on(self, monkeypatch, tmp_path):
        monkeypatch.setenv("CC", str(tmp_path / "none"))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        native._library.cache_clear()
        native.say_if_missing.cache_clear()
        student, teacher, label = batch(6, 4, dtype=torch.float32)
        knowledge = Rectifier("pair")(teacher, label)
        try:
            with pytest.warns(UserWarning, match=r"fast='compiled' needs a C compiler .* eager pass"):
                total = Objective("kd", fast="compiled")(student, knowledge, label, 0.0).total
            with warnings.catch_warnings(action="error"):  # said once, and only to who asked
                Objective("kd", fast="compiled")(student, knowledge, label, 0.0)
                Objective("kd")(student, knowledge, label, 0.0)
        finally:
            native._library.cache_clear()
            native.say_if_missing.cache_clear()
        torch.testing.assert_close(total, Objective("kd", fast="eager")(student, knowledge, label, 0.0).total)

    def test_a_student_that_is_not_finite_is_seen(self):
        student, teacher, label = batch(6, 4, dtype=torch.float32)
        knowledge = Rectifier("pair")(teacher, label)
        for bad in (float("nan"), float("inf")):
            broken = student.detach().clone()
            broken[2, 1] = bad
            assert not Objective("kd", fast="compiled")(broken, knowledge, label, 0.0).total.isfinite()

    def test_small_numbers_stay_for_everybody_else(self):
        """A flag of fast maths would have flushed them in the whole process."""
        assert native.library() is not None
        assert torch.tensor(1e-40).mul(0.5).item() > 0


@pytest.mark.parametrize("fast", [True, "eager"])
def test_a_look_in_inference_mode_does_not_spoil_a_later_step(fast):
    student, teacher, label = batch(6, 4)
    knowledge = Rectifier("pair")(teacher, label)
    eager._local.__dict__.clear()
    with torch.inference_mode():
        Objective("kd", fast=fast)(student.detach(), knowledge, label, 0.0)
    Objective("kd", fast=fast)(student, knowledge, label, 0.0).total.backward()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("run", PASSES)
@pytest.mark.parametrize("whose", ["student", "teacher"])
@pytest.mark.parametrize("temperature", [2.5, 4.0])
def test_a_row_that_is_not_a_number_is_seen(run, whose, temperature):
    student, teacher, label = batch(6, 4, dtype=torch.float32)
    asked = rows_of(student.detach(), teacher, torch.ones(6), label, temperature=temperature)
    getattr(asked, whose)[2, 1] = float("nan")
    found = run(asked, True)
    assert not torch.as_tensor(found.easy + found.hard + found.task).isfinite()
    assert not found.gradient[2].isfinite().any()


class TestDevice:
    """The pass of a device, under ``torch.compile`` and without."""

    def arguments(self):
        student, teacher, label = batch(12, 5, dtype=torch.float32)
        return rows_of(student.detach(), teacher, torch.linspace(0.1, 1, 12), label, "lead"), True

    @pytest.mark.parametrize(
        "backend", ["eager", pytest.param("inductor", marks=[pytest.mark.slow, needs_compiler])]
    )
    def test_compiled_it_is_one_graph_and_the_same(self, backend):
        """In a process of its own: the checks of shapes in this one cannot be traced."""
        code = f"""if True:
            import functools, torch, warnings
            warnings.simplefilter("error", UserWarning)
            torch.compile = functools.partial(torch.compile, backend={backend!r})
            from outgrow import Rectifier
            from outgrow.losses.kd_fast import Scales, eager
            from outgrow.losses.kd_fast.batch import Batch
            draw = torch.Generator().manual_seed(0)
            for rule in ("pair", "swap", "lead", "boost", "identity"):
                student, teacher = (3 * torch.randn(12, 5, generator=draw) for _ in range(2))
                label = torch.randint(5, (12,), generator=draw)
                known, weight = Rectifier(rule)(teacher, label), torch.rand(12, generator=draw)
                scales = Scales(*torch.rand(3, generator=draw))
                rows = Batch(student, teacher, label, known.wrong, weight, scales, known.rule, 4.0)
                torch.testing.assert_close(eager.compiled(rows, True), eager.closed_form(rows, True))
        """
        subprocess.run([sys.executable, "-c", code], check=True)

    def test_where_it_does_not_compile_it_says_so_and_goes_on(self, monkeypatch):
        def refuse(*_, **__):
            return lambda *_: (_ for _ in ()).throw(RuntimeError("no Triton here"))

        monkeypatch.setattr(torch, "compile", refuse)
        eager._compiled.cache_clear()
        arguments = self.arguments()
        with pytest.warns(UserWarning, match="RuntimeError: no Triton here; goes on without"):
            found = eager.compiled(*arguments)
        torch.testing.assert_close(eager.compiled(*arguments), found)
        eager._compiled.cache_clear()
        torch.testing.assert_close(found, eager.closed_form(*arguments))

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    @pytest.mark.parametrize("fast", [True, "compiled"])
    @pytest.mark.parametrize("rule", RULE_NAMES)
    def test_on_a_device_it_is_the_plain_path(self, rule, fast):
        student, teacher, label = (x.detach().cuda() for x in batch(64, 11, dtype=torch.float32))
        student.requires_grad_()
        knowledge = Rectifier(rule)(teacher, label)
        assert kd_fast.applies(student, knowledge, knowledge.target) == (rule != "drop")
        found = []
        for way in (False, fast):
            result = Objective("kd", fast=way)(student, knowledge, label, 0.3)
            found.append((result.total.detach(), torch.autograd.grad(result.total, student)[0]))
        torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


def test_labels_other_than_the_knowledges_keep_to_the_plain_path():
    student, teacher, label = batch(6, 4)
    knowledge = Rectifier("pair")(teacher, label)
    assert kd_fast.applies(student, knowledge, Target(label.clone()))
    other = (label + 1) % 4
    assert not kd_fast.applies(student, knowledge, Target(other))
    assert not kd_fast.applies(student, knowledge, Target(label, partner=label, mix=torch.ones(6)))
    objectives = [Objective("kd", fast=fast) for fast in (False, True)]
    with pytest.warns(UserWarning, match="objective: got other labels than rectify had"):
        found = [objective(student, knowledge, other, 0.3).total for objective in objectives]
    torch.testing.assert_close(*found)
    objectives[0](student, knowledge, other, 0.3)  # said once


def test_equal_labels_are_no_other_labels(recwarn):
    student, teacher, label = batch(6, 4)
    Objective("kd")(student, Rectifier("pair")(teacher, label), label.clone(), 0.3)
    assert not recwarn.list


@pytest.mark.parametrize("rule", RULE_NAMES)
@pytest.mark.parametrize("weight", [torch.full((), 0.7).expand(9), torch.linspace(0, 2, 9)])
@pytest.mark.parametrize("scales", [(0.3, 0.2, 0.5), (0.0, 0.0, 1.0), (1.0, 1.0, 0.0)])
@pytest.mark.parametrize("run", PASSES)
def test_a_pass_against_a_loop_over_rows(rule, weight, scales, run):
    """The three sums and the gradient, one weight for all rows and one for each."""
    if run is run_native and rule not in IN_C:
        pytest.skip("eager takes it")
    student, teacher, label = batch(9, 5, dtype=torch.float32)
    asked = rows_of(student.detach(), teacher, weight, label, rule, 2.0, scales)
    believed = (corrected_logits(Rectifier(rule, 2.0)(teacher, label)) / 2).double().softmax(1)
    exact = student.detach().double().requires_grad_()
    task = easy = hard = exact.new_zeros(())
    for row in range(9):
        kl = (
            torch.special.xlogy(believed[row], believed[row])
            - believed[row] * (exact[row] / 2).log_softmax(0)
        ).sum()
        task = task - exact[row].log_softmax(0)[label[row]]
        easy, hard = (easy, hard + weight[row] * kl) if asked.wrong[row] else (easy + weight[row] * kl, hard)
    (gradient,) = torch.autograd.grad(scales[0] * task + 4 * (scales[1] * easy + scales[2] * hard), exact)
    found = run(asked, True)
    for value, expected in zip(map(torch.as_tensor, found), (task, easy, hard, gradient), strict=True):
        torch.testing.assert_close(value.double(), expected.detach(), rtol=1e-5, atol=1e-5)
    assert run(asked, False).gradient is None


@pytest.mark.parametrize("run", PASSES)
def test_rows_that_hardly_count_are_as_exact_as_the_others(run):
    """At the start of an easy-to-hard schedule: their scale must not be what is left of a difference."""
    student, teacher, label = batch(40, 5, dtype=torch.float32)
    weight = torch.ones(())
    small, whole = (
        run(rows_of(student.detach(), teacher, weight.expand(40), label, scales=(0.0, easy, hard)), True)
        for easy, hard in ((1.0, 1e-6), (1.0, 1.0))
    )
    wrong = teacher.argmax(dim=1) != label
    torch.testing.assert_close(1e6 * small.gradient[wrong], whole.gradient[wrong], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(small.gradient[~wrong], whole.gradient[~wrong])


@pytest.mark.parametrize("rule", RULE_NAMES)
@pytest.mark.parametrize("way", ["device"], indirect=True)
def test_a_row_without_a_label_is_not_there_on_a_device(rule, way):
    """Nobody has looked at the labels there: such a row has weight zero, and no cross-entropy either."""
    student, teacher, label = batch(6, 5, dtype=torch.float32)
    weight = torch.ones(6)
    others = eager.closed_form(rows_of(student[1:].detach(), teacher[1:], weight[1:], label[1:], rule), True)
    label[0], weight[0] = -100, 0.0
    found = eager.closed_form(rows_of(student.detach(), teacher, weight, label, rule), True)
    torch.testing.assert_close(found[:3], others[:3])
    assert found.gradient[0].abs().max() == 0
    torch.testing.assert_close(found.gradient[1:], others.gradient)


@pytest.mark.parametrize("normalize", ["rows", "subset"])
@pytest.mark.parametrize("fast, dtype", [(True, torch.float64), ("compiled", torch.float32)])
def test_weights_of_rows(normalize, fast, dtype):
    """A detector weighs rows by hand; here in double, whatever the logits are."""
    student, teacher, label = batch(20, 6, dtype=dtype)
    knowledge = Rectifier("pair")(teacher, label)
    weight = knowledge.weight * torch.linspace(0, 2, 20, dtype=torch.float64)
    knowledge = dataclasses.replace(knowledge, weight=weight)
    found = []
    for way in (False, fast):
        result = Objective("kd", fast=way, normalize=normalize)(student, knowledge, label, 0.3)
        found.append(
            (result.total.detach(), torch.autograd.grad(result.total, student)[0], result.stats["kd.hard"])
        )
    close = {"rtol": 1e-6, "atol": 1e-6} if fast == "compiled" else {}
    torch.testing.assert_close(found[1], found[0], **close)


def test_a_second_backward_is_refused_with_a_message():
    student, teacher, label = batch(6, 4)
    knowledge = Rectifier("pair")(teacher, label)
    total = Objective("kd")(student, knowledge, label, 0.0).total
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="use Objective"):
        total.backward()
    total = Objective("kd")(student, knowledge, label, 0.0).total
    with pytest.raises(RuntimeError, match=r"got create_graph=True; use Objective\(..., fast=False\)"):
        torch.autograd.grad(total, student, create_graph=True)
    plain = Objective("kd", fast=False)(student, knowledge, label, 0.0).total
    (gradient,) = torch.autograd.grad(plain, student, create_graph=True)
    gradient.square().sum().backward()


def test_without_a_gradient():
    student, teacher, label = batch(6, 4)
    knowledge = Rectifier("pair")(teacher, label)
    with torch.no_grad():
        result = Objective("kd")(student, knowledge, label, 0.0)
    torch.testing.assert_close(
        result.total, Objective("kd", fast=False)(student, knowledge, label, 0.0).total.detach()
    )


def test_features_travel_with_outputs():
    student, teacher, label = batch(6, 4)
    result = Objective("kd")(
        Outputs(student, {"a": student}), Rectifier()(Outputs(teacher), label), Target(label), 0.0
    )
    assert result.total.isfinite()


@needs_compiler
@pytest.mark.parametrize("rows, classes", [(512, 100), (256, 1000)])
def test_a_step_needs_the_memory_of_its_gradient(rows, classes):
    """Rectifier, objective and backward: within 5 % of the one matrix that has to be there."""
    student, teacher, label = batch(rows, classes, dtype=torch.float32)
    step = objective_step(True)
    step(student, teacher, label)  # builds the library
    student.grad = None
    peak = peak_extra_bytes(step, student, teacher, label)
    assert 4 * rows * classes <= peak <= 1.05 * 4 * rows * classes
