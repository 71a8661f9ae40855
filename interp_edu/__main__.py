"""The command line: `python -m interp_edu check 2`, `progress`, `train NAME`, `measure NAME MODEL`, `notebooks`."""

import argparse
import sys
from pathlib import Path

from interp_edu import CHAPTERS, stem
from interp_edu.notebooks import REPO


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0, 1 for wrong answers, 2 for a request that makes no sense."""
    parser = argparse.ArgumentParser(prog="python -m interp_edu", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="check your answers to a chapter's exercises")
    check.add_argument("what", help="a chapter's number, or the path of a notebook")
    check.add_argument("--seconds", type=float, default=60.0, help="how long a cell may run (default 60)")
    commands.add_parser("progress", help="how far you are in each chapter")
    train = commands.add_parser("train", help="remake a shipped weight file, or train an autoencoder of your own")
    train.add_argument("name", help="its name in the manifest (`list` shows them), or `sae`: see `train sae --help`")
    train.add_argument("options", nargs=argparse.REMAINDER, help="the options of `train sae`")
    measure = commands.add_parser(
        "measure", help="measure again what the book states about a model that it does not ship"
    )
    measure.add_argument("name", help="the name of the result in the manifest")
    measure.add_argument("model", help="gpt2, a model's folder, or a .safetensors file with attention weights")
    notebooks = commands.add_parser("notebooks", help="remake the notebooks from their sources")
    notebooks.add_argument("names", nargs="*", help="stems such as ch02 (default: all)")
    options = parser.parse_args(arguments)
    try:
        run = {"check": _check, "progress": _progress, "train": _train, "measure": _train, "notebooks": _notebooks}
        return run[options.command](options)
    except (FileExistsError, FileNotFoundError, KeyError, ValueError) as error:
        print(error.args[0] if isinstance(error, KeyError) else error, file=sys.stderr)
        return 2


def _exercises(chapter: int) -> Path:
    """A chapter's notebook of exercises, sought from the current folder upwards."""
    name = Path("exercises", f"{stem(chapter)}.ipynb")
    for folder in (Path.cwd(), *Path.cwd().parents):
        if (folder / name).exists():
            return folder / name
    if not (REPO / name).exists():
        raise FileNotFoundError(f"chapter {chapter} has no exercises yet: it is in preparation")
    raise FileNotFoundError(f"{name} is not here: run this from the book's folder, or give the notebook's path")


def _check(options: argparse.Namespace) -> int:
    from interp_edu.checks.report import check_notebook, table

    if options.what.isdecimal():
        if int(options.what) not in CHAPTERS:
            raise ValueError(f"there is no chapter {options.what}: chapters go from 1 to {max(CHAPTERS)}")
        path = _exercises(int(options.what))
    else:
        path = Path(options.what)
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not a file")
        if path.suffix != ".ipynb":
            raise ValueError(f"{path} is not a notebook: give a chapter's number or a file that ends in .ipynb")
    print(f"{path.name}: running your notebook; this takes some seconds\n", flush=True)
    lines = check_notebook(path, seconds=options.seconds)
    print(table(lines))
    return int(any(line.outcome == "failed" for line in lines))


def _progress(options: argparse.Namespace) -> int:
    from interp_edu.checks.report import check_notebook, counts

    published = [chapter for chapter in CHAPTERS if (REPO / "exercises" / f"{stem(chapter)}.ipynb").exists()]
    for chapter, topic in CHAPTERS.items():
        title = f"{chapter:2d}  {topic.replace('_', ' '):<20}"
        if chapter not in published:
            print(f"{title}  in preparation")
            continue
        lines = check_notebook(_exercises(chapter))
        passed = sum(line.outcome == "passed" for line in lines)
        print(f"{title}  {'█' * passed}{'░' * (len(lines) - passed)}  {counts(lines)}", flush=True)
    return 0


def _train(options: argparse.Namespace) -> int:
    from interp_edu.recipes import RECIPES, remake

    more = getattr(options, "options", [])
    if options.name == "sae":
        from interp_edu import sae_recipe

        parser = argparse.ArgumentParser(prog="python -m interp_edu train sae", description=sae_recipe.__doc__)
        sae_recipe.add_options(parser)
        sae_recipe.train_own(parser.parse_args(more))
        return 0
    if more:
        raise ValueError(f"only `train sae` has options, not {options.name}: {' '.join(more)}")
    mine = [name for name, recipe in RECIPES.items() if recipe.command == options.command]
    if options.name == "list":
        print("\n".join(mine))
        return 0
    if options.name not in mine:
        raise KeyError(f"{options.command} knows no {options.name!r}; there are: {', '.join(mine)}")
    remake(options.name, source=getattr(options, "model", ""))
    return 0


def _notebooks(options: argparse.Namespace) -> int:
    from interp_edu.notebooks import generate

    generate(options.names)
    return 0


if __name__ == "__main__":
    sys.exit(main())
