"""`fedpgp bench`: compare the speed of the library with public code on the same work."""

from typing import Annotated

import typer

from fedpgp.cli import completion
from fedpgp.cli.options import Json, Quiet, listed
from fedpgp.cli.printing import next_command, out, print_json, say


def bench(
    shape: Annotated[
        str,
        typer.Option(
            "--shape", help="Shape of the encoder: vit-b-16, vit-b-32 or vit-l-14 with random weights, or pictoclip."
        ),
    ] = "vit-b-16",
    parts: Annotated[
        str,
        typer.Option(
            "--parts",
            help="Parts to measure, separated by commas: step, round, scaling, classes, general, bf16, profile, recipe,"
            " methods, depth, conditional.",
        ),
    ] = "step,round,scaling,classes",
    methods: Annotated[
        str | None,
        typer.Option(
            "--methods",
            help="Compare the cost of these methods with promptfl, and measure nothing else. Separate names with"
            " commas, or use the word all.",
            autocompletion=completion.of_list("methods"),
        ),
    ] = None,
    repeat: Annotated[int, typer.Option("--repeat", help="Number of timed repetitions; the median is reported.")] = 2,
    threads: Annotated[
        int, typer.Option("--threads", help="Number of threads, for the library and the public code.")
    ] = 1,
    seed: Annotated[int, typer.Option("--seed", help="Random seed of weights, images and clients.")] = 0,
    precision: Annotated[str, typer.Option("--precision", help="Precision: float32 or float64.")] = "float32",
    classes: Annotated[int, typer.Option("--classes", help="Number of class names in the part `classes`.")] = 1000,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure the speed of fedpgp and of naive code, which works like published code, on the same task.

    Every comparison also checks that fedpgp and the naive code compute the same numbers. On other machines the
    seconds are different, but the ratios are similar.

    Examples:
        fedpgp bench --shape pictoclip
        fedpgp bench --shape vit-b-16 --parts step,profile --json
    """
    from fedpgp.bench.options import Options
    from fedpgp.bench.report import tables
    from fedpgp.bench.suite import run_suite

    chosen = ["methods"] if methods is not None else listed(parts) or []
    named = [] if methods == "all" else listed(methods) or []
    options = Options(shape, tuple(chosen), repeat, threads, seed, precision, classes, tuple(named))
    result = run_suite(options, lambda text: None if quiet else say(f"bench: {text}"))
    if as_json:
        print_json(result)
    else:
        out.print(tables(result))
    next_command("bench", "--methods", "all")
