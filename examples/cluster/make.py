"""Create the input of this experiment: a small language model, and the text it was trained on.

    python make.py FOLDER

The workers' image contains the output in /usr/share/asysi/example, so that the experiment runs on any cluster
without a download. The text is the documentation that ships with Python. The model has the architecture of
GPT-2, with two layers of 64 dimensions, and is trained on the text for two epochs: enough for its activations
to depend on the content, and far too little to make it a good model.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from corpus import write_topics  # examples/minilm
from tokenizers import ByteLevelBPETokenizer
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

END = "<|endoftext|>"
VOCABULARY = 2048
CONTEXT = 64
"""Tokens per sequence."""
BATCH, PASSES, RATE = 32, 2, 3e-3


def train_tokenizer(texts: list[str], folder: Path) -> Any:
    """Return a byte-level BPE tokenizer of these texts, saved in `folder`."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, vocab_size=VOCABULARY, special_tokens=[END], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, bos_token=END, eos_token=END, pad_token=END
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def sequences(texts: list[str], tokenizer: Any) -> torch.Tensor:
    """Return the texts as one stream of tokens, split into [sequences, CONTEXT]."""
    stream = [token for ids in tokenizer(texts).input_ids for token in (*ids, tokenizer.eos_token_id)]
    return torch.tensor(stream[: len(stream) // CONTEXT * CONTEXT]).view(-1, CONTEXT)


def train_model(data: torch.Tensor, folder: Path) -> tuple[float, float]:
    """Train a model on `data` and save it; return its loss in the first and the last tenth of the steps."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # for such a small model, more threads only wait for each other
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=CONTEXT, n_embd=64, n_layer=2, n_head=4,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    steps = PASSES * (len(data) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps + 1)
    losses = []
    for _ in range(PASSES):
        for rows in torch.randperm(len(data))[: len(data) // BATCH * BATCH].view(-1, BATCH):
            loss = model(input_ids=data[rows], labels=data[rows]).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            losses.append(loss.item())
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # readable for any user of the image
    tenth = max(1, len(losses) // 10)
    return sum(losses[:tenth]) / tenth, sum(losses[-tenth:]) / tenth


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    count = write_topics(folder / "topics.jsonl")
    texts = [json.loads(line)["text"] for line in (folder / "topics.jsonl").read_text().splitlines()]
    tokenizer = train_tokenizer(texts, folder / "model")
    first, last = train_model(sequences(texts, tokenizer), folder / "model")
    print(f"{folder}: {count} sentences; the loss of the model went from {first:.2f} to {last:.2f}")


if __name__ == "__main__":
    main()
