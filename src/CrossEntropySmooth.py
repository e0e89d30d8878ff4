"""Cross-entropy with label smoothing."""

from __future__ import annotations

from mindspore import Tensor, nn, ops


class CrossEntropySmooth(nn.Cell):
    """Mean cross-entropy against smoothed labels (Szegedy et al., arXiv 1512.00567, section 7).

    The target gives ``1 - smooth_factor`` to the label and spreads ``smooth_factor`` evenly over
    all classes, the label included. Computed in float32, whatever the type of the logits.

    Args:
        smooth_factor: from 0 to below 1; 0 gives the plain cross-entropy.
    """

    def __init__(self, smooth_factor: float = 0.0) -> None:
        super().__init__()
        self.smooth_factor = smooth_factor

    def construct(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Scalar loss from logits (N, num_classes) and integer labels (N,)."""
        logits = logits.astype("float32")
        # A one-hot target and not the framework's cross-entropy: this form runs alike on CPU and
        # Ascend, and one differentiation gives its gradient.
        num_classes = logits.shape[1]
        target = (
            ops.one_hot(labels, num_classes, 1.0 - self.smooth_factor, 0.0)
            + self.smooth_factor / num_classes
        )
        return -(target * ops.log_softmax(logits, -1)).sum(-1).mean()
