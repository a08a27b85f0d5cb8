"""The golden language model (with its cache) and vision tower."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from hw.spec import numerics as nm
from ref_model.mask import BlockMask
from ref_model.quantise import QuantModel, QuantTextLayer, QuantVision, QuantVisionLayer, fixed
from ref_model.reduction import Reduction

from .operators import (
    GATES,
    Array,
    add_linear,
    attend,
    gated,
    importance,
    linear,
    normalise,
    probabilities,
    quantise_rows,
    rotate,
)
from .selection import class_attention, survivors


@dataclass
class LayerCache:
    """k8, v8: int8[kv_heads, n, hd]; k_words, v_raw: int64[kv_heads, n]."""

    k8: Array
    k_words: Array
    v8: Array
    v_raw: Array

    @classmethod
    def empty(cls, kv_heads: int, head_dim: int) -> "LayerCache":
        return cls(
            np.zeros((kv_heads, 0, head_dim), np.int8),
            np.zeros((kv_heads, 0), np.int64),
            np.zeros((kv_heads, 0, head_dim), np.int8),
            np.zeros((kv_heads, 0), np.int64),
        )

    def append(self, k: tuple[Array, Array], v: tuple[Array, Array]) -> None:
        """k, v: (int8[n, kv_heads, hd], raw int64[n, kv_heads, 1])."""

        def grow(old, new):
            return np.concatenate([old, new.swapaxes(0, 1)], axis=1)

        self.k8, self.k_words = grow(self.k8, k[0]), grow(self.k_words, nm.to_scale(k[1])[..., 0])
        self.v8, self.v_raw = grow(self.v8, v[0]), grow(self.v_raw, v[1][..., 0])


@dataclass
class GoldenText:
    """The decoder in integers. `layers` limits how many run (None: all); `first` is the first one."""

    model: QuantModel
    layers: int | None = None
    first: int = 0
    cache: list[LayerCache] = field(default_factory=list)
    scores: Array | None = None
    """Attention that the rows of the latest scored layer got from its last row: int64[n] Q24, summed over heads."""

    def __post_init__(self):
        c = self.model.text.config
        self.layers = c.layers - self.first if self.layers is None else self.layers
        self.cache = [LayerCache.empty(c.kv_heads, c.head_dim) for _ in range(self.layers)]

    def embed(self, ids: Sequence[int], features: Array | None = None) -> Array:
        """Wide rows int64[n, d]; image-token places take `features` rows (int[n_visual, d] Q16) in order."""
        tokens = np.asarray(ids, dtype=np.int64)
        places = tokens == (-1 if self.model.config.image_token_index is None else self.model.config.image_token_index)
        rows = self.model.text.embed[np.where(places, 0, tokens)].astype(np.int64)
        if features is not None:
            rows[places] = features
        return rows

    def forward(
        self,
        rows: Array,
        positions: Sequence[int] | None = None,
        mask: BlockMask | None = None,
        reduction: Reduction | None = None,
    ) -> Array:
        """Run wide rows int64[n, d] behind what is cached; returns the residual int64[m, d] after the layers.

        mask: keys that it leaves out do not exist for a query: neither maximum, sum nor values know them. reduction:
        visual tokens that it drops are gone from a layer on, so that the last layers return fewer rows than went in.
        """
        start = self.cache[0].k8.shape[1]
        positions = range(start, start + len(rows)) if positions is None else positions
        table = self.model.text.rope_table(positions)
        places, self.scores = np.arange(len(rows)), None
        for i, cache in enumerate(self.cache, self.first):
            drop = None if reduction is None else reduction.at(i)
            if reduction is not None and drop is not None:
                kept = reduction.keep(drop, places, self.scores)
                rows, table, places = rows[kept], table[kept], places[kept]
            scored = reduction is not None and reduction.scored(i)
            rows = self._layer(self.model.text.layers[i], rows, table, cache, mask, scored)
        return rows

    def logits(self, rows: Array) -> Array:
        """int64[n, vocab] Q16 of residual rows."""
        return linear(*quantise_rows(normalise(rows, self.model.text.norm)), self.model.text.head)

    def generate(
        self, ids: Sequence[int], n_new: int, features: Array | None = None, eos_id: int | None = None
    ) -> list[int]:
        """Greedy continuation; ties go to the lowest id."""
        tokens: list[int] = []
        rows = self.embed(ids, features)
        while len(tokens) < n_new:
            tokens.append(int(self.logits(self.forward(rows)[-1:])[0].argmax()))
            if tokens[-1] == eos_id:
                break
            rows = self.embed(tokens[-1:])
        return tokens

    def _layer(
        self, w: QuantTextLayer, x: Array, table: Array, cache: LayerCache, mask: BlockMask | None, scored: bool
    ) -> Array:
        c = self.model.text.config
        q8, raw = quantise_rows(normalise(x, w.input_norm))

        def heads(projection, n):
            return linear(q8, raw, projection).reshape(len(x), n, c.head_dim)

        start = cache.k8.shape[1]
        query = quantise_rows(rotate(heads(w.q, c.heads), table))
        cache.append(quantise_rows(rotate(heads(w.k, c.kv_heads), table)), quantise_rows(heads(w.v, c.kv_heads)))
        limit = start + 1 + np.arange(len(x))[:, None]
        present = None if mask is None else mask.rows(start, len(x), start + len(x))
        group = c.heads // c.kv_heads
        if scored:
            self.scores = self._importance(query, cache, limit, present)[start:]
        outs = [
            attend(
                query[0][:, h],
                query[1][:, h],
                (cache.k8[h // group], cache.k_words[h // group]),
                (cache.v8[h // group], cache.v_raw[h // group]),
                limit,
                present,
            )
            for h in range(c.heads)
        ]
        x = add_linear(x, *quantise_rows(np.concatenate(outs, axis=1)), w.o)
        q8, raw = quantise_rows(normalise(x, w.post_norm))
        hidden = gated(linear(q8, raw, w.gate), linear(q8, raw, w.up))
        return add_linear(x, *quantise_rows(hidden), w.down)

    def _importance(self, query: tuple[Array, Array], cache: LayerCache, limit: Array, present: Array | None) -> Array:
        """What every key gets of the last row's attention, summed over the heads: int64[kv] Q24."""
        c, last = self.model.text.config, slice(-1, None)
        total = np.zeros(cache.k8.shape[1], np.int64)
        for h in range(c.heads):
            at = h // (c.heads // c.kv_heads)
            p = probabilities(
                query[0][last, h],
                query[1][last, h],
                (cache.k8[at], cache.k_words[at]),
                limit[last],
                None if present is None else present[last],
            )
            total = nm.sat32(total + importance(p)[0])
        return total


@dataclass
class GoldenVision:
    """The vision tower and projector in integers. `layers` limits how many tower layers run (None: all executed)."""

    model: QuantModel
    layers: int | None = None
    saliency: Array | None = None
    """What the class token of the last layer run gives every patch, int64[n_patches]."""
    survivors: list[int] = field(default_factory=list)
    """Patches that `forward` kept, ascending."""

    @property
    def vision(self) -> QuantVision:
        assert self.model.vision is not None, "a text model"
        return self.model.vision

    def stem(self, patches: Array) -> Array:
        """Wide tokens int64[n_positions, d] of patches float[n_patches, 3*p*p] (rounded to Q16 first)."""
        v = self.vision
        tokens = linear(*quantise_rows(fixed(patches)), v.patch)
        tokens = np.concatenate([v.class_embedding[None], tokens])
        x = nm.sat32(tokens + v.position)
        return x if v.pre_norm is None else normalise(x, v.pre_norm)

    def tower(self, x: Array) -> Array:
        """The executed layers."""
        count = len(self.vision.layers) if self.layers is None else self.layers
        for i in range(count):
            x = self._layer(self.vision.layers[i], x)
        return x

    def project(self, x: Array) -> Array:
        """Feature rows int64[n, d_text] of tower rows (class token already dropped)."""
        v = self.vision
        hidden = nm.gate(linear(*quantise_rows(x), v.projector1), nm.GELU_TABLE)
        return linear(*quantise_rows(hidden), v.projector2)

    def forward(self, patches: Array, keep: int | None = None, strategy: str = "rank") -> Array:
        """Visual tokens int64[n_features, d_text] Q16 of one image's patches; keep, strategy: see `survivors`."""
        x = self.tower(self.stem(patches))
        assert self.saliency is not None
        self.survivors = survivors(self.saliency, keep, strategy)
        x = np.concatenate([x[:1], x[1:][self.survivors]])
        return self.project(x[1:] if self.vision.config.drop_class else x)

    def gather(self, features: Array, order: Array) -> Array:
        """Visual tokens in the order of `ref_model.anyres.layout`, of all tiles' features int64[n, d_text]."""
        newline = self.vision.newline
        return (features if newline is None else np.concatenate([features, newline[None]]))[order]

    def _layer(self, w: QuantVisionLayer, x: Array) -> Array:
        c = self.vision.config
        q8, raw = quantise_rows(normalise(x, w.norm1))

        def heads(projection):
            return quantise_rows(linear(q8, raw, projection).reshape(len(x), c.heads, c.head_dim))

        (q, q_raw), (k, k_raw), (v, v_raw) = heads(w.q), heads(w.k), heads(w.v)
        limit = np.full((len(x), 1), len(x))
        self.saliency = class_attention(q, q_raw, k, k_raw)
        outs = [
            attend(q[:, h], q_raw[:, h], (k[:, h], nm.to_scale(k_raw[:, h, 0])), (v[:, h], v_raw[:, h, 0]), limit)
            for h in range(c.heads)
        ]
        x = add_linear(x, *quantise_rows(np.concatenate(outs, axis=1)), w.out)
        q8, raw = quantise_rows(normalise(x, w.norm2))
        hidden = nm.gate(linear(q8, raw, w.fc1), GATES[w.func])
        return add_linear(x, *quantise_rows(hidden), w.fc2)
