"""A Hugging Face encoder that classifies sentences of different lengths.

A small DistilBERT with random weights tells praise from blame in made sentences, where "not" turns the
meaning of what follows. The tokenizer pads to one length, and the attention mask travels beside the main
tensor to every layer. It needs `pip install '.[gallery]'`.

    python docs/gallery/encoder.py
    torchrun --standalone --nproc-per-node 2 docs/gallery/encoder.py

Both print {"accuracy": 0.859}.
"""

import json
import random

import pipelocal as pl
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from torch.utils.data import TensorDataset
from transformers import (
    DistilBertConfig,
    DistilBertForSequenceClassification,
    PreTrainedTokenizerFast,
)

LENGTH = 24
GOOD, BAD = ("good", "fine", "brilliant", "gripping"), ("bad", "dull", "clumsy", "shallow")
THINGS = ("film", "plot", "cast", "music", "ending")


def sentence(rng: random.Random) -> tuple[str, int]:
    """One to three clauses that agree, and whether they praise."""
    praise, clauses = rng.randrange(2), []
    for thing in rng.sample(THINGS, rng.randint(1, 3)):
        turned = rng.randrange(2)
        word = rng.choice(BAD if praise == turned else GOOD)
        clauses.append(f"the {thing} was {'not ' * turned}{rng.choice(['', 'very '])}{word}")
    return " and ".join(clauses), praise


rng = random.Random(0)
texts, labels = zip(*(sentence(rng) for _ in range(2500)), strict=True)

words = Tokenizer(models.WordLevel(unk_token="[UNK]"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
special = ["[PAD]", "[UNK]", "[CLS]"]
words.train_from_iterator(texts, trainers.WordLevelTrainer(special_tokens=special))
words.post_processor = processors.TemplateProcessing(
    single="[CLS] $A", special_tokens=[("[CLS]", 2)]
)
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]"
)
encoded = tokenizer(list(texts), padding="max_length", max_length=LENGTH, return_tensors="pt")
data = TensorDataset(encoded["input_ids"], encoded["attention_mask"], torch.tensor(labels))

torch.manual_seed(0)  # the same weights on every rank
config = DistilBertConfig(
    vocab_size=len(tokenizer), dim=64, n_layers=3, n_heads=4, hidden_dim=128, num_labels=2
)
layers = [f"distilbert.transformer.layer.{n}" for n in range(config.n_layers)]
chain = pl.Chain.from_module(
    DistilBertForSequenceClassification(config),
    units=["distilbert.embeddings", *layers, "classifier"],
    inputs=encoded,
)
pipe = pl.Pipeline(
    chain,
    stages=2,
    optimizer=lambda named: torch.optim.AdamW(pl.decay_groups(named, 0.01), lr=1e-3),
    schedule="cosine",
)
summary = pipe.fit(data, 0.2, epochs=6, batch_size=50)
print(json.dumps({"accuracy": round(summary["eval"]["accuracy"], 3)}))
