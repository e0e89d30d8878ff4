"""The one-shot supernet: several blocks per layer, each with weights of its own.

A step trains one block of each layer.

Guo et al., "Single Path One-Shot Neural Architecture Search with Uniform Sampling", arXiv
1904.00420. A path is an int32 array (L,) with the number of the block that each layer takes. As a
tensor it indexes the cells within the compiled graph, so a new path needs no new graph, and only
the blocks on it are computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from src.arch.space import SearchSpace
from src.kernels import chosen_momentum
from src.layers.conv_bn import CellOptions
from src.layers.shuffle import ShuffleLayer
from src.spnasnet import BlockNetwork
from src.training.step import Update, count_correct

BlockPath = tuple[int, ...]  # number of the block that each layer takes


def draw_path(space: SearchSpace, *key: int) -> np.ndarray:
    """A path, uniformly among all of a space and always the same for the same key."""
    counts = [len(layer.names) for layer in space.block_layers]
    return np.random.default_rng(key).integers(counts).astype(np.int32)


def path_names(space: SearchSpace, path: Sequence[int]) -> list[str]:
    """The decisions of a path, by name."""
    layers = space.block_layers
    return [layer.names[choice] for layer, choice in zip(layers, path, strict=True)]


class OneShotSupernet(BlockNetwork):
    """All networks of a one-shot space, whose batch normalisation has no scale and shift.

    Parameters are named ``blocks.<layer>.<choice>...``.

    Args:
        bfloat16: whether the operators multiply in bfloat16 in the blocks; not for training.
    """

    def __init__(
        self,
        space: SearchSpace,
        num_classes: int,
        *,
        momentum: float = 0.9,
        kernels: bool = False,
        bfloat16: bool = False,
    ) -> None:
        def create_blocks(options: CellOptions) -> nn.Cell:
            own: CellOptions = {**options, "bfloat16": bfloat16 and options["fused"]}
            return nn.CellList(
                [
                    ShuffleLayer([layer.block(name) for name in layer.names], **own)
                    for layer in space.block_layers
                ]
            )

        super().__init__(
            space.largest(),
            num_classes,
            create_blocks,
            fusible=True,
            momentum=momentum,
            affine=False,
            kernels=kernels,
        )
        self.space = space

    def construct(self, x: Tensor, path: Tensor) -> Tensor:
        """Logits of the network on a path: (N, 3, H, W) and (L,) of int32 -> (N, num_classes)."""
        x = self.stem(x)
        for i, layer in enumerate(self.blocks):
            x = layer(x, path[i])
        return self.classify(x)


_move = ops.MultitypeFuncGraph("move")


@_move.register("Function", "Tensor", "Tensor", "Tensor", "Tuple")
def _move_tensor(apply, parameter, moment, gradient, factors):
    rate, momentum, weight_decay = factors
    return apply(parameter, moment, rate, gradient + weight_decay * parameter, momentum)


class PathMomentum(nn.Optimizer):
    """SGD with momentum and weight decay that changes nothing but what is on the path.

    Momenta of other blocks do not change either. With the operators nothing is computed for them.

    Args:
        rates: learning rate of each step.
    """

    def __init__(
        self, network: OneShotSupernet, rates: np.ndarray, momentum: float, weight_decay: float
    ) -> None:
        super().__init__(Tensor(rates), network.trainable_params())
        self.momentum, self.weight_decay_factor = momentum, weight_decay
        self.moments = self.parameters.clone(prefix="moments", init="zeros")
        self.apply = ops.ApplyMomentum()
        self.layers: tuple[tuple[int, int], ...] = ()
        if network.fused:
            self._hold_layers(network)
            return
        counts = [len(layer.names) for layer in network.space.block_layers]
        self.choices = Tensor(np.arange(max(counts))[None], ms.int32)
        # Where each parameter's flag is among those of all blocks; the last flag is that of stem,
        # head and classifier.
        self.places = tuple(
            self._place(parameter, max(counts), len(counts)) for parameter in self.parameters
        )
        self.always = Tensor(np.ones(1, np.float32))
        self.flags = ops.Split(0, len(counts) * max(counts) + 1)

    @staticmethod
    def _place(parameter: Parameter, choices: int, layers: int) -> int:
        words = parameter.name.split(".")
        if words[0] != "blocks":
            return layers * choices
        return int(words[1]) * choices + int(words[2])

    def _hold_layers(self, network: OneShotSupernet) -> None:
        """Where the weights of each layer are among all, which are those of a stem before them."""
        first = [parameter.name.startswith("blocks.") for parameter in self.parameters].index(True)
        for layer in network.blocks:
            self.layers += ((first, first + len(layer.weights)),)
            first += len(layer.weights)
        self.counts = tuple(layer.counts for layer in network.blocks)
        self.update_block = chosen_momentum()
        self.constants = Tensor(np.array([self.momentum, self.weight_decay_factor], np.float32))

    def construct(self, gradients: tuple, path: Tensor) -> Tensor:
        """Update what is on the path, (L,) of int32."""
        rate = self.get_lr()
        self.assignadd(self.global_step, self.global_step_increase_tensor)
        if len(self.layers) > 0:
            return self.update_blocks(gradients, path, rate)
        chosen = (path.reshape((-1, 1)) == self.choices).astype(ms.float32).reshape((-1,))
        trained = ops.concat((chosen, self.always))
        # A rate of 0 and a momentum of 1, with a gradient of 0, change neither parameter nor moment
        # by a single bit.
        rates, decays = self.flags(rate * trained), self.flags(self.weight_decay_factor * trained)
        momenta = self.flags(1 + (self.momentum - 1) * trained)
        factors: tuple[tuple[Tensor, Tensor, Tensor], ...] = ()
        for place in self.places:
            factors += ((rates[place].reshape(()), momenta[place].reshape(()), decays[place]),)
        return self.map_(
            ops.partial(_move, self.apply), self.parameters, self.moments, gradients, factors
        )

    def update_blocks(self, gradients: tuple, path: Tensor, rate: Tensor) -> Tensor:
        """The same by operators, one per layer; MindSpore's own for stem, head and classifier."""
        first, last = self.layers[0][0], self.layers[-1][1]
        weights, moments = self.parameters, self.moments
        own = (rate, self.momentum, self.weight_decay_factor)
        others = weights[:first] + weights[last:]
        done = self.map_(
            ops.partial(_move, self.apply),
            others,
            moments[:first] + moments[last:],
            gradients[:first] + gradients[last:],
            (own,) * len(others),
        )
        factors = ops.concat((rate.reshape((1,)), self.constants))
        choices = path.astype(ms.float32)
        for i, (begin, end) in enumerate(self.layers):
            updated = self.update_block(
                *weights[begin:end],
                *moments[begin:end],
                *gradients[begin:end],
                factors,
                self.counts[i],
                choices[i],
            )
            done = ops.depend(done, updated)
        return done


class OneShotStep(nn.Cell):
    """A training step of the supernet on one path.

    Args:
        loss_fn: from logits and labels to a scalar.
    """

    def __init__(self, network: nn.Cell, loss_fn: nn.Cell, update: Update) -> None:
        super().__init__(auto_prefix=False)
        self.network = network
        self.loss_fn = loss_fn
        self.update = update
        self.gradient = ops.value_and_grad(self.forward, None, update.weights, has_aux=True)

    def forward(self, images: Tensor, labels: Tensor, path: Tensor) -> tuple[Tensor, ...]:
        """Scaled loss, loss and count of correct predictions of a batch."""
        logits = self.network(images, path)
        loss = self.loss_fn(logits, labels)
        return self.update.scale(loss), loss, count_correct(logits, labels)

    def construct(self, images: Tensor, labels: Tensor, path: Tensor) -> tuple[Tensor, Tensor]:
        """Train the blocks on ``path``, (L,) of int32; otherwise as ``TrainStep``."""
        (_, loss, correct), gradients = self.gradient(images, labels, path)
        return ops.depend(loss, self.update(gradients, path)), correct


def inherit(parameters: Mapping[str, np.ndarray], path: Sequence[int]) -> dict[str, np.ndarray]:
    """Parameters of the network on a path, taken from the supernet's."""
    prefixes = {
        f"blocks.{layer}.{choice}.": f"blocks.{layer}." for layer, choice in enumerate(path)
    }
    inherited = {}
    for name, value in parameters.items():
        words = name.split(".")
        prefix = ".".join(words[:3]) + "."
        if words[0] != "blocks":
            inherited[name] = value
        elif prefix in prefixes:
            inherited[prefixes[prefix] + name[len(prefix) :]] = value
    return inherited
