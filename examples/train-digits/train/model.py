"""The model: two convolutions and two linear layers."""

from torch import Tensor, nn
from torch.nn import functional


class MyModel(nn.Module):
    """A small convolutional classifier of grey images, 8 × 8.

    Args:
        num_classes: width of the logits.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.fc1 = nn.Linear(64 * 4 * 4, 128)
        self.fc2 = nn.Linear(128, num_classes)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Return `logits` [batch, num_classes]; with labels also `loss`, the mean cross-entropy in nats.

        Args:
            images: [batch, 1, 8, 8], from -1 to 1.
            labels: class indices [batch], or shares [batch, num_classes].
        """
        hidden = functional.relu(self.conv1(images))
        hidden = functional.max_pool2d(functional.relu(self.conv2(hidden)), 2)
        hidden = functional.relu(self.fc1(hidden.flatten(1)))
        output = {"logits": self.fc2(hidden)}
        if labels is not None:
            output["loss"] = functional.cross_entropy(output["logits"], labels)
        return output
