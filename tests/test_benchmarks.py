# SPDX-License-Identifier: Apache-2.0
"""The benchmarks' counts, identities and bounds; never their seconds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import loop, memory, rounds, run, scaling
from benchmarks.contours import in_frame, random_contours
from benchmarks.sequential import Translation
from benchmarks.settings import make_network
from contourdiff.sampling.candidate_pool import CandidatePool
from contourdiff.sampling.selection import SelectionRules, choose

RULES = SelectionRules(candidates=4, max_rounds=3, mean_threshold=127.0, distance_threshold=900.0)
SLICES = 100


@pytest.fixture(scope="module")
def translations() -> dict[str, Translation]:
    """Of all variants: five slices, the third without a contour."""
    contours = random_contours(5, 32)
    contours[2] = 0
    return {
        variant: loop.variant_of(variant, "tiny", contours, 4, RULES)() for variant in loop.VARIANTS
    }


@pytest.mark.parametrize("variant", ["expert", "ours"])
def test_the_papers_loop_and_ours_translate_the_same(
    translations: dict[str, Translation], variant: str
) -> None:
    paper, other = translations["paper"], translations[variant]
    assert other.picks == paper.picks
    assert other.calls == paper.calls  # a round fills a batch
    torch.testing.assert_close(other.volume, paper.volume, atol=1e-2, rtol=0)


def test_the_comparison_needs_later_rounds_and_restarts_after_a_gap(
    translations: dict[str, Translation],
) -> None:
    picks = translations["paper"].picks
    assert [pick[0] for pick in picks] == [0, 1, 3, 4]
    assert any(pick[1] > 0 for pick in picks)
    assert not translations["paper"].volume[2].any()


def test_the_comparison_tells_what_differs() -> None:
    same = {"picks": [(0, 0, 0)], "volume": np.zeros((1, 2, 2))}
    other = {"picks": [(0, 0, 1)], "volume": np.full((1, 2, 2), 0.06)}
    assert loop.differences({"paper": same, "expert": same}) == []
    assert len(loop.differences({"paper": same, "ours": other})) == 2
    assert loop.differences({"paper": same, "ours": {**same, "volume": np.full((1, 2, 2), np.nan)}})


def test_all_networks_of_one_name_have_the_same_weights() -> None:
    plain, fused = make_network("tiny").state_dict(), make_network("tiny", flash=True).state_dict()
    assert plain.keys() == fused.keys()
    assert all(torch.equal(plain[key], fused[key]) for key in plain)
    assert plain["out.2.conv.weight"].any()


@pytest.mark.parametrize("batch_size", [4, 8, 12, 64])
def test_where_all_pass_no_batch_has_room_left(batch_size: int) -> None:
    assert rounds.in_batches(SLICES, batch_size, 1.0).calls == -(
        -SLICES * rounds.RULES.candidates // batch_size
    )


@pytest.mark.parametrize("batch_size", rounds.BATCH_SIZES)
@pytest.mark.parametrize("pass_rate", [0.9, 0.5, 0.1])
def test_batches_choose_what_the_sequence_chooses_in_no_more_calls(
    pass_rate: float, batch_size: int
) -> None:
    batched, plain = (
        rounds.in_batches(SLICES, batch_size, pass_rate),
        rounds.in_sequence(SLICES, pass_rate),
    )
    assert batched.choices == plain.choices
    assert batched.asked == plain.asked
    assert batched.calls >= -(-plain.asked // batch_size)
    if batch_size == rounds.RULES.candidates:
        assert batched.calls == plain.calls
    else:
        assert batched.calls < 0.6 * plain.calls


def test_the_pass_rate_is_that_of_the_synthetic_candidates() -> None:
    """Whatever came before: the share of slices that pass in the first round is that of four tries."""
    for pass_rate in (0.5, 0.1):
        choices = [
            choice
            for case in "abcd"
            for choice in rounds.in_sequence(SLICES, pass_rate, case).choices
        ]
        share = sum(choice.accepted and choice.rounds == 1 for choice in choices) / len(choices)
        assert share == pytest.approx(1 - (1 - pass_rate) ** 4, abs=0.07)
        assert all(
            choice.accepted or choice.rounds == rounds.RULES.max_rounds for choice in choices
        )


def test_a_slice_is_worked_ahead_in_its_first_round_before_a_later_one() -> None:
    calls = []

    def denoise(contours: torch.Tensor, items: Sequence[rounds.Item]) -> torch.Tensor:
        calls.append(items)
        return torch.stack([rounds.candidate_image(item, pass_rate=0.1) for item in items])

    order = list(range(SLICES))
    pool = CandidatePool(denoise, torch.zeros(SLICES, 1, 2), "a", order, rounds.RULES, 64)
    for choice, _ in choose(pool, order, rounds.RULES):
        pool.forget(choice.slice_index)
    begun: set[int] = set()
    for items in calls:
        begun |= {index for _, index, round_, _ in items if round_ == 0}
        assert {index for _, index, _, _ in items} <= begun
    assert begun == set(order)


@pytest.mark.parametrize("slices", scaling.SLICES)
def test_calls_grow_with_the_slices_and_no_faster(slices: int) -> None:
    network = make_network("convolution")
    assert (
        scaling.network_calls(slices, network)[0] == scaling.expected_calls(slices) == slices // 2
    )


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/status").is_file(), reason="resident memory is read from Linux's /proc"
)
def test_memory_grows_by_few_volumes_and_not_by_candidates() -> None:
    """256 slices: candidates that were kept would alone be 4 volumes more than what the bound leaves room for."""
    slices, size_px = 256, 128
    _, growth = memory.growth_mib("convolution", slices, batch_size=4, size_px=size_px)
    volume = memory.volume_mib(slices, size_px)
    assert volume < growth <= memory.bound_mib(slices, size_px)
    assert (
        memory.bound_mib(slices, size_px) < (3 + memory.CANDIDATES) * volume
    )  # result and stack, and all candidates


def test_frame_keeps_every_contour_that_fits_and_lies_in_the_middle() -> None:
    volume = np.zeros((2, 10, 40), bool)
    volume[:, 2:8, 30:38] = True
    framed = in_frame(volume, 16)
    assert framed.shape == (2, 16, 16)
    assert framed[:, 5:11, 4:12].all()
    assert framed.sum() == volume.sum()


@pytest.mark.slow
def test_the_command_writes_both_files_and_takes_up_what_is_done(tmp_path: Path) -> None:
    arguments = [str(tmp_path), "--quick", "--only", "rounds,scaling"]
    assert run.main(arguments) == 0
    told = json.loads((tmp_path / "performance.json").read_text(encoding="utf-8"))
    assert list(told) == ["rounds", "scaling"]
    page = (tmp_path / "performance.md").read_text(encoding="utf-8")
    assert all(title in page for title in ("| processor |", "## Network calls", "## Cost against"))

    kept = tmp_path / "parts" / "scaling.json"
    marked = json.loads(kept.read_text(encoding="utf-8"))
    marked["result"]["rows"][0]["calls"] = "kept"
    kept.write_text(json.dumps(marked), encoding="utf-8")
    assert run.main([str(tmp_path), "--quick", "--only", "scaling"]) == 0
    assert "kept" in (tmp_path / "performance.md").read_text(encoding="utf-8")
    assert run.main([str(tmp_path), "--quick", "--only", "scaling", "--redo"]) == 0
    assert "kept" not in (tmp_path / "performance.md").read_text(encoding="utf-8")


def test_what_must_hold_and_does_not_gives_status_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scaling, "SLICES", (16,))
    monkeypatch.setattr(scaling, "expected_calls", lambda slices: 1)
    assert run.main([str(tmp_path), "--quick", "--only", "scaling"]) == 1
    assert "**Failed**: 16 slices cost 8 calls, expected 1" in (
        tmp_path / "performance.md"
    ).read_text(encoding="utf-8")
    assert not (tmp_path / "parts" / "scaling.json").exists()
