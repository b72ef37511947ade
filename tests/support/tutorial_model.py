"""A model as a tutorial on torch.nn.Transformer writes it, trained in seconds, with greedy decoding in torch."""

import math

import pytest
from support.framework_reference import interleaved_sinusoids

torch = pytest.importorskip("torch")
DIMS, STEPS, TARGET_LENGTH = 32, 80, 5


class TutorialModel(torch.nn.Module):
    """torch.nn.Transformer between embeddings and an output layer.

    Args:
        sizes: The number of source and of target tokens.
        special_ids: (pad, start, end) of the source and of the target.
        seed: Of the weights.
    """

    def __init__(self, sizes, special_ids, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        self.special_ids = special_ids
        self.transformer = torch.nn.Transformer(DIMS, 8, 1, 1, 48, dropout=0.0, batch_first=True)
        self.src_tok_emb = torch.nn.Embedding(sizes[0], DIMS)
        self.tgt_tok_emb = torch.nn.Embedding(sizes[1], DIMS)
        self.generator = torch.nn.Linear(DIMS, sizes[1])
        self.register_buffer("positions", interleaved_sinusoids(128, DIMS), persistent=False)

    def forward(self, source, target):
        def embed(embedding, ids):
            return embedding(ids) * math.sqrt(DIMS) + self.positions[: ids.shape[1]]

        padding = source == self.special_ids[0][0]
        hidden = self.transformer(
            embed(self.src_tok_emb, source),
            embed(self.tgt_tok_emb, target),
            tgt_mask=torch.ones(target.shape[1], target.shape[1]).triu(1).bool(),
            src_key_padding_mask=padding,
            memory_key_padding_mask=padding,
        )
        return self.generator(hidden)

    def source_rows(self, sources, kind="both"):
        """Return the ids of sources with special tokens around them: "both", "start", "end" or "none"."""
        _, start, end = self.special_ids[0]
        before, after = [start] * (kind in ("both", "start")), [end] * (kind in ("both", "end"))
        return [[*before, *ids, *after] for ids in sources]

    def fit(self, sources):
        """Learn a target of random ids for each source, and another one for each choice of special tokens around it."""
        pad, start, end = self.special_ids[1]
        rows = [row for kind in ("both", "start", "end", "none") for row in self.source_rows(sources, kind)]
        words = [i for i in range(self.generator.out_features) if i not in (pad, start, end)]
        chosen = torch.randint(len(words), (len(rows), TARGET_LENGTH))
        targets = torch.tensor([[start, *(words[i] for i in row), end] for row in chosen.tolist()])
        length = max(map(len, rows))
        source = torch.tensor([row + [self.special_ids[0][0]] * (length - len(row)) for row in rows])
        optimizer = torch.optim.Adam(self.parameters(), 5e-3)
        for _ in range(STEPS):
            logits = self(source, targets[:, :-1])
            loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets[:, 1:])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return self

    @torch.no_grad()
    def translate_ids(self, ids, max_tokens, kind="both"):
        """Return the ids that greedy decoding gives for the ids of a source without special tokens."""
        _, start, end = self.special_ids[1]
        source, output = torch.tensor(self.source_rows([ids], kind)), [start]
        while len(output) <= max_tokens:
            token = int(self(source, torch.tensor([output]))[0, -1].argmax())
            if token == end:
                break
            output.append(token)
        return output[1:]
