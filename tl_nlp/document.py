"""A layer that reads a whole text: its windows pooled, and what was counted on its surface beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional

from tl_nlp.errors import CheckpointError, RecipeError
from tl_nlp.families import head_modules, without_peft
from tl_nlp.windows import ASKED, STATED, TEXT

N_HEADS = 4  # of attention over windows
Laid = list[Tensor]
"""By example: windows of shape (examples, windows, hidden) and their tokens, 0 where none is; or where a text is
compared with its pair, of each side the tokens, of shape (examples, tokens, hidden), and which of them are."""


class Document(nn.Module):
    """Logits of shape (examples, outputs), in the place of a checkpoint's linear layer.

    A window is the mean of its tokens' states. Windows are pooled by their lengths ("mean"), by what a small network
    thinks of each ("attention": Yang et al. 2016, https://aclanthology.org/N16-1174, equations 5 to 7, from the mean
    on), or by their lengths after a transformer block over them ("transformer"). Surface features stand beside the
    pooled states, and a linear layer reads both; each group adds to it what sets it apart, from nothing on. Dropout of
    pooled states is what holds so many weights on few texts: for a linear layer it is a ridge penalty (Wager et al.
    2013, https://arxiv.org/abs/1307.1493).

    With `compare` a text and its pair come in windows of their own, and what is read in the place of pooled states is
    how well each says what the other does: see `_Comparison`.
    """

    def __init__(
        self,
        n_hidden: int,
        n_outputs: int,
        pooling: str,
        max_windows: int,
        dropout: float = 0.0,
        n_surface: int = 0,
        n_groups: int = 0,
        compare: bool = False,
    ):
        super().__init__()
        self.n_surface, self.dropout = n_surface, dropout
        self.comparison = _Comparison() if compare else None
        if compare:
            n_read = N_COMPARED
        else:
            n_read = n_hidden
            self.norm = nn.LayerNorm(n_hidden)
        if pooling == "attention":
            last = nn.Linear(n_hidden // 2, 1)
            nn.init.zeros_(last.weight)
            self.weigh = nn.Sequential(nn.Linear(n_hidden, n_hidden // 2), nn.Tanh(), last)
        elif pooling == "transformer":
            self.positions = _at_rest(nn.Embedding(max_windows, n_hidden))
            self.between = _Block(n_hidden)
        self.linear = nn.Linear(n_read + n_surface, n_outputs)
        # for each group, the first for those not known: of what is read and a constant
        self.own = _at_rest(nn.Embedding(n_groups + 1, n_outputs * (n_read + n_surface + 1))) if n_groups else None

    def forward(self, states: Tensor, batch: dict[str, Any] | None = None) -> Tensor:
        """From states of shape (windows, tokens, hidden); without a batch they pass, as the logits of their model."""
        if batch is None:
            return states
        return self.logits(self.laid_out(states, batch), batch.get("surface"), batch.get("group"))

    def laid_out(self, states: Tensor, batch: dict[str, Any]) -> Laid:
        """What it reads of states of shape (windows, tokens, hidden), by example."""
        if self.comparison is not None:
            return [part for side in (TEXT, STATED, ASKED) for part in _tokens(states, batch, side)]
        mask = batch["attention_mask"].unsqueeze(2).to(states)
        windows = (states * mask).sum(1) / mask.sum(1).clamp_min(1)
        lengths = batch["lengths"].to(windows)
        return list(_laid_out(windows, lengths, batch["rows"], batch["n_rows"]))

    def logits(self, laid: Laid, surface: Tensor | None = None, group: Tensor | None = None) -> Tensor:
        """Of shape (examples, outputs), from what was laid out, surface features of shape (examples, features) and the
        group of each example."""
        if self.comparison is not None:
            read = self.comparison(laid)
        else:
            read = functional.dropout(self.norm(self._pooled(*laid)), self.dropout, self.training)
        if surface is not None and self.n_surface:
            read = torch.cat([read, surface.to(read)], 1)
        logits = self.linear(read)
        if self.own is not None and group is not None:
            with_constant = torch.cat([read, torch.ones_like(read[:, :1])], 1)
            own = self.own(group).unflatten(1, (logits.shape[1], -1))
            logits = logits + torch.einsum("eof,ef->eo", own, with_constant)
        return logits

    def _pooled(self, windows: Tensor, lengths: Tensor) -> Tensor:
        """Of shape (examples, hidden), from (examples, windows, hidden) and the tokens of each, 0 where none is."""
        shares = lengths / lengths.sum(1, keepdim=True)
        if hasattr(self, "weigh"):
            shares = (shares.log() + self.weigh(windows)[..., 0]).softmax(1)
        elif hasattr(self, "between"):
            places = torch.arange(windows.shape[1], device=windows.device)
            windows = self.between(windows + self.positions(places), lengths > 0)
        return (windows * shares.unsqueeze(2)).sum(1)


class _Block(nn.Module):
    """One block of a transformer over windows, normalized before each part (Xiong et al. 2020)."""

    def __init__(self, n_hidden: int):
        super().__init__()
        self.before_attention, self.before_feedforward = nn.LayerNorm(n_hidden), nn.LayerNorm(n_hidden)
        self.query_key_value, self.out = nn.Linear(n_hidden, 3 * n_hidden), nn.Linear(n_hidden, n_hidden)
        self.up, self.down = nn.Linear(n_hidden, 2 * n_hidden), nn.Linear(2 * n_hidden, n_hidden)

    def forward(self, windows: Tensor, there: Tensor) -> Tensor:
        """Of shape (examples, windows, hidden); `there` tells which windows are."""
        parts = self.query_key_value(self.before_attention(windows)).chunk(3, -1)
        query, key, value = (part.unflatten(-1, (N_HEADS, -1)).transpose(1, 2) for part in parts)
        read = functional.scaled_dot_product_attention(query, key, value, attn_mask=there[:, None, None])
        windows = windows + self.out(read.transpose(1, 2).flatten(-2))
        return windows + self.down(functional.gelu(self.up(self.before_feedforward(windows))))


def _at_rest(table: nn.Embedding) -> nn.Embedding:
    """Learns from nothing on."""
    nn.init.zeros_(table.weight)
    return table


N_COMPARED = 2


class _Comparison(nn.Module):
    """How far a text says what its pair states, and how far the pair states what the text says, token by token: late
    interaction (Khattab & Zaharia 2020, https://arxiv.org/abs/2004.12832, equation 3), as both sides of BERTScore
    (Zhang et al. 2020, https://arxiv.org/abs/1904.09675).

    A token is found as far as its state is like the nearest one of the other side, by the cosine, and it weighs as much
    as it is unlike all that the pair asks: who repeats the question answers nothing. What is learned is how sharply
    both count: a power of each, for each side, at first 1. So few numbers learn nothing about single questions.
    """

    def __init__(self) -> None:
        super().__init__()
        # logs, each for what the pair states and for the text
        self.power_of_found, self.power_of_new = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))

    def forward(self, laid: Laid) -> Tensor:
        """Of shape (examples, N_COMPARED), from the tokens of text, stated and asked."""
        text, stated, asked = (
            (functional.normalize(laid[place].float(), dim=-1), laid[place + 1]) for place in (0, 2, 4)
        )
        read = []
        for place, (side, other) in enumerate(((stated, text), (text, stated))):
            found = _nearest(side, other) ** self.power_of_found[place].exp()
            weights = (1 - _nearest(side, asked)).clamp_min(_LEAST) ** self.power_of_new[place].exp() * side[1]
            read.append((found * weights).sum(1) / weights.sum(1).clamp_min(torch.finfo(weights.dtype).tiny))
        return _SPREAD * (torch.stack(read, 1) - 0.5)


_SPREAD = 5.0  # brings shares, most of them between 0.3 and 0.8, to about one
_LEAST = 1e-3  # of what is raised to a power, whose slope at 0 has no end


def _tokens(states: Tensor, batch: dict[str, Any], side: int) -> tuple[Tensor, Tensor]:
    """The tokens of a side by example: of shape (examples, tokens, hidden), and which of them are."""
    there = batch["sides"] == side
    rows = batch["rows"].unsqueeze(1).expand_as(there)[there]
    laid, lengths = _laid_out(states[there], torch.ones_like(rows), rows, batch["n_rows"])
    return laid, lengths > 0


def _nearest(side: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> Tensor:
    """The cosine of each token to the nearest one of the other side, of shape (examples, tokens); least where it is
    unlike or nothing is there."""
    if not other[0].shape[1]:
        return torch.full_like(side[0][..., 0], _LEAST)
    alike = side[0] @ other[0].transpose(1, 2)
    return alike.masked_fill(~other[1].unsqueeze(1), -1).amax(2).clamp_min(_LEAST)


def _laid_out(items: Tensor, sizes: Tensor, rows: Tensor, n_rows: int) -> tuple[Tensor, Tensor]:
    """Items by example, those of one in their order: of shape (examples, items, hidden); and their sizes, 0 where there
    is none."""
    counts = rows.bincount(minlength=n_rows)
    places = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
    laid = items.new_zeros(n_rows, int(counts.max()), items.shape[1]).index_put((rows, places), items)
    laid_sizes = sizes.new_zeros(laid.shape[:2]).index_put((rows, places), sizes)
    return laid, laid_sizes


def insert(model: Any, **shape: Any) -> None:
    """Puts a `Document` in the place of the last linear layer of a token classifier's head.

    Raises RecipeError for a model whose head does not end in one.
    """
    name = head_modules(model)[-1]
    old = model.get_submodule(name)
    if not isinstance(old, nn.Linear):
        raise RecipeError(
            f"the head of the family {model.config.model_type!r} does not end in a linear layer", "task.pooling"
        )
    with old.weight.device:
        model.set_submodule(name, Document(old.in_features, old.out_features, **shape))


def read(model: Any, folder: Path) -> None:
    """Fills the `Document` of a model with what `save_pretrained` wrote of it. Raises CheckpointError."""
    prefix = f"{head_modules(model)[-1]}."
    there: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            names = [name for name in list(tensors.keys()) if name.startswith(prefix)]
            there |= {name[len(prefix) :]: tensors.get_tensor(name) for name in names}
    try:
        document_of(model).load_state_dict(there)
    except RuntimeError as error:
        raise CheckpointError(
            f"{folder} holds another head than its recipe tells: {str(error).splitlines()[1].strip()}"
        ) from None


def document_of(model: Any) -> Any:
    """The `Document` of a model, adapted by PEFT or not."""
    return without_peft(model).get_submodule(head_modules(model)[-1])
