"""Fixed-point problems with known answers, for the tests over the table SOLVERS."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Problem:
    """z = F(z, b) with F acting on each row of z (B, N) and b (B, N) alone."""

    function: Callable[[Tensor, Tensor], Tensor]
    b: Tensor
    z0: Tensor
    answer: Tensor

    def transition(self, z: Tensor) -> tuple[Tensor, None]:
        return self.function(z, self.b), None

    def rows(self, rows: list[int]) -> "Problem":
        return Problem(self.function, self.b[rows], self.z0[rows], self.answer[rows])


def product(z: Tensor, matrix: Tensor) -> Tensor:
    """z @ matrix.T, of which no row sees how many rows there are (a matrix product may)."""
    return (z[..., None, :] * matrix).sum(-1)


def linear(eigenvalues: list[float], rows: int = 4) -> Problem:
    """A symmetric matrix with these eigenvalues."""
    size = len(eigenvalues)
    basis, _ = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64))
    matrix = basis @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ basis.T
    b = torch.randn(rows, size, dtype=torch.float64)
    answer = torch.linalg.solve(torch.eye(size, dtype=torch.float64) - matrix, b.T).T
    return Problem(lambda z, b: product(z, matrix) + b, b, torch.zeros_like(b), answer)


def cosine(rows: int = 4) -> Problem:
    """The Dottie number, from different starting points."""
    z0 = torch.linspace(-1, 2, rows, dtype=torch.float64)[:, None]
    answer = torch.full_like(z0, 0.7390851332151607)
    return Problem(lambda z, b: torch.cos(z) + b, torch.zeros_like(z0), z0, answer)


def deep_equilibrium(rows: int = 4, size: int = 6) -> Problem:
    """tanh(W z + b); the answer by a thousand plain iterations."""
    weight = torch.randn(size, size, dtype=torch.float64)
    weight = 0.7 * weight / torch.linalg.matrix_norm(weight, 2)
    b = torch.randn(rows, size, dtype=torch.float64)
    z = torch.zeros_like(b)
    for _ in range(1000):
        z = torch.tanh(product(z, weight) + b)
    return Problem(lambda z, b: torch.tanh(product(z, weight) + b), b, torch.zeros_like(b), z)


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "linear": lambda: linear([0.6, -0.7, 0.3, 0.0, -0.1]),
    "cosine": cosine,
    "deep_equilibrium": deep_equilibrium,
}
