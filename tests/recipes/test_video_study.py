"""The video study: every piece once, in any order of interruptions, and the page that tells of it."""

import json
import shutil
from dataclasses import replace

import pytest

from jepaplan.evaluation.results import read_rows, rows_text
from jepaplan.recipes import video_run
from jepaplan.recipes.catalogue import REPRODUCTIONS
from jepaplan.recipes.reproduction_page import NOT_YET
from jepaplan.recipes.reproduction_work import Silent, WorkOptions, adopt, publish, work_on
from jepaplan.recipes.video_page import write_video_page
from jepaplan.recipes.video_pieces import VideoPiece, found_in, video_pieces
from jepaplan.recipes.video_study import AHEAD, COLUMNS, LEARNED_AHEAD, SOURCES, TASKS
from jepaplan.types import InputError
from tiny_runs import tensor_hashes
from tiny_video_studies import tiny_video_study

STUDY = tiny_video_study()
# What each source is read by; components of pixels are one token, and a supervised head is one.
COLUMNS_OF = {source: COLUMNS for source in SOURCES} | {
    "pixels": tuple(column for column in COLUMNS if column.endswith("linear")),
    "supervised": tuple(column for column in COLUMNS if column.endswith("attentive")),
}
ALL_FOUND = {(source, column) for source, columns in COLUMNS_OF.items() for column in columns} | {
    (source, "anticipation") for source in AHEAD
}


@pytest.fixture(scope="module", autouse=True)
def _few_looks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(video_run, "LOOKED_AT", 24)
        patch.setattr(video_run, "HELD_OUT_CLIPS", 8)
        yield


@pytest.fixture(scope="module")
def one_seed(tmp_path_factory):
    """The folder of a study of one seed, and what was carried out in it, in order."""
    folder = tmp_path_factory.mktemp("study")
    return folder, carried_out(STUDY, folder)


def carried_out(study, folder, seeds=1, **options):
    done = []
    real = VideoPiece.carry_out
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            VideoPiece, "carry_out", lambda piece, shop: done.append(piece.key) or real(piece, shop)
        )
        left = work_on(video_pieces(study, seeds), folder, WorkOptions(command="jepaplan", **options))
    assert left.pieces == 0
    return done


def outcomes_of(folder):
    """What was found, by file."""
    return {
        str(path.relative_to(folder)): json.loads(path.read_text())["tasks"]
        for path in folder.rglob("outcomes/*.json")
        if path.stem != "training"
    }


def test_all_pieces_are_done_once_training_first(one_seed):
    folder, done = one_seed
    assert done == [piece.key for piece in video_pieces(STUDY, 1)]
    assert len(done) == len(set(done)) == 1 + len(SOURCES) + len(AHEAD)
    assert carried_out(STUDY, folder) == []
    found = found_in(STUDY, folder, 1)
    assert set(found) == ALL_FOUND
    for (_, task), (outcome,) in found.items():
        hits = outcome["recall at 1"] if task == "anticipation" else outcome["correct"]
        assert set(hits) <= {0, 1}
        assert outcome["seed"] == 0
    (bouncing,) = found["bouncing", "anticipation"]
    assert sum(bouncing["recall at 1"]) >= 0.9 * len(bouncing["labels"])  # the true law of motion
    for task in TASKS:
        counts = {len(outcome["correct"]) for (_, name), (outcome,) in found.items() if name.startswith(task)}
        assert len(counts) == 1  # the same clips are tested for all sources and heads


def test_seeds_share_labelled_clips_and_guesses_that_no_training_decides():
    pieces = video_pieces(STUDY, 2)
    assert len(pieces) == 2 * (1 + len(SOURCES)) + len(AHEAD) + len(LEARNED_AHEAD)
    assert len({piece.key for piece in pieces}) == len(pieces)
    second = [piece for piece in pieces if piece.seed == 1]
    assert {piece.experiment.seed for piece in second} == {1}
    assert not any(piece.source == "constant velocity" for piece in second)


def test_only_some_sources():
    some = STUDY.only(("pixels", "constant"))
    assert (some.sources, some.ahead) == (("pixels",), ("constant velocity",))
    assert STUDY.only(()) is STUDY
    assert STUDY.only(("anticipation",)).ahead == AHEAD
    assert STUDY.only(("anticipation",)).sources == ()
    with pytest.raises(InputError, match="nothing of tiny-videos holds smell; its sources are pretrained"):
        STUDY.only(("smell",))


def test_what_was_asked_otherwise_is_done_again(one_seed, tmp_path):
    folder = shutil.copytree(one_seed[0], tmp_path / "copy")
    fewer = replace(STUDY, supervised=replace(STUDY.supervised, updates=1))
    open_again = [piece for piece in video_pieces(fewer, 1) if not piece.done(folder)]
    assert [piece.source for piece in open_again] == ["supervised"]
    described = replace(STUDY, experiment=replace(STUDY.experiment, description="in other words"))
    assert all(piece.done(folder) for piece in video_pieces(described, 1))
    other = replace(STUDY, experiment=replace(STUDY.experiment, equalise="first"))
    assert not any(piece.done(folder) for piece in video_pieces(other, 1) if piece.seed == 0)


def test_a_study_that_is_stopped_goes_on_and_ends_alike(one_seed, tmp_path):
    """And only what is asked for is done."""

    class Stopping(Silent):
        def report(self, what, done, total, note=""):
            if note.startswith("pretraining") and done == 2:
                raise KeyboardInterrupt

    few = STUDY.only(("pixels", "random"))
    with pytest.raises(KeyboardInterrupt):
        work_on(video_pieces(few, 1), tmp_path, WorkOptions(board=Stopping()))
    assert not outcomes_of(tmp_path)
    done = carried_out(few, tmp_path)
    assert [key[-1] for key in done] == [
        "training",
        "probe-random",
        "probe-pixels",
        "anticipation-random_encoder",
    ]
    run = "video_nano/seed0"
    assert tensor_hashes(tmp_path / run) == tensor_hashes(one_seed[0] / run)
    whole = outcomes_of(one_seed[0])
    assert outcomes_of(tmp_path) == {name: whole[name] for name in outcomes_of(tmp_path)}
    assert len(outcomes_of(tmp_path)) == 3


def test_the_page_says_what_was_not_measured(tmp_path):
    rows = write_video_page(STUDY, tmp_path / "empty", 2, tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text()
    assert rows == []
    assert read_rows(tmp_path / "page.json") == []
    assert "Nothing was measured yet." in text
    baselines = len(SOURCES) - 2
    measured = len(COLUMNS) * (len(SOURCES) + baselines) + 3 * len(AHEAD) + 2 * 8
    assert text.count(f" {NOT_YET} ") == measured


def test_the_page_of_one_seed(one_seed, tmp_path):
    folder, _ = one_seed
    rows = write_video_page(STUDY, folder, 1, tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text()
    assert NOT_YET not in text
    assert str(folder) not in text
    assert "Made by `jepaplan` at commit" in text
    assert "Training seeds: 0." in text
    assert "synthetic-motion-v1" in text
    assert "| seed | updates |" in text
    assert (tmp_path / "page.json").read_text() == rows_text(rows)
    assert rows_text(read_rows(tmp_path / "page.json")) == rows_text(rows)
    assert len(rows) == len(ALL_FOUND)
    for row in rows:  # what a machine reads, a reader finds
        shown = f"{row.success.rate:.2f} [{row.success.low:.2f}, {row.success.high:.2f}]"
        source = row.method.removesuffix(" (anticipation)")
        assert any(line.startswith(f"| {source} |") and shown in line for line in text.splitlines()), row
    by_name = {(row.method, row.task): row for row in rows}
    assert len(by_name) == len(rows)
    pretrained = by_name["pretrained", "motion, attentive"]
    (found,) = found_in(STUDY, folder, 1)["pretrained", "motion, attentive"]
    assert pretrained.success.successes == sum(found["correct"])
    assert pretrained.training_seeds == (0,)


def test_a_part_of_the_study_leaves_gaps_on_the_page(one_seed, tmp_path):
    folder = shutil.copytree(one_seed[0], tmp_path / "copy")
    for name in ("probe-pixels", "anticipation-encoder"):
        next(folder.rglob(f"outcomes/{name}.json")).unlink()
    rows = write_video_page(STUDY, folder, 2, tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("| pixels ")]
    assert len(lines) == 2
    assert all(line.count(NOT_YET) == len(COLUMNS) for line in lines)
    assert len(rows) == len(ALL_FOUND) - len(COLUMNS_OF["pixels"]) - 1


@pytest.mark.slow
def test_the_page_of_two_seeds(one_seed, tmp_path):
    folder = shutil.copytree(one_seed[0], tmp_path / "copy")
    done = carried_out(STUDY, folder, seeds=2)
    assert {key[1] for key in done} == {1}
    rows = write_video_page(STUDY, folder, 2, tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text()
    assert NOT_YET not in text
    assert "Training seeds: 0, 1." in text
    assert {row.training_seeds for row in rows} == {(0, 1), (0,)}
    guesses = {row.method for row in rows if row.training_seeds == (0,)}
    assert guesses == {f"{name} (anticipation)" for name in AHEAD if name not in LEARNED_AHEAD}
    assert rows_text(read_rows(tmp_path / "page.json")) == rows_text(rows)
    first, second = found_in(STUDY, folder, 2)["supervised", "motion, attentive"]
    assert first["seed"] == 0
    assert len(first["correct"]) == len(second["correct"])
    assert tensor_hashes(folder / "video_nano/seed0") != tensor_hashes(folder / "video_nano/seed1")


@pytest.mark.parametrize("scale", ["cpu", "full"])
def test_the_study_as_it_is_published(scale):
    study = REPRODUCTIONS["vjepa2"](scale)
    assert study.name == "vjepa2"
    assert study.probe.sweep.settings
    assert len({piece.key for piece in video_pieces(study, 3)}) == len(video_pieces(study, 3))
    assert study.experiment.encoder.width % study.probe.heads_per_block == 0


def test_no_frame_of_a_labelled_clip_is_a_repeated_one():
    study = REPRODUCTIONS["vjepa2"]("cpu")
    frames = study.experiment.shape(study.experiment.phases[-1]).frames
    for videos in (study.sprites, study.bouncing, study.experiment.generated.sprites):
        step = videos.fps // study.experiment.clips.fps
        assert (frames - 1) * step < videos.frames


def test_seeds_that_two_workers_share_are_not_compared_crosswise(one_seed, tmp_path):
    """Pretrained of one seed and pixels of another: nothing is paired yet."""
    folder = shutil.copytree(one_seed[0], tmp_path / "copy")
    seeds = folder / "video_nano"
    (seeds / "seed1" / "outcomes").mkdir(parents=True)
    for path in (seeds / "seed0" / "outcomes").iterdir():
        other = {**json.loads(path.read_text()), "seed": 1}
        (seeds / "seed1" / "outcomes" / path.name).write_text(json.dumps(other))
    (seeds / "seed0" / "outcomes" / "probe-pixels.json").unlink()
    (seeds / "seed1" / "outcomes" / "probe-pretrained.json").unlink()
    write_video_page(STUDY, folder, 2, tmp_path / "page.md")
    gains = (tmp_path / "page.md").read_text().split("## What pretraining adds")[1]
    line = next(line for line in gains.splitlines() if line.startswith("| pixels "))
    assert line.count(NOT_YET) == 2


def test_other_labelled_clips_are_other_files(one_seed, tmp_path):
    folder = shutil.copytree(one_seed[0], tmp_path / "copy")
    carried_out(replace(STUDY, clips=40, bouncing_clips=40, sources=("pixels",), ahead=("bouncing",)), folder)
    fewer = found_in(replace(STUDY, clips=40, bouncing_clips=40), folder, 1)
    assert 8 <= len(fewer["pixels", "motion, linear"][0]["correct"]) <= 12  # a quarter of 40, not of 60
    assert 8 <= len(fewer["bouncing", "anticipation"][0]["labels"]) <= 12


def test_what_was_published_is_not_done_again_anywhere(one_seed, tmp_path):
    folder, _ = one_seed
    pieces = video_pieces(STUDY, 1)
    publish(pieces, folder, tmp_path / "page.outcomes.jsonl")
    publish(
        [piece for piece in video_pieces(STUDY, 2) if piece.seed == 1],
        folder,
        tmp_path / "page.outcomes.jsonl",
    )
    elsewhere = tmp_path / "elsewhere"  # the file still says what was found of seed 0
    assert adopt(pieces, elsewhere, tmp_path / "page.outcomes.jsonl") == len(pieces)
    assert carried_out(STUDY, elsewhere) == []
    pages = [tmp_path / "here.md", tmp_path / "there.md"]
    for place, page in zip((folder, elsewhere), pages, strict=True):
        write_video_page(STUDY, place, 1, page)
    assert pages[0].read_text() == pages[1].read_text()
