"""The loss by chunks is the plain one, in value, counts and all gradients; the kernel is its twin.

The kernel runs in Triton's interpreter on a CPU; on a GPU at the size and type that matter there.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from equilm.ops import cross_entropy
from equilm.ops.cross_entropy import CrossEntropy, linear_cross_entropy, logits_to_gradient_
from tests.tolerance import assert_close

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
IGNORE = -100
VOCAB, PADDED, WIDTH = 21, 24, 7


def problem(rows: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, a head whose padding is not zero, and targets: two are right, every fourth unasked."""
    torch.manual_seed(0)
    z_RD = torch.randn(rows, WIDTH, dtype=dtype)
    head_VD = torch.randn(PADDED, WIDTH, dtype=dtype)
    targets_R = torch.randint(VOCAB, (rows,))
    targets_R[1:3] = (z_RD[1:3] @ head_VD[:VOCAB].T).argmax(-1)
    targets_R[::4] = IGNORE
    return z_RD.requires_grad_(), head_VD.requires_grad_(), targets_R


def plain(z_RD: Tensor, head_VD: Tensor, targets_R: Tensor) -> CrossEntropy:
    logits_RV = z_RD @ head_VD[:VOCAB].T
    loss_sum = F.cross_entropy(logits_RV, targets_R, ignore_index=IGNORE, reduction="sum")
    correct = logits_RV.argmax(-1) == targets_R
    return CrossEntropy(loss_sum, (targets_R != IGNORE).sum(), correct)


def fused(z_RD: Tensor, head_VD: Tensor, targets_R: Tensor) -> CrossEntropy:
    return linear_cross_entropy(z_RD, head_VD, targets_R, vocab_size=VOCAB, ignore=IGNORE)


@pytest.fixture
def short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of a few rows: four in float64, eight in float32."""
    sizes = dict.fromkeys(("cpu", "cuda"), 4 * PADDED * 8)
    monkeypatch.setattr(cross_entropy, "CHUNK_BYTES", sizes)


@pytest.mark.usefixtures("short_chunks")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [4, 9, 13, 16])
def test_by_chunks_it_is_the_plain_loss(rows: int, dtype: torch.dtype) -> None:
    results = []
    for loss in (fused, plain):
        z_RD, head_VD, targets_R = problem(rows, dtype)
        found = loss(z_RD, head_VD, targets_R)
        gradients = torch.autograd.grad(0.3 * found.loss_sum, (z_RD, head_VD))
        results.append((*found, *gradients))
    for got, expected in zip(*results, strict=True):
        assert got.dtype == expected.dtype
        if got.is_floating_point():
            assert_close("loss", got, expected)
        else:
            assert got.equal(expected) and got.any()


@pytest.mark.parametrize("chunks", [False, True])
def test_smoothed_targets_change_the_gradient_and_not_the_loss(
    chunks: bool, request: pytest.FixtureRequest
) -> None:
    if chunks:
        request.getfixturevalue("short_chunks")
    z_RD, head_VD, targets_R = problem(13)
    found = linear_cross_entropy(
        z_RD, head_VD, targets_R, vocab_size=VOCAB, ignore=IGNORE, smoothing=0.3
    )
    wanted = F.cross_entropy(
        z_RD @ head_VD[:VOCAB].T,
        targets_R,
        ignore_index=IGNORE,
        reduction="sum",
        label_smoothing=0.3,
    )
    assert_close("loss", found.loss_sum, plain(z_RD, head_VD, targets_R).loss_sum)
    for got, expected in zip(
        torch.autograd.grad(found.loss_sum, (z_RD, head_VD)),
        torch.autograd.grad(wanted, (z_RD, head_VD)),
        strict=True,
    ):
        assert_close("gradient", got, expected)


def test_what_fits_at_once_is_left_to_autograd() -> None:
    """Bit for bit, since recipes were tuned on it; and alike without a gradient."""
    z_RD, head_VD, targets_R = problem(13, torch.float32)
    found = fused(z_RD, head_VD, targets_R)
    gradients = torch.autograd.grad(found.loss_sum / found.num_targets, (z_RD, head_VD))
    logits_RV = F.linear(z_RD, head_VD)[:, :VOCAB]
    losses_R = F.cross_entropy(logits_RV, targets_R, ignore_index=IGNORE, reduction="none")
    loss_sum, count = losses_R.sum(), (targets_R != IGNORE).sum()
    expected = torch.autograd.grad(loss_sum / count, (z_RD, head_VD))
    assert found.loss_sum.equal(loss_sum) and found.num_correct == plain(*problem(13)).num_correct
    assert all(got.equal(wanted) for got, wanted in zip(gradients, expected, strict=True))


@pytest.mark.usefixtures("short_chunks")
def test_the_gradient_is_that_of_the_function() -> None:
    z_RD, head_VD, targets_R = problem(9)

    def loss(z_RD: Tensor, head_VD: Tensor) -> Tensor:
        return fused(z_RD, head_VD, targets_R).loss_sum

    assert torch.autograd.gradcheck(loss, (z_RD, head_VD))
    assert torch.autograd.gradcheck(loss, (z_RD.detach(), head_VD))
    assert torch.autograd.gradcheck(loss, (z_RD, head_VD.detach()))


@pytest.mark.usefixtures("short_chunks")
def test_a_kept_graph_may_be_walked_again() -> None:
    z_RD, head_VD, targets_R = problem(9)
    loss = fused(z_RD, head_VD, targets_R).loss_sum
    once = torch.autograd.grad(loss, (z_RD, head_VD), retain_graph=True)
    twice = torch.autograd.grad(2 * loss, (z_RD, head_VD))
    assert all(b.equal(2 * a) for a, b in zip(once, twice, strict=True))


@pytest.mark.usefixtures("short_chunks")
def test_without_a_gradient_there_is_the_loss() -> None:
    z_RD, head_VD, targets_R = problem(9)
    expected = fused(z_RD, head_VD, targets_R)
    with torch.no_grad():
        found = fused(z_RD, head_VD, targets_R)
    assert not found.loss_sum.requires_grad
    assert all(got.equal(wanted) for got, wanted in zip(found, expected, strict=True))


class Largest(TorchDispatchMode):
    """Remembers the most numbers that any operation returned in one tensor."""

    numel = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):  # type: ignore[no-untyped-def]
        result = function(*args, **kwargs or {})
        for part in result if isinstance(result, tuple) else (result,):
            if isinstance(part, Tensor):
                self.numel = max(self.numel, part.numel())
        return result


@pytest.mark.usefixtures("short_chunks")
def test_logits_are_never_whole() -> None:
    z_RD, head_VD, targets_R = problem(64)
    with Largest() as chunked:
        fused(z_RD, head_VD, targets_R).loss_sum.backward()
    with Largest() as whole:
        plain(z_RD, head_VD, targets_R).loss_sum.backward()
    assert whole.numel == 64 * VOCAB
    assert chunked.numel == 64 * WIDTH


def test_shapes_must_belong_together() -> None:
    with pytest.raises(ValueError, match=r"^targets: expected shape \(2, 3\), got \(2, 4\)$"):
        fused(torch.zeros(2, 3, WIDTH), torch.zeros(PADDED, WIDTH), torch.zeros(2, 4).long())


def both(logits_RV: Tensor, targets_R: Tensor, vocab_size: int, **about: Any) -> list[Any]:
    """What the kernel and the twin, in float32 on the CPU, make of logits: gradient, loss, right.

    Whether that is the gradient, the tests above have shown.
    """
    kernels = pytest.importorskip("equilm.ops.cross_entropy_triton", reason="needs Triton")
    results = []
    for run, device in ((kernels.logits_to_gradient_, DEVICE), (logits_to_gradient_, "cpu")):
        own_RV = logits_RV.to(device, copy=True)
        own_RV = own_RV.float() if run is logits_to_gradient_ else own_RV
        found = run(own_RV, targets_R.to(device), vocab_size=vocab_size, ignore=IGNORE, **about)
        results.append([part.cpu() for part in (own_RV, *found)])
    return results


SHAPES = [(5, 21, 24), (1, 1, 1), (3, 50, 64), (4, 130, 130), (3, 4097, 4160), (2, 9000, 9000)]
HALF = torch.bfloat16 if DEVICE == "cuda" else torch.float16


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize(("rows", "vocab_size", "columns"), SHAPES)
def test_the_kernel_is_its_twin(
    rows: int, vocab_size: int, columns: int, overwrite: bool, dtype: torch.dtype
) -> None:
    logits_RV = (3 * torch.randn(rows, columns)).to(dtype)
    targets_R = torch.randint(vocab_size, (rows,))
    targets_R[0] = logits_RV[0, :vocab_size].argmax()
    targets_R[2:3] = IGNORE
    # Padding may be anything.
    logits_RV[:, vocab_size:] = torch.nan
    got, expected = both(logits_RV, targets_R, vocab_size, overwrite=overwrite)
    if overwrite:
        error = (got[0].float() - expected[0]).abs().max()
        assert error < {torch.float32: 1e-6, torch.float16: 5e-4, torch.bfloat16: 4e-3}[dtype]
        assert not got[0][2:3].any() and not got[0][:, vocab_size:].any()
    else:
        assert got[0].nan_to_num(7).equal(logits_RV.nan_to_num(7))
    assert_close("loss", got[1], expected[1])
    assert got[2].equal(expected[2]) and got[2][0] and not got[2][2:3].any()


def test_the_kernel_takes_the_first_of_the_largest() -> None:
    logits_RV = torch.randint(3, (40, 70)).float()
    targets_R = logits_RV.argmax(-1)
    first = torch.tensor([row.index(max(row)) for row in logits_RV.tolist()])
    last = torch.tensor([69 - row[::-1].index(max(row)) for row in logits_RV.tolist()])
    assert targets_R.equal(first) and not (first == last).any()
    for targets_R, right in ((first, True), (last, False)):
        for _, _, right_R in both(logits_RV, targets_R, 70):
            assert right_R.tolist() == [right] * 40


def test_a_target_that_is_no_token_reads_nothing() -> None:
    kernels = pytest.importorskip("equilm.ops.cross_entropy_triton", reason="needs Triton")
    logits_RV = torch.randn(4, 24, device=DEVICE)
    targets_R = torch.tensor([VOCAB, 10**12, -1, 0], device=DEVICE)
    losses_R, right_R = kernels.logits_to_gradient_(
        logits_RV, targets_R, vocab_size=VOCAB, ignore=IGNORE
    )
    assert losses_R.isnan().tolist() == [True, True, True, False]
    assert not right_R[:3].any()


@pytest.mark.usefixtures("short_chunks")
def test_all_of_it_with_the_kernel_in_a_half_type(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = pytest.importorskip("equilm.ops.cross_entropy_triton", reason="needs Triton")
    monkeypatch.setattr(cross_entropy, "logits_to_gradient_", kernels.logits_to_gradient_)
    z_RD, head_VD, targets_R = problem(41, torch.float32)
    z, head = (x.detach().to(DEVICE).requires_grad_() for x in (z_RD, head_VD))
    with torch.autocast(DEVICE, HALF):
        loss_sum = fused(z, head, targets_R.to(DEVICE)).loss_sum
    got = [loss_sum, *torch.autograd.grad(loss_sum / 7, (z, head))]
    z, head = (x.detach().to(HALF).double().requires_grad_() for x in (z_RD, head_VD))
    loss_sum = plain(z, head, targets_R).loss_sum
    expected = [loss_sum, *torch.autograd.grad(loss_sum / 7, (z, head))]
    for one, other in zip(got, expected, strict=True):
        assert one.dtype == torch.float32
        assert (one.cpu() - other).norm() < 1e-2 * other.norm()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_at_size(dtype: torch.dtype) -> None:
    """Four chunks or two; the head as published, so that rows are added to whole tiles."""
    rows, vocab_size, width = 16_384, 50_277, 768
    draw = torch.Generator("cuda").manual_seed(0)
    z_RD = torch.randn(rows, width, device="cuda", generator=draw).to(dtype)
    head_VD = (torch.randn(50_288, width, device="cuda", generator=draw) / width**0.5).to(dtype)
    targets_R = torch.randint(vocab_size, (rows,), device="cuda", generator=draw)
    targets_R[::7] = IGNORE
    z_RD, head_VD = z_RD.requires_grad_(), head_VD.requires_grad_()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    found = linear_cross_entropy(z_RD, head_VD, targets_R, vocab_size=vocab_size, ignore=IGNORE)
    got = [found.loss_sum, *torch.autograd.grad(found.loss_sum, (z_RD, head_VD))]
    held = torch.cuda.max_memory_allocated() - before
    assert held < 2 * 2**30 < rows * vocab_size * 4
    expected = [torch.zeros_like(x, dtype=torch.float64) for x in got]
    for start in range(0, rows, 2048):
        part = [x.detach().double() for x in (z_RD[start : start + 2048], head_VD)]
        z_CD, wide_VD = (x.requires_grad_() for x in part)
        logits_CV = z_CD @ wide_VD[:vocab_size].T
        loss = F.cross_entropy(
            logits_CV, targets_R[start : start + 2048], ignore_index=IGNORE, reduction="sum"
        )
        dz_CD, dhead_VD = torch.autograd.grad(loss, (z_CD, wide_VD))
        expected[0] += loss.detach()
        expected[1][start : start + 2048] = dz_CD
        expected[2] += dhead_VD
    limits = (1e-5, 1e-4, 1e-4) if dtype == torch.float32 else (1e-4, 1e-2, 1e-2)
    for one, other, limit in zip(got, expected, limits, strict=True):
        assert (one.double() - other).norm() < limit * other.norm()
