"""Compile the cases named on the command line, each alone: a failed trace can spoil its process.

python compile_one.py BACKEND NAME...
"""

import sys
import warnings

import torch

from cases import CASES


def main() -> None:
    """Print a line for each case: its name and `right`, or what went wrong."""
    torch.set_num_threads(1)
    backend, *names = sys.argv[1:]
    for case in CASES:
        if case.name in names:
            warnings.simplefilter("error")
            print(case.name, compile_case(case, backend), flush=True)


def compile_case(case, backend: str) -> str:
    """What came of forward, grad and vmap of grad under fullgraph."""
    from tinyfn.testing import _calls, _transforms, _verdicts

    args = case.args()
    call = _calls.call(case.f, args)
    batched = call._replace(tensors=_calls.batch(call.tensors, 2))
    indices = _calls.differentiable("compile_one", call, None)
    torch.compiler.reset()
    checks = _transforms._compile_checks(call, batched, indices, backend)
    verdicts = [_verdicts.judge(check) for check in checks]
    wrong = [verdict for verdict in verdicts if verdict.status != "right"]
    return "; ".join(map(str, wrong)) if wrong else f"right {len(verdicts)}"


if __name__ == "__main__":
    main()
