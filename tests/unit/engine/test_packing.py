"""Rows as a trie: every distinct beginning once, every token where its rows find it, attention as in whole rows."""

from collections.abc import Sequence
from random import Random

import pytest
import torch

from lit_unlearn.engine import packing as packing_module
from lit_unlearn.engine.packing import MAX_WASTE, Trie, pack, packed, padded, prefix_trie

CPU = torch.device("cpu")
BY_HAND: dict[str, list[tuple[int, ...]]] = {
    "equal rows": [(1, 2, 3), (1, 2, 3), (1, 2, 3)],
    "a row goes on from another": [(1, 2, 3, 4), (1, 2), (1,), (1, 2, 5)],
    "a row goes on from one that shares": [(1, 2, 3), (1, 4), (1, 4, 5), (1, 4, 5)],
    "empty rows": [(), (1, 2), (), (2,)],
    "one token each": [(3,), (1,), (3,), (2,)],
    "all empty": [(), ()],
    "nothing shared": [(1, 2), (2, 1), (3, 1, 2)],
    "no rows": [],
}


def random_rows(seed: int) -> list[tuple[int, ...]]:
    """Few different tokens, so that beginnings meet; some rows come twice, are cut short, go on, or are empty."""
    draw = Random(seed)
    ids = lambda longest: tuple(draw.randrange(1, 4) for _ in range(draw.randint(0, longest)))  # noqa: E731
    header = ids(6)
    rows = [draw.choice([(), header]) + ids(draw.choice([1, 4, 12])) for _ in range(draw.randint(1, 12))]
    for row in list(rows):
        changed = draw.choice([None, None, row, row[: len(row) // 2], row + ids(3), ()])
        rows += [] if changed is None else [changed]
    draw.shuffle(rows)
    return rows


ALL = [*BY_HAND.values(), *(random_rows(seed) for seed in range(60))]
every_rows = pytest.mark.parametrize("rows", ALL, ids=[*BY_HAND, *map(str, range(60))])


def beginnings(rows: Sequence[tuple[int, ...]]) -> set[tuple[int, ...]]:
    return {row[:end] for row in rows for end in range(1, len(row) + 1)}


def block_of(rows: Sequence[tuple[int, ...]], side: str = "right") -> tuple[torch.Tensor, torch.Tensor]:
    """(input_ids, attention_mask); what pads is token 9."""
    length = max((len(row) for row in rows), default=0) + 2
    fill = lambda row, value: [value] * (length - len(row))  # noqa: E731
    join = lambda row, pads: [*pads, *row] if side == "left" else [*row, *pads]  # noqa: E731
    ids = torch.tensor([join(row, fill(row, 9)) for row in rows], dtype=torch.int64).view(len(rows), length)
    mask = torch.tensor([join([1] * len(row), fill(row, 0)) for row in rows], dtype=torch.int64)
    return ids, mask.view(len(rows), length)


def test_a_trie_by_hand():
    trie = prefix_trie([(5, 6, 8), (5, 6), (4,), (5, 7), (5, 6)])
    assert trie.tokens == [4, 5, 6, 8, 7]
    assert trie.depths == [0, 0, 1, 2, 1]
    assert [list(nodes) for nodes in trie.nodes] == [[1, 2, 3], [1, 2], [0], [1, 4], [1, 2]]
    assert sorted(trie.leaves) == [0, 2, 3]
    assert [trie.shared[leaf] for leaf in (0, 2, 3)] == [0, 0, 1]


@pytest.fixture(autouse=True)
def _share_every_token(monkeypatch, request):
    """Rows of tests are short: masks from the first shared token on."""
    if "default" not in request.node.name:
        monkeypatch.setattr(packing_module, "MIN_SHARED", 1)


@pytest.mark.parametrize(("shared", "blocks"), [(15, [False]), (16, [True, False])])
def test_by_default_a_few_shared_tokens_are_no_reason_for_a_mask(shared, blocks):
    rows = [tuple(range(shared)) + (50 + row,) * 20 for row in range(4)]
    packing = pack(prefix_trie(rows), 1, CPU)
    assert [block.mask is not None for block in packing.blocks] == blocks
    assert len(packing.place) == shared + 4 * 20  # they are computed once all the same


def test_a_packing_by_hand():
    """Rows 4; 5 6 8; 5 7, whose 5 is shared: the first two stand alone, for one padded to the other wastes too much."""
    packing = pack(prefix_trie([(5, 6, 8), (5, 6), (4,), (5, 7), (5, 6)]), 1, CPU)
    assert [(block.queries, block.keys) for block in packing.blocks] == [
        ((1, 1), (1, 2)),
        ((1, 3), (1, 3)),
        ((1, 1),) * 2,
    ]
    assert packing.queries.tolist() == [4, 1, 2, 3, 0]
    assert packing.keys.tolist() == [1, 4, 1, 2, 3, 0]
    assert packing.place.tolist() == [4, 1, 2, 3, 0]
    assert packing.blocks[0].mask is not None
    assert packing.blocks[0].mask.tolist() == [[[[True, True]]]]
    assert [block.mask for block in packing.blocks[1:]] == [None, None]


@every_rows
def test_a_trie_gives_every_row_back(rows):
    trie = prefix_trie(rows)
    for row, nodes in zip(rows, trie.nodes, strict=True):
        assert tuple(trie.tokens[node] for node in nodes) == row
        assert [trie.depths[node] for node in nodes] == list(range(len(row)))
    assert len(trie.tokens) == len(trie.depths) == len(beginnings(rows))
    assert {node for nodes in trie.nodes for node in nodes} == set(range(len(trie.tokens)))
    assert {node for leaf in trie.leaves for node in trie.nodes[leaf]} == set(range(len(trie.tokens)))


def rectangles(trie: Trie, round_to: int = 1):
    """(block, slots of the queries [R, L_q], slots of the keys [R, L_k]) of a packing, and the packing."""
    packing, found = pack(trie, round_to, CPU), []
    asked = looked = 0
    for block in packing.blocks:
        ends = asked + block.queries[0] * block.queries[1], looked + block.keys[0] * block.keys[1]
        slots = torch.arange(asked, ends[0]).view(block.queries), torch.arange(looked, ends[1]).view(block.keys)
        found.append((block, *slots))
        asked, looked = ends
    assert (asked, looked) == (len(packing.queries), len(packing.keys))
    return packing, found


@every_rows
@pytest.mark.parametrize("round_to", [1, 4])
def test_every_packed_token_asks_once_and_sees_its_own_beginning(rows, round_to):
    trie = prefix_trie(rows)
    packing, blocks = rectangles(trie, round_to)
    seen: dict[int, list[int]] = {}
    place = packing.place.tolist()
    tokens = {slot: node for node, slot in enumerate(place[: len(trie.tokens)])}
    assert len(tokens) == len(trie.tokens)  # no two tokens ask in one slot
    asking = 0
    for block, queries, keys in blocks:
        for row, (slots, looked) in enumerate(zip(queries.tolist(), packing.keys[keys].tolist(), strict=True)):
            for number, slot in enumerate(slots):
                if slot in tokens:
                    node, asking = tokens[slot], asking + 1
                    assert packing.queries[slot] == node
                    causal = number + 1 if block.mask is None else int(block.mask[row, 0, number].sum())
                    assert block.mask is None or block.mask[row, 0, number, :causal].all()
                    assert node not in seen
                    seen[node] = looked[:causal]
    assert asking == len(trie.tokens)
    for nodes in trie.nodes:
        for depth, node in enumerate(nodes):
            assert seen[node] == list(nodes[: depth + 1])


@every_rows
def test_lengths_are_rounded_up(rows):
    packing = pack(prefix_trie(rows), 4, CPU)
    assert len(packing.place) == -(-len(beginnings(rows)) // 4) * 4
    for block in packing.blocks:
        assert block.queries[1] % 4 == block.keys[1] % 4 == 0


def test_blocks_of_several_rows_waste_little():
    several = 0
    for rows in ALL:
        trie = prefix_trie(rows)
        packing, blocks = rectangles(trie)
        length = {nodes[-1]: len(nodes) for nodes in trie.nodes if nodes}  # by a row's last token
        asking = set(packing.place.tolist())
        for _, queries, keys in blocks:
            own = [[slot for slot in slots if slot in asking] for slots in queries.tolist()]
            real = sum(len(slots) + length[int(packing.queries[slots[-1]])] for slots in own if slots)
            several += len(own) > 1
            assert len(own) == 1 or queries.numel() + keys.numel() <= MAX_WASTE * real
    assert several > 20


def test_rows_of_like_length_are_one_call():
    """16 rows of 20 and 21 tokens behind a header of 4: the first of them all brings the header."""
    rows = [(7, 7, 7, 7, 10 + number, *range(100, 116 - number % 2)) for number in range(16)]
    packing = pack(prefix_trie(rows), 1, CPU)
    assert sorted(block.queries[0] for block in packing.blocks) == [1, 15]
    assert packing.queries.numel() <= MAX_WASTE * (4 + 16 * 17)


@every_rows
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("round_to", [1, 8])
def test_packed_rows_find_their_tokens(rows, side, round_to):
    ids, mask = block_of(rows, side)
    found = packed(ids, mask, round_to)
    tokens, depths = found.inputs["input_ids"], found.inputs["position_ids"]
    assert isinstance(tokens, torch.Tensor)
    assert isinstance(depths, torch.Tensor)
    distinct = max(1, len(beginnings(rows)))  # a body needs one token
    assert tokens.shape == depths.shape == (1, -(-distinct // round_to) * round_to)
    assert found.index.shape == ids.shape
    assert torch.equal(tokens[0, found.index][mask.bool()], ids[mask.bool()])
    assert torch.equal(depths[0, found.index][mask.bool()], (mask.cumsum(1) - 1)[mask.bool()])
    assert (found.index[mask == 0] == 0).all()


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_find_their_tokens_and_begin_at_the_left(side):
    """Models with learned positions count them from the left edge."""
    ids, mask = block_of([(1, 2, 3), (), (4,)], side)
    found = padded(ids, mask)
    tokens, attended = found.inputs["input_ids"], found.inputs["attention_mask"]
    assert isinstance(tokens, torch.Tensor)
    assert isinstance(attended, torch.Tensor)
    assert attended.tolist() == [[1, 1, 1, 0, 0], [0] * 5, [1, 0, 0, 0, 0]]
    assert tokens[attended.bool()].tolist() == [1, 2, 3, 4]
    assert torch.equal(tokens.flatten()[found.index], ids)


def test_attention_is_that_of_whole_rows():
    """Grouped heads; each token's output equals plain causal attention within any row that holds it."""
    rows = random_rows(3)
    trie = prefix_trie(rows)
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, heads, len(trie.tokens), 8, generator=generator) for heads in (4, 2, 2))
    found = pack(trie, 1, CPU).attend(torch.nn.Identity(), query, key, value, 0.0, 0.7)
    assert found.shape == (1, len(trie.tokens), 4, 8)
    for nodes in trie.nodes:
        at = torch.tensor(nodes, dtype=torch.int64)
        q, k, v = query[0, :, at], key[0, :, at].repeat_interleave(2, 0), value[0, :, at].repeat_interleave(2, 0)
        weights = (0.7 * q @ k.mT).masked_fill(torch.ones(len(at), len(at)).triu(1).bool(), -torch.inf).softmax(-1)
        torch.testing.assert_close(found[0, at].transpose(0, 1), weights @ v, rtol=1e-5, atol=1e-5)
