"""A classifier without layers: it averages the embeddings of a text's tokens and token n-grams, and reads the average.

The n-grams are hashed into one table (fastText: Joulin et al. 2016, section 2). Distilled from a transformer with much
unlabelled text, such a model keeps most of its accuracy (Sparse Distillation: Ye et al. 2022, arXiv 2110.08536).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from distill.models.ngram_config import NgramConfig

# The hash of an n-gram (a Carter-Wegman hash, after each token): products stay below 2^62, which int64 holds, and
# every operation is one of ONNX too.
MODULUS = 2**31 - 1
MULTIPLIER = 1_000_003_019
MIXER = 48_271  # of one more product, without which the n-grams of one word and its neighbours would lie side by side


class NgramForSequenceClassification(PreTrainedModel):
    """Logits from the average of the embeddings of all tokens and n-grams of a text."""

    config_class = NgramConfig
    config: NgramConfig
    base_model_prefix = "ngrams"

    def __init__(self, config: NgramConfig):
        super().__init__(config)
        self.ngrams = NgramEmbeddings(config)
        self.classifier = nn.Linear(config.width, config.num_labels)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the table."""
        return self.ngrams.embeddings

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: Any
    ) -> SequenceClassifierOutput:
        """Return logits (batch, classes) of ids and mask, both (batch, tokens); whatever else a tokenizer gives, too.

        It computes in the type of its weights, even within autocast: looking up rows is not faster in 16 bits.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        with torch.autocast(input_ids.device.type, enabled=False):
            return SequenceClassifierOutput(logits=self.classifier(self.ngrams(input_ids, mask)))  # type: ignore[arg-type]


class NgramEmbeddings(nn.Module):
    """The table, and the average of a text's rows."""

    def __init__(self, config: NgramConfig):
        super().__init__()
        self.vocabulary, self.table, self.longest = config.vocab_size, config.table, config.longest
        self.embeddings = nn.Embedding(config.vocab_size + (config.table if config.longest > 1 else 0), config.width)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return the average (batch, width) of the rows of all tokens and n-grams of each text."""
        rows, present = self.rows(input_ids, attention_mask)
        found = self.embeddings(rows)
        # In fp32, because in fp16 neither the number of a long text's n-grams nor the share of each can be written.
        shares = present.float() / present.float().sum(dim=1, keepdim=True).clamp(min=1)
        return torch.bmm(shares.unsqueeze(1), found.float()).squeeze(1).to(found.dtype)

    def rows(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the row of each n-gram, and a mask that is 1 if it has no padding; both (batch, n-grams), int64."""
        rows, present = [input_ids], [attention_mask]
        hashed, whole = input_ids, attention_mask
        for length in range(2, self.longest + 1):
            tokens, mask = input_ids[:, length - 1 :], attention_mask[:, length - 1 :]
            hashed = (hashed[:, :-1] * MULTIPLIER + tokens) % MODULUS
            whole = whole[:, :-1] * mask
            rows.append(self.vocabulary + hashed * MIXER % MODULUS % self.table)
            present.append(whole)
        return torch.cat(rows, dim=1), torch.cat(present, dim=1)


AutoModelForSequenceClassification.register(NgramConfig, NgramForSequenceClassification, exist_ok=True)
