"""What captions say in training, which pictures they fit, and how they are packed."""

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from muomni.data.items import PictureItem
from muomni.tokens import BOS
from muomni.train.stages import stage as make_stage
from muomni.train.stages.vision import (
    GROUP_ALONE,
    MAX_CAPTION,
    PATCHES_SEEN,
    TAG_DROP,
    VisionStage,
    collate,
    described,
)

CAT = PictureItem(id="a/1", label="cat", tags=("pet", "fur"), group="animal", split="train")
PAINTED = dataclasses.replace(CAT, id="b/1")
DOG = PictureItem(id="a/2", label="dog", tags=("pet",), group="animal", split="train")
CUP = PictureItem(id="a/3", label="cup", tags=(), group="object", split="train")


@pytest.fixture
def stage(trained: Path, small_run: Any) -> VisionStage:
    made = make_stage(small_run("vision", batch_items=8))
    assert isinstance(made, VisionStage)
    made.build(made.run, trained)
    return made


def test_a_caption_fits_every_picture_of_which_all_it_says_is_said() -> None:
    items = [CAT, PAINTED, DOG, CUP]
    # The cat by all its words, the painted one as a pet, the dog as an animal, the cup by its name.
    found = described(items, [[0, 1, 2], [1], [2], [0]])
    expected = torch.tensor([[0, 1, 1, 0], [1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)
    assert torch.equal(found, expected)
    assert described([], []).shape == (0, 0)


def test_held_out_captions_say_label_and_tags_and_training_ones_a_part(stage: VisionStage) -> None:
    assert stage.chosen(CAT, None) == [0, 1, 2]
    words = stage.tokenizer.encode_batch(["cat", "pet", "fur"])
    assert stage.caption(CAT, [0, 1, 2]) == [BOS, *words[0], *words[1], *words[2]]
    assert stage.caption(CAT, [3]) == [BOS, *stage.tokenizer.encode("animal")]
    draw, n = torch.Generator().manual_seed(0), 4_000
    drawn = [stage.chosen(CAT, draw) for _ in range(n)]
    share = Counter(i for own in drawn for i in own)
    assert all(own for own in drawn) and all(len(own) == 1 for own in drawn if 3 in own)
    assert share[3] / n == pytest.approx(GROUP_ALONE, abs=0.02)
    assert share[1] / n == pytest.approx((1 - GROUP_ALONE) * (1 - TAG_DROP), abs=0.03)
    assert {tuple(own) for own in drawn} >= {(0, 1, 2), (0, 2, 1), (1,), (2, 1)}
    alone = dataclasses.replace(CUP, group="")
    assert all(stage.chosen(alone, draw) == [0] for _ in range(100)), "nothing else is said of it"


def test_a_training_batch_looks_at_a_part_of_each_picture_and_a_held_out_one_at_all(
    stage: VisionStage,
) -> None:
    batch, n_patches = stage.batch(0)[0], stage.config.vision.n_patches
    assert batch.seen is not None and batch.seen.shape == (8, round(PATCHES_SEEN * n_patches))
    assert all(len({*own}) == len(own) and max(own) < n_patches for own in batch.seen.tolist())
    assert len({tuple(sorted(own)) for own in batch.seen.tolist()}) > 1
    assert next(stage.held_out("validation")).seen is None


def test_the_longest_captions_are_cut_until_all_fit() -> None:
    captions = [[BOS, *range(10, 10 + n)] for n in (1, 7, 30, 40)]
    batch = collate(torch.zeros(4, 3, 8, 8), captions, n_items=4, room=10)
    lengths = batch.cu_seqlens.diff()[:4].tolist()
    # 2 and 8 as they are, and 30 left for the two long ones.
    assert lengths == [2, 8, 15, 15] and len(batch.input_ids) == 40
    assert batch.input_ids[10:25].tolist() == captions[2][:15]
    assert max(len(c) for c in captions) > MAX_CAPTION
    whole = collate(torch.zeros(4, 3, 8, 8), captions, n_items=4)
    assert whole.cu_seqlens.diff()[:4].tolist() == [2, 8, 31, MAX_CAPTION]
