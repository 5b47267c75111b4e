"""The command ``waybill``: the list of its subcommands, each loaded when it is called; and how it fails."""

import importlib
import sys
from collections.abc import Sequence

import click

from models.errors import ConfigurationError, Refusal, Transient

_COMMANDS: dict[str, tuple[str, str]] = {
    "up": ("deploy.up_command:up", "Start the platform here and keep it running."),
    "api": ("deploy.process_commands:api", "Serve the HTTP API."),
    "worker": ("deploy.process_commands:worker", "Run a Celery worker."),
    "consumer": ("deploy.process_commands:consumer", "Take in jobs from AMQP."),
    "flower": ("deploy.process_commands:flower", "Serve Flower."),
    "node": ("deploy.process_commands:node", "API, worker and Flower in one process (what up runs)."),
    "migrate": ("deploy.migrate_command:migrate", "Bring the database's schema to the present version."),
    "user": ("deploy.user_command:user", "Add, change and list users."),
    "token": ("deploy.token_command:token", "Print an access token for a user."),
    "submit": ("deploy.submit_command:submit", "Submit a job."),
    "jobs": ("deploy.jobs_command:jobs", "List jobs, show one, cancel it, prune old ones."),
    "dead-letters": (
        "deploy.dead_letters_command:dead_letters",
        "List, show, group, redrive and discard dead jobs.",
    ),
    "bench": ("deploy.bench_command:bench", "Measure against named peers, from one run."),
    "chaos": ("deploy.chaos_command:chaos", "Break things on purpose and check that nothing is lost."),
    "attack": ("deploy.attack_command:attack", "Attack a platform of its own, print how it refused."),
    "doctor": ("deploy.doctor_command:doctor", "Name every part, check it, say how to mend it."),
    "openapi": ("deploy.openapi_command:openapi", "Print the HTTP contract (OpenAPI)."),
    "asyncapi": ("deploy.asyncapi_command:asyncapi", "Print the AMQP contract (AsyncAPI)."),
}


class LazyGroup(click.Group):
    """A group that knows its commands' names and purposes, and imports one only to run it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order of a platform's life."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now; None for a name that we do not have."""
        if cmd_name not in _COMMANDS:
            return None
        module, attribute = _COMMANDS[cmd_name][0].split(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in ``--help``, without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, purpose) for name, (_, purpose) in _COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="waybill")
def waybill() -> None:
    """Waybill: durable jobs on resources, from HTTP or AMQP to PostgreSQL, applied exactly once.

    Begin with `waybill up`; in a second shell `waybill doctor` says where everything is.

    Settings are environment variables WAYBILL_* (also from a .env file), such as WAYBILL_DATABASE_URL,
    WAYBILL_BROKER_URL, WAYBILL_REDIS_URL, WAYBILL_DATA_DIR, WAYBILL_API_HOST, WAYBILL_API_PORT,
    WAYBILL_FLOWER_PORT, WAYBILL_ADMIN_EMAIL, WAYBILL_ADMIN_PASSWORD, WAYBILL_LOG_LEVEL. Commands in a second
    shell find what `waybill up` started through WAYBILL_DATA_DIR.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command.

    A wrong setting is one line on standard error and exit status 2, a refusal or something that is away
    one line and exit status 1: never a traceback.
    """
    try:
        waybill.main(arguments, prog_name="waybill")
    except (ConfigurationError, Refusal, Transient) as error:
        print(f"waybill: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ConfigurationError) else 1)


if __name__ == "__main__":
    main()
