"""A Hugging Face GPT-2 that learns a text in tokens of its own, and then continues a prompt.

The text is Python's reference manual, which comes with Python for `help()`; a byte-level BPE is trained on
it first. GPT-2's first and last layer share a weight. Two stages cannot, so `untie=True` gives each a copy.
The trained module is a plain GPT-2, and generates. It needs `pip install '.[gallery]'`.

    python docs/gallery/gpt2.py
    torchrun --standalone --nproc-per-node 2 docs/gallery/gpt2.py

Both print {"perplexity": 16.6}.
"""

import json
from pydoc_data.topics import topics

import pipelocal as pl
import torch
from tokenizers import ByteLevelBPETokenizer
from torch.utils.data import TensorDataset
from transformers import GPT2Config, GPT2LMHeadModel

VOCABULARY, LENGTH = 500, 32

text = " ".join(" ".join(topics.values()).split())
tokenizer = ByteLevelBPETokenizer()
tokenizer.train_from_iterator([text], vocab_size=VOCABULARY, show_progress=False)
tokens = torch.tensor(tokenizer.encode(text).ids)
windows = tokens.unfold(0, LENGTH + 1, LENGTH)
data = TensorDataset(windows[:, :-1], windows[:, 1:])  # the target is the next token

torch.manual_seed(0)  # the same weights on every rank
config = GPT2Config(
    vocab_size=VOCABULARY,
    n_positions=LENGTH,
    n_embd=64,
    n_layer=3,
    n_head=4,
    initializer_range=0.1,  # 0.02 is for a wide net
    resid_pdrop=0.0,
    embd_pdrop=0.0,
    attn_pdrop=0.0,
    bos_token_id=None,
    eos_token_id=None,
    use_cache=False,
)
net = pl.Chain.from_module(
    GPT2LMHeadModel(config),
    units=["transformer.wte", *(f"transformer.h.{n}" for n in range(3)), "lm_head"],
    input_shape=(LENGTH,),
    input_dtype=torch.int64,
    untie=True,
)
pipe = pl.Pipeline(
    net,
    stages=2,
    task=pl.tasks.NextToken(vocabulary=VOCABULARY),
    optimizer=lambda named: torch.optim.AdamW(pl.decay_groups(named, 0.1), lr=1e-2),
    schedule="cosine",
)
summary = pipe.fit(data, 0.1, epochs=3, batch_size=32)

model = pipe.module().eval()
prompt = torch.tensor([tokenizer.encode("The import statement").ids])
written = model.generate(prompt, max_new_tokens=24, do_sample=True, top_k=5)
print(tokenizer.decode(written[0].tolist()))
print(json.dumps({"perplexity": round(summary["eval"]["perplexity"], 1)}))
