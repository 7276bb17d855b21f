"""Products with sparse tensors are counted by their non-zeros."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from energy_models.counter import count
from energy_models.counts import Gemm, OpCounts

# 5 non-zeros in 3 x 5
INDICES = torch.tensor([[0, 0, 1, 2, 2], [1, 3, 0, 2, 4]])
COO = torch.sparse_coo_tensor(INDICES, torch.ones(5), (3, 5)).coalesce()
LAYOUTS = {"coo": COO, "csr": COO.to_sparse_csr(), "csc": COO.to_sparse_csc()}
INDEX_BITS = {"coo": 64 * 2 * 5, "csr": 64 * (4 + 5), "csc": 64 * (6 + 5)}  # CSR and CSC: pointers and indices
pytestmark = pytest.mark.filterwarnings("ignore:Sparse")


class Weighted(nn.Module):
    """A function of the inputs and one weight."""

    def __init__(self, function: Callable[..., Tensor], shape: tuple[int, ...]) -> None:
        super().__init__()
        self.function, self.weight = function, nn.Parameter(torch.ones(shape))

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs, self.weight)


def of(counts: OpCounts, sparse: bool) -> list[Gemm]:
    return [gemm for gemm in counts.gemms if (gemm.a.is_sparse or gemm.b.is_sparse) == sparse]


FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "sparse.mm": lambda a, x, w: torch.sparse.mm(a, x @ w),
    "@": lambda a, x, w: a @ (x @ w),
    "addmm": lambda a, x, w: torch.addmm(torch.zeros(3, 4), a, x @ w),
    "sparse.addmm": lambda a, x, w: torch.sparse.addmm(torch.zeros(3, 4), a, x @ w),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_sparse_times_dense(layout: str, function: str) -> None:
    counts = count(Weighted(FUNCTIONS[function], (7, 4)), (LAYOUTS[layout], torch.zeros(5, 7)))
    output, grad_input = of(counts, sparse=True)
    assert (output.gemm, output.m, output.n, output.k, output.macs) == ("output", 3, 4, 5, 5 * 4)
    assert (grad_input.gemm, grad_input.m, grad_input.n, grad_input.k, grad_input.macs) == ("grad_input", 5, 4, 3, 20)
    assert [gemm.macs for gemm in of(counts, sparse=False)] == [5 * 7 * 4] * 2  # x @ w, and the gradient of w
    assert (output.a.nonzeros, output.a.index_bits, output.a.elements) == (5, INDEX_BITS[layout], 15)
    assert output.traffic_bits == 32 * 5 + INDEX_BITS[layout] + 32 * 5 * 4 + 32 * 3 * 4
    assert counts.uncounted == ()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_dense_times_sparse(layout: str) -> None:
    counts = count(Weighted(lambda a, w: w @ a, (2, 3)), (LAYOUTS[layout],))
    assert [(gemm.gemm, gemm.macs) for gemm in counts.gemms] == [("output", 2 * 5), ("grad_weight", 2 * 5)]
    assert counts.gemms[0].b.stored_bits == 32 * 5 + INDEX_BITS[layout]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sparse_times_vector(layout: str) -> None:
    counts = count(Weighted(lambda a, w: a @ w[:, 0], (5, 1)), (LAYOUTS[layout],))
    assert [(gemm.gemm, gemm.macs) for gemm in counts.gemms] == [("output", 5), ("grad_weight", 5)]


@pytest.mark.parametrize("compressed", [False, True])
def test_a_batch_of_sparse_matrices(compressed: bool) -> None:
    batch = torch.stack([COO.to_dense()] * 2)
    sparse = batch.to_sparse_csr() if compressed else batch.to_sparse()
    counts = count(Weighted(lambda a, w: torch.bmm(a, w.expand(2, 5, 4)), (5, 4)), (sparse,))
    assert [gemm.macs for gemm in counts.gemms] == [2 * 5 * 4] * 2


def test_blocks_are_multiplied_whole() -> None:
    blocks = torch.block_diag(torch.ones(2, 3), torch.ones(2, 3)).to_sparse_bsr((2, 3))  # 2 of 4 blocks
    counts = count(Weighted(lambda a, w: a @ w, (6, 4)), (blocks,), training=False)
    assert (counts.total_macs, counts.gemms[0].a.nonzeros) == (12 * 4, 12)
    assert counts.gemms[0].a.index_bits == 64 * (3 + 2)


def test_an_uncoalesced_tensor_is_multiplied_value_by_value() -> None:
    doubled = torch.sparse_coo_tensor(torch.tensor([[0, 0, 1], [1, 1, 2]]), torch.ones(3), (3, 5))
    plain = Weighted(lambda a, w: torch.sparse.mm(a, w), (5, 4))
    merged = Weighted(lambda a, w: torch.sparse.mm(a.coalesce(), w), (5, 4))
    assert count(plain, (doubled,), training=False).total_macs == 3 * 4
    counts = count(merged, (doubled,), training=False)
    assert counts.total_macs == 2 * 4


def test_an_empty_sparse_tensor_has_no_work() -> None:
    empty = torch.sparse_coo_tensor(torch.zeros(2, 0, dtype=torch.long), torch.zeros(0), (3, 5))
    counts = count(Weighted(FUNCTIONS["sparse.mm"], (7, 4)), (empty, torch.zeros(5, 7)))
    assert [gemm.macs for gemm in of(counts, sparse=True)] == [0, 0]
    assert of(counts, sparse=True)[0].a.stored_bits == 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_sparse_tensor_on_the_meta_device_is_refused(layout: str) -> None:
    with pytest.raises(ValueError, match="an input is sparse and on the meta device"):
        count(Weighted(lambda a, w: a @ w, (5, 4)), (LAYOUTS[layout].to("meta"),))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("values", [False, True])
def test_a_sparse_buffer(layout: str, values: bool) -> None:
    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(7, 4, bias=False)
            self.register_buffer("adjacency", LAYOUTS[layout])

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.adjacency @ self.layer(x)
            return result

    counts = count(Graph(), torch.zeros(5, 7), values=values)
    assert [gemm.macs for gemm in of(counts, sparse=True)] == [20, 20]


class LearnedEdges(nn.Module):
    """An adjacency whose values are learned, as in early-bird tickets of graphs."""

    def __init__(self) -> None:
        super().__init__()
        self.edges, self.layer = nn.Parameter(torch.ones(5)), nn.Linear(7, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sparse.mm(torch.sparse_coo_tensor(INDICES, self.edges, (3, 5)), self.layer(x))


def test_values_with_a_gradient_are_counted_as_torch_runs_them() -> None:
    with pytest.raises(ValueError, match="values=True"):
        count(LearnedEdges(), torch.zeros(5, 7))
    counts = count(LearnedEdges(), torch.zeros(5, 7), values=True)
    sparse, dense = of(counts, sparse=True), of(counts, sparse=False)
    assert [gemm.macs for gemm in sparse] == [20, 20]
    # torch makes the whole (3, 5) gradient of the adjacency, then picks the 5 that it has.
    assert sorted(gemm.macs for gemm in dense) == [3 * 5 * 4, 140, 140]


def test_a_sparse_parameter() -> None:
    class Learned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.adjacency = nn.Parameter(COO)

        def forward(self, x: Tensor) -> Tensor:
            return torch.sparse.mm(self.adjacency, x)

    (output,) = count(Learned(), torch.zeros(5, 4), training=False).gemms
    assert (output.a.name, output.a.is_sparse, output.macs) == ("weight", True, 20)


def test_sampled_products_are_one_dot_product_for_each_non_zero() -> None:
    pattern = torch.eye(3).to_sparse_csr()
    model = Weighted(lambda a, x, w: torch.sparse.sampled_addmm(a, x, w, beta=0).values(), (4, 3))
    with pytest.raises(ValueError, match="sparse_sampled_addmm"):
        count(model, (pattern, torch.zeros(3, 4)))
    output, *backward = count(model, (pattern, torch.ones(3, 4)), values=True).gemms
    assert (output.gemm, output.batch, output.k, output.macs) == ("output", 3, 4, 12)
    assert [(gemm.gemm, gemm.macs) for gemm in backward] == [("grad_weight", 12)]


def test_a_product_of_two_sparse_tensors_is_listed() -> None:
    model = Weighted(lambda a, w: torch.sparse.mm(a, a.t()).to_dense() @ w, (3, 4))
    assert "(model): aten._sparse_sparse_matmul" in count(model, (COO,), training=False).uncounted


# A graph convolutional network (Kipf and Welling 2017) of the size of Cora: 2708 nodes, 5278 edges in both directions
# and a loop at each node, 1433 features, 16 hidden, 7 classes.
N, F, H, C = 2708, 1433, 16, 7
E = 2 * 5278 + N


def edges() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    places = torch.randperm(N * N, generator=generator)[:E]  # E different ones
    return torch.stack([places // N, places % N])


class SparseGCN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(F, H, bias=False), nn.Linear(H, C, bias=False)

    def forward(self, adjacency: Tensor, x: Tensor) -> Tensor:
        hidden = torch.relu(torch.sparse.mm(adjacency, self.first(x)))
        return torch.sparse.mm(adjacency, self.second(hidden))


class GatherGCN(SparseGCN):
    def forward(self, edges: Tensor, x: Tensor) -> Tensor:
        return self.spread(edges, self.second(torch.relu(self.spread(edges, self.first(x)))))

    def spread(self, edges: Tensor, x: Tensor) -> Tensor:
        """Each node gets the weighted sum of its neighbours."""
        source, target = edges
        messages = x.index_select(0, source) * torch.ones(E, 1)
        return torch.zeros(N, x.shape[1]).index_add_(0, target, messages)


def test_a_gcn_by_sparse_products_has_the_published_count() -> None:
    adjacency = torch.sparse_coo_tensor(edges(), torch.ones(E), (N, N)).coalesce()
    counts = count(SparseGCN(), (adjacency, torch.zeros(N, F)), training=False)
    assert counts.total_macs == N * F * H + E * H + N * H * C + E * C
    trained = count(SparseGCN(), (adjacency, torch.zeros(N, F)))
    # The features have no gradient: only the second layer's product hands an error on.
    assert trained.macs == {
        "output": counts.total_macs,
        "grad_input": E * C + N * C * H + E * H,
        "grad_weight": N * F * H + N * H * C,
    }
    assert trained.uncounted == ()


def test_a_gcn_by_gather_and_scatter_multiplies_weights_only() -> None:
    counts = count(GatherGCN(), (edges(), torch.zeros(N, F)))
    assert counts.macs == {
        "output": N * F * H + N * H * C,
        "grad_input": N * C * H,
        "grad_weight": N * F * H + N * H * C,
    }
    messages = [op for op in counts.element_ops if op.part == "forward" and op.fp_mul]
    assert [op.fp_mul for op in messages] == [E * H, E * C]  # along the edges
