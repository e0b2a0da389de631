"""The command `fedpgp bench`."""

import json
from typing import Annotated

import typer

from fedpgp.cli.printing import err, out


def bench(
    shape: Annotated[
        str, typer.Option("--shape", help="vit-b-16, vit-b-32 or vit-l-14 (random weights), or pictoclip.")
    ] = "vit-b-16",
    parts: Annotated[
        str,
        typer.Option(
            "--parts",
            help="Of step, round, scaling, classes, bf16, profile, recipe, methods, depth, conditional; with commas.",
        ),
    ] = "step,round,scaling,classes",
    methods: Annotated[
        str | None,
        typer.Option("--methods", help="What each of these methods costs, or of all, beside promptfl; no other part."),
    ] = None,
    repeat: Annotated[int, typer.Option("--repeat", help="How often each time is taken; the median counts.")] = 2,
    threads: Annotated[int, typer.Option("--threads", help="Of both sides.")] = 1,
    seed: Annotated[int, typer.Option("--seed", help="Of weights, images and clients.")] = 0,
    precision: Annotated[str, typer.Option("--precision", help="float32 or float64.")] = "float32",
    classes: Annotated[int, typer.Option("--classes", help="Class names in the part of that name.")] = 1000,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on standard output, and no table.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Measure the library against what public code does, on the same work; nothing is downloaded.

    Every comparison also checks that both sides computed the same numbers. The ratios carry over to other machines,
    the seconds do not.
    """
    from fedpgp.bench.report import tables
    from fedpgp.bench.suite import Options, run_suite

    chosen = ("methods",) if methods is not None else tuple(part.strip() for part in parts.split(","))
    named = () if methods in (None, "all") else tuple(name.strip() for name in methods.split(","))
    options = Options(shape, chosen, repeat, threads, seed, precision, classes, named)
    result = run_suite(options, lambda text: None if quiet else err.print(f"bench: {text}", markup=False))
    if as_json:
        print(json.dumps(result))
    else:
        out.print(tables(result))
