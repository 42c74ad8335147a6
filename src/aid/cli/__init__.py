"""The command line: one short command per verb, and a few that only look.

Nothing heavy is imported before a command runs; `aid --help` costs what click costs.
"""

from __future__ import annotations

import re
import sys

import click

from aid import __version__
from aid.errors import AidError
from aid.verbs import VERBS

GROUPS = {"train": "Train a checkpoint (finetune), a LoRA or an embedding."}
OTHERS = {
    "make": "Run a whole recipe; only what changed is built again.",
    "styles": "AID's styles: list, search, since when.",
    "lineage": "Where a file comes from, back to the pictures.",
    "studio": "Draw from a browser, and from what speaks A1111's language.",
    "again": "A picture drawn again, from the text that it carries.",
    "prompt": "What a prompt means, word for word, before anything is drawn.",
    "inspect": "What a file is: architecture, blocks, hashes, metadata.",
    "convert": "Weights in another precision or layout; .ckpt to .safetensors.",
}
NO_MEMORY = re.compile("out of memory|DefaultCPUAllocator: (can't|not enough)")  # in torch's words
OUT_OF_MEMORY = (
    "the memory is full. Lower batch_size (prepare's is latent_batch), choose a training's memory_profile, "
    "or a smaller precision (bf16 or fp16)."
)


class Lazy(click.Group):
    """A group whose commands are built when they are called or asked for help."""

    def __init__(self, name: str, prefix: str, summary: str, **words: bool) -> None:
        super().__init__(name, help=summary, **words)  # type: ignore[arg-type]
        self.prefix = prefix

    def list_commands(self, ctx: click.Context) -> list[str]:
        names = [name.removeprefix(self.prefix) for name in VERBS if name.startswith(self.prefix)]
        if self.prefix:
            return names
        heads = dict.fromkeys(name.partition(" ")[0] if name.split()[0] in GROUPS else name for name in names)
        return [*heads, *OTHERS]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """A verb of two words whose first is a verb too: `merge extract` beside `merge`."""
        full = " ".join(args[:2])
        if self.prefix or args[0] in GROUPS or full not in VERBS:
            return super().resolve_command(ctx, args)
        return full, self.get_command(ctx, full), args[2:]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        full = self.prefix + cmd_name
        if full in GROUPS:
            return Lazy(cmd_name, f"{cmd_name} ", GROUPS[full])
        if full == "prompt":
            from aid.cli import prompting

            return prompting.COMMAND
        if full == "inspect":
            from aid.cli import inspecting

            return inspecting.COMMAND
        if full == "convert":
            from aid.cli import converting

            return converting.COMMAND
        if full == "studio":
            from aid.cli import serving

            return serving.COMMAND
        if full == "again":
            from aid.cli import again

            return again.COMMAND
        if full in OTHERS:
            from aid.cli import looking

            return looking.COMMANDS[full]
        if full == "generate":
            from aid.cli import draw

            return draw.command()
        if full == "grid":
            from aid.cli import gridding

            return gridding.command()
        if full == "merge":
            from aid.cli import merging

            return merging.command()
        if full in VERBS:
            from aid.cli import verb_command

            return verb_command.command(full)
        return None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        summaries = GROUPS | OTHERS | {name: found.summary for name, found in VERBS.items()}
        with formatter.section("Commands"):
            formatter.write_dl([(name, summaries[self.prefix + name]) for name in self.list_commands(ctx)])


root = click.version_option(__version__, message="aid %(version)s")(
    Lazy("aid", "", "AID: illustrators' pictures in, a released multi-style model out.")
)


def main(arguments: list[str] | None = None) -> None:
    """Run a command. An error of ours is one clear line and exit code 1, as is a full memory; a wrong word
    2; Ctrl-C 130. torch's out-of-memory error is told by its name, since torch isn't imported here."""
    try:
        root.main(args=arguments, prog_name="aid", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.exceptions.Abort, KeyboardInterrupt):
        click.echo("Interrupted. The same command continues where it can.", err=True)
        sys.exit(130)
    except AidError as error:
        click.echo(f"aid: {error}", err=True)
        sys.exit(1)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not NO_MEMORY.search(str(error)):
            raise
        click.echo(f"aid: {OUT_OF_MEMORY}", err=True)
        sys.exit(1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        click.echo(f"aid: {where}{error.strerror or error}", err=True)
        sys.exit(1)
