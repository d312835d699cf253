"""balanced_l1_loss: equal to its twin, to the reference implementation, and to what the paper says of it."""

import math

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad

from libra_ops import balanced_l1_loss, reference

REDUCTIONS = ("none", "sum", "mean")
FORMULAS = ("paper", "published")
PARAMETERS = [{}, {"beta": 0.11}, {"alpha": 0.2, "gamma": 1.0, "beta": 2.0}, {"alpha": 1.0, "gamma": 3.0, "beta": 0.5}]
NAN, INFINITY = float("nan"), float("inf")


def errors(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """pred and target, with errors below and beyond every beta, and one of exactly 0."""
    generator = torch.Generator().manual_seed(seed)
    pred = torch.randn(shape, generator=generator, dtype=dtype) * 1.5
    target = torch.randn(shape, generator=generator, dtype=dtype)
    target.view(-1)[:1] = pred.view(-1)[:1]
    return pred, target


def gradients(function, pred: Tensor, target: Tensor, *rest, **parameters) -> tuple[Tensor, ...]:
    inputs = [pred.detach().clone().requires_grad_(), target.detach().clone().requires_grad_()]
    return torch.autograd.grad(function(*inputs, *rest, **parameters).sum(), inputs)


def slope(x: float | Tensor, **parameters) -> Tensor:
    """The gradient at the error x, in float64."""
    x = torch.as_tensor(x, dtype=torch.float64)
    return gradients(balanced_l1_loss, x, torch.zeros_like(x), **parameters)[0]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("parameters", PARAMETERS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_twin(parameters, formula, reduction, dtype):
    pred, target = errors(333, 4, dtype=dtype)
    weight = torch.rand(333, 4, dtype=dtype, generator=torch.Generator().manual_seed(1))
    weight[::5] = 0
    for rest in ((), (weight,)):
        rules = {**parameters, "formula": formula, "reduction": reduction}
        exact = [x.double() for x in (pred, target, *rest)]
        loss = balanced_l1_loss(pred, target, *rest, **rules)
        assert loss.dtype == dtype
        torch.testing.assert_close(loss, reference.balanced_l1_loss(*exact, **rules).to(dtype))
        for got, expected in zip(
            gradients(balanced_l1_loss, pred, target, *rest, **rules),
            gradients(reference.balanced_l1_loss, *exact, **rules),
            strict=True,
        ):
            torch.testing.assert_close(got, expected.to(dtype))


@pytest.mark.parametrize("case", range(6))
def test_reference_implementation(libra_goldens, case):
    golden = torch.load(libra_goldens / "a_balanced_l1.pt", weights_only=True)["cases"][case]
    rules = {name: golden[name] for name in ("alpha", "gamma", "beta")} | {"formula": "published"}
    pred, target, weight = golden["pred"], golden["target"], golden["weight"]
    torch.testing.assert_close(balanced_l1_loss(pred, target, **rules), golden["loss_elem"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        gradients(balanced_l1_loss, pred, target, **rules)[0], golden["grad_of_sum"], rtol=1e-5, atol=1e-6
    )
    for name, reduction, rest in (
        ("mean_noweight", "mean", ()),
        ("mean_weight", "mean", (weight,)),
        ("sum_weight", "sum", (weight,)),
        ("none_weight", "none", (weight,)),
    ):
        loss = 0.7 * balanced_l1_loss(pred, target, *rest, **rules, reduction=reduction)
        gradient = 0.7 * gradients(balanced_l1_loss, pred, target, *rest, **rules, reduction=reduction)[0]
        torch.testing.assert_close(loss, golden[f"{name}_loss_lw0.7"], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(gradient, golden[f"{name}_grad_lw0.7"], rtol=1e-5, atol=1e-6)


def test_the_papers_formula():
    """Eq. 8, alpha 0.5, gamma 1.5: alpha/b (b|x|+1) ln(b|x|+1) - alpha|x| inside, gamma|x| + C outside, continuous."""
    b = math.exp(3) - 1
    x = torch.tensor([-3.0, -1.0, -0.25, 0.0, 0.5, 0.999, 1.0, 2.0], dtype=torch.float64)
    size = x.abs()
    inside = 0.5 / b * (b * size + 1) * (b * size + 1).log() - 0.5 * size
    constant = 0.5 / b * (b + 1) * math.log(b + 1) - 0.5 - 1.5
    expected = torch.where(size < 1, inside, 1.5 * size + constant)
    torch.testing.assert_close(balanced_l1_loss(x, torch.zeros_like(x)), expected)


@pytest.mark.parametrize("parameters", PARAMETERS, ids=str)
def test_the_papers_gradient(parameters):
    """alpha ln(b|x|/beta + 1): 0 at 0, rising to gamma at beta without a step, gamma beyond, odd."""
    gamma, beta = parameters.get("gamma", 1.5), parameters.get("beta", 1.0)
    x = torch.linspace(0, 3 * beta, 301, dtype=torch.float64)
    gradient = slope(x, **parameters)
    assert gradient[0] == 0
    assert (gradient.diff()[x[1:] < beta] > 0).all()
    torch.testing.assert_close(gradient[x >= beta], torch.full_like(gradient[x >= beta], gamma))
    torch.testing.assert_close(slope(beta * (1 - 1e-9), **parameters), slope(beta, **parameters), rtol=1e-6, atol=0)
    assert torch.equal(slope(-x, **parameters), -gradient)
    if gamma == 1.5:  # more than smooth L1's x / beta for every small error, by the paper's figure 5
        inliers = (x > 0) & (x < beta)
        assert (gradient[inliers] > (x / beta)[inliers]).all()


@pytest.mark.parametrize("parameters", PARAMETERS, ids=str)
def test_gradient_is_that_of_the_loss(parameters):
    """Both formulas, by finite differences; the published one off its steps at 0 and beta."""
    pred = torch.tensor([-1.7, -0.9, -0.06, 0.03, 0.3, 0.7, 2.5], dtype=torch.float64, requires_grad=True)
    target = torch.zeros(7, dtype=torch.float64, requires_grad=True)
    for formula in FORMULAS:
        for reduction in REDUCTIONS:
            rules = {**parameters, "formula": formula, "reduction": reduction}
            assert torch.autograd.gradcheck(lambda p, t, rules=rules: balanced_l1_loss(p, t, **rules), (pred, target))


def test_formulas_agree_at_beta_1():
    pred, target = errors(500, 4)
    paper, published = (balanced_l1_loss(pred, target, formula=formula) for formula in FORMULAS)
    assert torch.equal(paper, published)
    torch.testing.assert_close(*(gradients(balanced_l1_loss, pred, target, formula=formula) for formula in FORMULAS))
    assert slope(1e-6, beta=0.11, formula="published") > 4  # elsewhere they do not: the published step at 0
    assert slope(1e-6, beta=0.11) < 1e-3


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_masked_elements_count_exactly_nothing(reduction):
    pred, target = errors(300, 4)
    weight = torch.rand(300, 4, generator=torch.Generator().manual_seed(1))
    weight[::3] = 0
    expected = balanced_l1_loss(pred, target, weight, reduction=reduction)
    expected_gradient = gradients(balanced_l1_loss, pred, target, weight, reduction=reduction)[0]
    pred[0], pred[3], target[6], target[9], pred[12] = NAN, INFINITY, -INFINITY, NAN, 3e38
    assert torch.equal(balanced_l1_loss(pred, target, weight, reduction=reduction), expected)
    for gradient in gradients(balanced_l1_loss, pred, target, weight, reduction=reduction):
        assert torch.equal(gradient.abs(), expected_gradient.abs())
        assert not gradient[::3].any()


def test_not_finite_errors_are_seen():
    zero = torch.zeros(3)
    loss = balanced_l1_loss(torch.tensor([NAN, INFINITY, 1.0]), zero)
    assert loss[0].isnan() and loss[1] == INFINITY and loss[2].isfinite()
    gradient = gradients(balanced_l1_loss, torch.tensor([NAN, INFINITY, -1e30]), zero)[0]
    assert gradient[0].isnan() and gradient[1] == 1.5 and gradient[2] == -1.5


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("parameters", [{}, {"beta": 0.11}, {"beta": 2.0}, {"gamma": 1e-3}, {"gamma": 20.0}], ids=str)
def test_small_errors_are_exact(parameters, formula):
    """Near 0 the formula is a difference of almost equal numbers; the loss is right to float32's digits."""
    x = torch.logspace(-12, 0, 2000, dtype=torch.float64)
    loss = balanced_l1_loss(x.float(), torch.zeros(2000), **parameters, formula=formula)
    if formula == "paper":
        assert (loss > 0).all() and (loss.diff() >= 0).all()
    double = balanced_l1_loss(x.float().double(), torch.zeros(2000).double(), **parameters, formula=formula)
    torch.testing.assert_close(loss.double(), double, rtol=2e-5, atol=0)
    if formula == "paper":  # alpha b / beta x^2 / 2 (1 - b x / (3 beta))
        rules = {"alpha": 0.5, "gamma": 1.5, "beta": 1.0} | parameters
        steep = math.expm1(rules["gamma"] / rules["alpha"]) / rules["beta"]
        tiny = steep * x < 1e-5
        series = rules["alpha"] * steep * x**2 / 2 * (1 - steep * x / 3)
        torch.testing.assert_close(loss.double()[tiny], series[tiny], rtol=1e-6, atol=0)


def test_steepest_parameters_give_no_nan():
    x = torch.tensor([0.0, 1e-9, 1e-3, 1.0])
    for formula in FORMULAS:
        rules = {"alpha": 0.02, "gamma": 1.5, "beta": 2e-6, "formula": formula}
        assert balanced_l1_loss(x, torch.zeros(4), **rules).isfinite().all()
        assert gradients(balanced_l1_loss, x, torch.zeros(4), **rules)[0].isfinite().all()
    with pytest.raises(RuntimeError, match="beta: expected at least"):
        torch.ops.libra_ops.balanced_l1_loss(x, x, None, 0.02, 1.5, 1e-6, False, 0, False)


def test_weight_from_a_layer_without_gradients():
    pred, target = errors(7, 4)
    weight = torch.rand(7, 4, requires_grad=True)
    with torch.no_grad():
        loss = balanced_l1_loss(pred, target, weight)
    assert torch.equal(loss, balanced_l1_loss(pred, target, weight.detach()))


@pytest.mark.parametrize("shape", [(4,), (1,), (7, 1), (1, 4), ()], ids=str)
def test_weight_broadcasts(shape):
    pred, target = errors(7, 4)
    weight = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    expected = balanced_l1_loss(pred, target) * weight
    torch.testing.assert_close(balanced_l1_loss(pred, target, weight), expected)
    torch.testing.assert_close(balanced_l1_loss(pred, target, weight, reduction="sum"), expected.sum())


@pytest.mark.parametrize("shape", [(), (1,), (3, 2, 5, 4), (17,)], ids=str)
def test_any_shape(shape):
    pred, target = errors(*shape)
    loss = balanced_l1_loss(pred, target)
    assert loss.shape == shape
    torch.testing.assert_close(loss, reference.balanced_l1_loss(pred, target))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_no_elements(reduction):
    pred, target = torch.empty(0, 4), torch.empty(0, 4)
    loss = balanced_l1_loss(pred, target, reduction=reduction)
    torch.testing.assert_close(loss, reference.balanced_l1_loss(pred, target, reduction=reduction), equal_nan=True)
    assert all(gradient.shape == (0, 4) for gradient in gradients(balanced_l1_loss, pred, target, reduction=reduction))


def test_not_contiguous():
    pred, target = errors(4, 9)
    weight = torch.rand(9, generator=torch.Generator().manual_seed(1))
    loss = balanced_l1_loss(pred.T, target.T, weight[:, None])
    assert torch.equal(loss, balanced_l1_loss(pred, target, weight).T)
    torch.testing.assert_close(
        gradients(lambda p, t: balanced_l1_loss(p.T, t.T), pred, target), gradients(balanced_l1_loss, pred, target)
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_is_computed_in_float32(dtype):
    pred, target = (x.to(dtype) for x in errors(100, 4))
    loss = balanced_l1_loss(pred, target, reduction="sum")
    assert loss.dtype == torch.float32
    assert torch.equal(loss, balanced_l1_loss(pred.float(), target.float(), reduction="sum"))
    assert all(gradient.dtype == dtype for gradient in gradients(balanced_l1_loss, pred, target))
    mixed = balanced_l1_loss(pred.double(), target)
    assert mixed.dtype == torch.float64


def test_autocast():
    """What a layer under autocast gives, bfloat16, costs the same as outside of it."""
    pred, target = errors(100, 4)
    half, mixed = pred.bfloat16(), (pred.bfloat16().float(), target)
    with torch.autocast("cpu", torch.bfloat16):
        loss = balanced_l1_loss(half, target)
        gradient = gradients(balanced_l1_loss, half, target)[1]
        raw = torch.ops.libra_ops.balanced_l1_loss(half, target, None, 0.5, 1.5, 1.0, False, 0, False)[0]
    for result in (loss, raw):  # raw: a caller who passes by the Python door
        assert result.dtype == torch.float32
        assert torch.equal(result, balanced_l1_loss(*mixed))
    assert torch.equal(gradient, gradients(balanced_l1_loss, *mixed)[1])


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_sums_are_deterministic_and_independent_of_threads(reduction):
    pred, target = errors(40_000, 4)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5, 2):
            torch.set_num_threads(count)
            loss = balanced_l1_loss(pred, target, reduction=reduction)
            results.append((loss, *gradients(balanced_l1_loss, pred, target, reduction=reduction)))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(result, results[0], strict=True))
    if reduction == "sum":
        exact = reference.balanced_l1_loss(pred.double(), target.double(), reduction="sum")
        assert results[0][0].item() == pytest.approx(exact.item(), rel=1e-6)


def test_incoming_gradient():
    pred, target = errors(20, 4)
    incoming = torch.rand(20, 4, generator=torch.Generator().manual_seed(1))
    inputs = [pred.requires_grad_(), target.requires_grad_()]
    plain = torch.autograd.grad(balanced_l1_loss(*inputs).sum(), inputs)
    scaled = torch.autograd.grad(balanced_l1_loss(*inputs), inputs, incoming)
    torch.testing.assert_close(scaled, tuple(gradient * incoming for gradient in plain))
    mean = torch.autograd.grad(3 * balanced_l1_loss(*inputs, reduction="mean"), inputs)
    torch.testing.assert_close(mean, tuple(gradient * 3 / 80 for gradient in plain))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_differentiable_once(reduction):
    """A graph of the gradient may be made; an error comes only where a second derivative runs through the op."""
    pred, target = errors(3, 4)
    expected = gradients(balanced_l1_loss, pred, target, reduction=reduction)[0]
    pred.requires_grad_()
    other = torch.ones(3, requires_grad=True)
    loss = balanced_l1_loss(pred, target, reduction=reduction).sum() + other.pow(3).sum()
    of_pred, of_other = torch.autograd.grad(loss, (pred, other), create_graph=True)
    assert torch.equal(of_pred, expected)
    assert torch.equal(torch.autograd.grad(of_other.sum(), other, retain_graph=True)[0], torch.full((3,), 6.0))
    for penalty in (of_pred.sum(), of_pred.square().sum() + loss):
        with pytest.raises(RuntimeError, match="balanced_l1_loss: differentiable once"):
            torch.autograd.grad(penalty, pred, retain_graph=True)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_graph_that_is_kept_gives_the_same_gradient_again(reduction):
    """And what a caller does to a gradient does not change the next one: each is memory of its own."""
    pred, target = errors(50, 4)
    expected = gradients(balanced_l1_loss, pred, target, reduction=reduction)
    inputs = [pred.requires_grad_(), target.requires_grad_()]
    for factor in (1, 3):
        loss = balanced_l1_loss(*inputs, reduction=reduction).sum() * factor
        for last in (False, False, True):
            for got, once in zip(torch.autograd.grad(loss, inputs, retain_graph=not last), expected, strict=True):
                torch.testing.assert_close(got, factor * once)
                got.zero_()
        with pytest.raises(RuntimeError, match="backward through the graph a second time"):
            torch.autograd.grad(loss, inputs)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradients_of_one_side_and_into_grad(reduction):
    pred, target = errors(50, 4)
    of_pred, of_target = gradients(balanced_l1_loss, pred, target, reduction=reduction)
    for inputs, own, expected in (((pred.clone(), target), 0, of_pred), ((pred, target.clone()), 1, of_target)):
        leaf = inputs[own].requires_grad_()
        for times in (1, 2):  # the second is added to the first
            (balanced_l1_loss(*inputs, reduction=reduction) * 2).sum().backward()
            torch.testing.assert_close(leaf.grad, expected * 2 * times)


def test_a_batch_of_incoming_gradients():
    pred, target = errors(3, 4)
    pred.requires_grad_()
    incoming = torch.rand(5, 3, 4, generator=torch.Generator().manual_seed(1))
    loss = balanced_l1_loss(pred, target)
    expected = torch.stack([torch.autograd.grad(loss, pred, one, retain_graph=True)[0] for one in incoming])
    (got,) = torch.autograd.grad(loss, pred, incoming, is_grads_batched=True)
    torch.testing.assert_close(got, expected)


def test_fake_tensors_have_the_gradients_shapes():
    with FakeTensorMode():
        pred, target = torch.rand(5, 4, requires_grad=True), torch.rand(5, 4)
        for reduction in REDUCTIONS:
            loss = balanced_l1_loss(pred, target, reduction=reduction)
            assert loss.shape == (pred.shape if reduction == "none" else ())
            assert torch.autograd.grad(loss.sum(), pred)[0].shape == (5, 4)


def test_the_op_itself_has_the_same_gradient():
    """Whoever calls it without the public function keeps its second output as it is."""
    pred, target = errors(20, 4)
    pred.requires_grad_()
    loss, gradient = torch.ops.libra_ops.balanced_l1_loss(pred, target, None, 0.5, 1.5, 1.0, False, 1, True)
    before = gradient.clone()
    (got,) = torch.autograd.grad(2 * loss, pred)
    assert torch.equal(gradient, before)
    torch.testing.assert_close(got, 2 * gradients(balanced_l1_loss, pred, target, reduction="sum")[0])


def test_forward_mode_is_an_error_and_not_a_missing_tangent():
    pred, target = errors(3, 4)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(pred, torch.ones_like(pred))
        with pytest.raises(NotImplementedError, match="pred: expected a tensor without a tangent"):
            balanced_l1_loss(dual, target)
        with pytest.raises(NotImplementedError, match="target: expected a tensor without a tangent"):
            balanced_l1_loss(pred, dual)
        balanced_l1_loss(pred, target)


@pytest.mark.parametrize("reduction", range(3))
def test_opcheck(reduction):
    pred, target = errors(5, 4)
    weight = torch.rand(5, 4)
    arguments = (pred.requires_grad_(), target.requires_grad_(), weight, 0.5, 1.5, 1.0, False, reduction, True)
    torch.library.opcheck(torch.ops.libra_ops.balanced_l1_loss, arguments)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_compile(reduction):
    def loss(pred, target):
        return balanced_l1_loss(pred, target, reduction=reduction)

    pred, target = errors(9, 4)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(pred, target), loss(pred, target))
    torch.testing.assert_close(gradients(compiled, pred, target), gradients(loss, pred, target))


ONES = torch.ones(2, 4)


@pytest.mark.parametrize(
    ("arguments", "parameters", "error", "message"),
    [
        ((ONES.long(), ONES), {}, TypeError, r"pred: expected a floating dtype .*int64 \[2, 4\]"),
        ((ONES, [1.0]), {}, TypeError, "target: expected a torch.Tensor, got list"),
        ((ONES, ONES[0]), {}, ValueError, r"target: expected shape \[2, 4\] .*got float32 \[4\]"),
        ((ONES, ONES.to("meta")), {}, ValueError, "target: expected on cpu like pred, got meta"),
        ((ONES, ONES, ONES[:, 0]), {}, ValueError, r"weight: .* broadcasts to .*got float32 \[2\].*unsqueeze"),
        ((ONES, ONES, ONES.bool()), {}, TypeError, "weight: expected a floating dtype"),
        ((ONES, ONES, ONES.clone().requires_grad_()), {}, ValueError, r"weight: .*weight.detach\(\)"),
        ((ONES, ONES), {"alpha": 0}, ValueError, "alpha: expected a finite number > 0, got 0"),
        ((ONES, ONES), {"gamma": NAN}, ValueError, "gamma: expected a finite number > 0, got nan"),
        ((ONES, ONES), {"beta": -1.0}, ValueError, "beta: expected a finite number > 0, got -1"),
        ((ONES, ONES), {"beta": "1"}, TypeError, "beta: expected a number, got str"),
        ((ONES, ONES), {"alpha": 0.01}, ValueError, "gamma: expected at most 80 times alpha, got gamma 1.5"),
        ((ONES, ONES), {"alpha": 0.02, "beta": 1e-6}, ValueError, r"beta: expected at least 1.*e-06 with alpha 0.02"),
        ((ONES, ONES), {"gamma": 1e-3, "beta": 1e-39}, ValueError, "beta: expected at least 3.3.*e-39"),
        ((ONES, ONES), {"formula": "libra"}, ValueError, "formula: expected one of 'paper', 'published', got 'libra'"),
        ((ONES, ONES), {"reduction": "avg"}, ValueError, "reduction: expected one of 'none', 'sum', 'mean', got 'avg'"),
    ],
)
def test_errors_name_the_argument(arguments, parameters, error, message):
    with pytest.raises(error, match=message):
        balanced_l1_loss(*arguments, **parameters)
