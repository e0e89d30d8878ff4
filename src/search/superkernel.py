"""The supernet of Single-Path NAS: one superkernel per layer, and thresholds that decide it.

A searched layer has one depthwise kernel w of the largest size and expansion. With 1(.) an
indicator and t its trained threshold (Stamoulis et al., arXiv 1904.02877, equations 2 to 7):

    kernel size    w_k = w_3x3 + 1(|w_ring5| > t_5) * (w_ring5 + 1(|w_ring7| > t_7) * w_ring7)
    expansion      channels come in nested parts; part p counts if |w_k of part p| > t_p and the
                   part before it counts
    presence       the layer counts if |w_k of the first part| > t_skip, where it may be skipped
    pairs          where kernel size and expansion are chosen together, one indicator switches the
                   ring and the part that a choice adds, by the norm of all that it adds

An indicator's gradient is that of sigmoid(|.| - t). Kernel-size indicators multiply the kernel.
Those of expansion and presence act where they can have an effect: behind the batch normalisation
and ReLU that follow the kernel, as factors of the projection's input channels and of the layer's
output. In front of batch normalisation, where the paper has them, a factor of a channel cancels:
the cross-entropy would give it no gradient, and a masked channel would leak as ReLU(beta). So the
supernet in evaluation mode equals the network that its decisions describe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from src.arch.blocks import Block
from src.arch.cost_table import CostTable
from src.arch.space import SearchSpace, Superkernel
from src.layers.conv_bn import CellOptions
from src.layers.ends import supports_fusion
from src.layers.mbconv import MBConv, create_block
from src.search.indicators import missing_indicators, padded_shape, part_masks, ring_masks
from src.spnasnet import BlockNetwork

NOT_DRAWN = -1.0  # in place of a number from 0 to 1


class Decisions(nn.Cell):
    """Thresholds of all searched layers, and what follows from them; always in float32.

    Arrays have one row per searched layer (L). S and P are the most kernel sizes and expansions
    that any layer has, and D = (S - 1) + (P - 1) + 1 the indicators, in the order kernel sizes,
    expansions, presence. An indicator that a layer lacks is fixed: 0 for sizes and expansions, 1
    for presence.

    A threshold t is ``thresholds`` times ``scales``. The gradient that sigmoid(|.| - t) gives a
    threshold vanishes where a norm is far from it, and norms start at 10 to 40. Thresholds get the
    gradient of a line of slope -1 in its place, which has the same sign; weights keep that of the
    sigmoid.

    The cross-entropy's gradient at an indicator of 1 is next to nothing: there the indicator is a
    factor of gamma and beta, which are trained until that gradient is 0. What a part of the network
    is worth is the integral of the gradient from 0 to 1. So in some steps an indicator is drawn
    between 0 and 1, whatever it is otherwise, and only those steps give it a gradient.

    Args:
        weights: depthwise kernel (C, 1, k, k) of each searched layer.
        drawn_share: share of the steps in which an indicator is drawn.
    """

    def __init__(
        self,
        space: SearchSpace,
        table: CostTable,
        weights: Sequence[Parameter],
        drawn_share: float,
    ) -> None:
        super().__init__()
        self.drawn_share = drawn_share
        # Past Cell's own bookkeeping, which would rename the layers' parameters.
        object.__setattr__(self, "weights", tuple(weights))
        layers = space.superkernels
        self.sizes, self.parts = padded_shape(space)
        missing = missing_indicators(space)
        self.thresholds = Parameter(Tensor(np.zeros(missing.shape, np.float32)), name="thresholds")
        self.scales = Parameter(
            Tensor(np.ones(missing.shape, np.float32)), name="scales", requires_grad=False
        )
        self.fixed = Parameter(Tensor(missing), name="fixed", requires_grad=False)
        # Per layer (S, k * k) and (P, C).
        self.rings = tuple(Tensor(ring_masks(layer, self.sizes)) for layer in layers.values())
        self.channels = tuple(Tensor(part_masks(layer, self.parts)) for layer in layers.values())
        costs = np.zeros((len(layers), self.sizes, self.parts), np.float32)
        for row, (name, layer) in zip(costs, layers.items(), strict=True):
            matrix = table.matrix(name, layer)
            row[: matrix.shape[0], : matrix.shape[1]] = matrix
        self.costs = Tensor(costs)
        # Which taps and parts a pair adds: all of a kernel (P, S) behind those of smaller pairs.
        ranks = np.maximum.outer(np.arange(self.parts), np.arange(self.sizes))
        self.added = Tensor((ranks == np.arange(1, self.sizes)[:, None, None]).astype(np.float32))
        self.paired = Tensor(np.array([[layer.paired] for layer in layers.values()], np.float32))
        self.any_paired = any(layer.paired for layer in layers.values())
        self.skip_costs = Tensor(np.array([[table.skip_cost(name)] for name in layers], np.float32))
        self.constant = float(table.constant)
        # Primitives: the functions of the same names compile to many times as many nodes, here for
        # every layer.
        self.product, self.product_transposed = ops.MatMul(), ops.MatMul(transpose_b=True)
        self.rows = ops.Split(0, len(layers))
        self.first = Tensor(np.ones((len(layers), 1), np.float32))
        self.rest = Tensor(np.zeros((len(layers), 1), np.float32))

    def indicator(self, norm: Tensor, first: int, last: int) -> Tensor:
        """Indicators ``first`` to ``last`` of all layers.

        Returns:
            (L, n): 1 where a norm is above its threshold, 0 elsewhere.
        """
        threshold, fixed = self.thresholds[:, first:last], self.fixed[:, first:last]
        t = threshold * self.scales[:, first:last]
        hard = ops.select(fixed >= 0, fixed, (norm > t).astype(ms.float32))
        soft = ops.sigmoid(norm - ops.stop_gradient(t)) - threshold
        soft = ops.select(fixed >= 0, ops.zeros_like(soft), soft)  # what is fixed has no gradient
        # The second term is exactly 0; it gives the gradient.
        return ops.stop_gradient(hard) + (soft - ops.stop_gradient(soft))

    def indicators(self) -> tuple[Tensor, Tensor]:
        """Indicators and the norms that decide them, both (L, D)."""
        energies: tuple[Tensor, ...] = ()  # of each channel part in each ring
        for i, weight in enumerate(self.weights):
            squares = ops.square(weight).reshape((weight.shape[0], -1))
            parts = self.product(self.channels[i], squares)
            energies += (self.product_transposed(parts, self.rings[i]),)
        energy = ops.stack(energies)  # (L, P, S)
        d, last = self.sizes - 1, self.thresholds.shape[1]
        ring_energy = energy.sum(1)[:, 1:]
        if self.any_paired:
            pair_energy = (energy.expand_dims(1) * self.added).sum((2, 3))
            ring_energy = ops.select(self.paired > 0, pair_energy, ring_energy)
        ring_norm = _norm(ring_energy)
        size = self.indicator(ring_norm, 0, d)
        # Of the kernel whose size is decided.
        part_norm = _norm((energy * ops.square(self.nest(size)).expand_dims(1)).sum(2))  # (L, P)
        part_norm = ops.concat((part_norm[:, 1:], part_norm[:, :1]), 1)
        indicators = ops.concat((size, self.indicator(part_norm, d, last)), 1)
        return indicators, ops.concat((ring_norm, part_norm), 1)

    def nest(self, indicators: Tensor) -> Tensor:
        """Factors of nested parts, (L, n + 1), of n indicators.

        The first is 1, and each later one is the product of all indicators up to it.
        """
        factors: tuple[Tensor, ...] = (self.first,)
        for i in range(indicators.shape[1]):
            factors += (factors[-1] * indicators[:, i : i + 1],)
        return ops.concat(factors, 1)

    def split(self, indicators: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Factors of the rings (L, S), of the channel parts (L, P) and of the layer (L, 1)."""
        d = self.sizes - 1
        sizes, parts = indicators[:, :d], indicators[:, d:-1]
        if self.any_paired:
            # Of the two one is 0. No layer has more pairs than columns that both have.
            common = min(d, self.parts - 1)
            both = parts[:, :common] + self.paired * sizes[:, :common]
            parts = both if common == self.parts - 1 else ops.concat((both, parts[:, common:]), 1)
        return self.nest(sizes), self.nest(parts), indicators[:, -1:]

    def cost(self, indicators: Tensor) -> Tensor:
        """Expected cost of the network, ().

        Multilinear in the indicators, and exact where all of them are 0 or 1.
        """
        rings, parts, presence = self.split(indicators)
        size = rings - ops.concat((rings[:, 1:], self.rest), 1)
        part = parts - ops.concat((parts[:, 1:], self.rest), 1)
        layers = (
            (self.costs * size.expand_dims(2) * part.expand_dims(1)).sum((1, 2)).reshape((-1, 1))
        )
        return (presence * layers + (1 - presence) * self.skip_costs).sum() + self.constant

    def construct(self, draws: Tensor) -> tuple[tuple, Tensor, Tensor, Tensor]:
        """Everything that follows from weights and thresholds.

        Args:
            draws: in place of indicators, (L, D) of 0 to 1; below 0 where an indicator stays.

        Returns:
            For each layer kernel mask (1, 1, k, k), channel mask (1, C, 1, 1) and presence (1,),
            with draws; without them cost (), indicators (L, D) and the norms that decide them (L,
            D).
        """
        indicators, norms = self.indicators()
        drawn = (draws >= 0).astype(ms.float32)
        value = drawn * draws + (1 - drawn) * ops.stop_gradient(indicators)
        # The difference is exactly 0; it gives the gradient, and on average that of every step.
        used = value + drawn / self.drawn_share * (indicators - ops.stop_gradient(indicators))
        rings, parts, presence = self.split(used)
        rings, parts = self.rows(rings), self.rows(parts)
        presence = self.rows(presence.reshape((-1,)))
        masks: tuple[tuple[Tensor, Tensor, Tensor], ...] = ()
        for i, weight in enumerate(self.weights):
            side = weight.shape[-1]
            masks += (
                (
                    self.product(rings[i], self.rings[i]).reshape((1, 1, side, side)),
                    self.product(parts[i], self.channels[i]).reshape((1, -1, 1, 1)),
                    presence[i],
                ),
            )
        return masks, self.cost(indicators), indicators, norms


def _norm(squared: Tensor) -> Tensor:
    # The gradient of a root at 0 is not finite.
    return ops.sqrt(ops.maximum(squared, Tensor(1e-12, ms.float32)))


class SuperBlock(MBConv):
    """An MBConv of the largest choice, masked by its layer's decisions."""

    def construct(  # type: ignore[override]  # takes the decisions of its layer too
        self, x: Tensor, kernel_mask: Tensor, channel_mask: Tensor, presence: Tensor
    ) -> Tensor:
        """As ``MBConv``; masks as ``Decisions`` gives them."""
        kernel, projection = self.wide[0], self.last[0]
        return super().construct(
            x,
            kernel * kernel_mask.astype(kernel.dtype),
            projection * channel_mask.astype(projection.dtype),
            presence if self.residual else None,
        )


class Supernet(BlockNetwork):
    """All networks of a space in one; parameters as in the space's largest network, and thresholds.

    Args:
        table: costs that the latency model gives.
        drawn_share: see ``Decisions``.
    """

    def __init__(
        self,
        space: SearchSpace,
        table: CostTable,
        num_classes: int,
        *,
        momentum: float = 0.9,
        kernels: bool = False,
        bfloat16: bool = False,
        drawn_share: float = 1.0,
    ) -> None:
        largest = space.largest()

        def create_blocks(options: CellOptions) -> nn.Cell:
            return nn.CellList(
                [
                    SuperBlock(layer.block(layer.largest), **options)
                    if isinstance(layer, Superkernel)
                    else create_block(block, **options)
                    for layer, block in zip(space.layers, largest.blocks, strict=True)
                ]
            )

        super().__init__(
            largest,
            num_classes,
            create_blocks,
            fusible=supports_fusion(largest),
            momentum=momentum,
            kernels=kernels,
            bfloat16=bfloat16,
        )
        self.searched = tuple(isinstance(layer, Superkernel) for layer in space.layers)
        self.decisions = Decisions(
            space,
            table,
            [block.depthwise.conv.weight for block in self.blocks if isinstance(block, SuperBlock)],
            drawn_share,
        )
        self.no_draws = Tensor(np.full(self.decisions.thresholds.shape, NOT_DRAWN, np.float32))

    def construct(self, x: Tensor, dropout: Tensor | None = None, draws: Tensor | None = None):
        """Logits of the decided network; with ``draws`` also what the search needs.

        Args:
            x: images (N, 3, H, W).
            dropout: factors of the pooled features, (N, head channels).
            draws: in place of indicators, (L, D), see ``Decisions``.

        Returns:
            Logits (N, classes), or with ``draws`` logits, cost (), indicators (L, D) and norms (L,
            D).
        """
        masks, cost, indicators, norms = self.decisions(self.no_draws if draws is None else draws)
        x, layer = self.stem(x), 0
        for i, searched in enumerate(self.searched):
            if searched:
                x = self.blocks[i](x, *masks[layer])
                layer += 1
            else:
                x = self.blocks[i](x)
        logits = self.classify(x, dropout)
        return logits if draws is None else (logits, cost, indicators, norms)


def inherit(
    parameters: Mapping[str, np.ndarray], space: SearchSpace, decisions: Sequence[str]
) -> dict[str, np.ndarray]:
    """Weights of the derived network, sliced out of the supernet's.

    Args:
        parameters: the supernet's, by name.
        space: the supernet's.
        decisions: one name per searched layer.
    """
    ends = ("stem", "head", "classifier")
    inherited = {name: value for name, value in parameters.items() if name.split(".")[0] in ends}
    position = 0  # of the block in the derived network
    for index, (layer, block) in enumerate(zip(space.layers, space.blocks(decisions), strict=True)):
        if block is None:
            continue
        prefix = f"blocks.{index}."
        for name, value in parameters.items():
            if name.startswith(prefix):
                own = name[len(prefix) :]
                if isinstance(layer, Superkernel) and isinstance(block, Block):
                    value = _slice(own, value, layer, block)
                inherited[f"blocks.{position}.{own}"] = value
        position += 1
    return inherited


def _slice(name: str, value: np.ndarray, layer: Superkernel, block: Block) -> np.ndarray:
    """The part of a superkernel's parameter that a block of its layer has."""
    trim = (layer.kernel_sizes[-1] - block.kernel_size) // 2
    if name == "project.conv.weight":
        value = value[:, : block.mid_channels]
    elif not name.startswith("project."):
        value = value[: block.mid_channels]
    if name == "depthwise.conv.weight" and trim:
        value = value[:, :, trim:-trim, trim:-trim]
    return np.ascontiguousarray(value)
