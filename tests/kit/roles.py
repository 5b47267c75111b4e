"""A virtual host whose users are apart: one for each role of the shipped policy, named after the host."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from click.testing import CliRunner, Result

from deploy.broker.policy import SHIPPED
from deploy.doctor_command import doctor
from tests.kit.upstream import Broker

_CHECKOUT = Path(__file__).parents[2]


class Roles:
    """Applies and checks the policy by ``waybill doctor``, and runs commands as its users.

    Args:
        broker: Where.
        api_url: The management API, with an administrator's credentials.
        folder: For the policy file.
        **settings: More environment variables of every command.
    """

    def __init__(self, broker: Broker, api_url: str, folder: Path, **settings: str) -> None:
        self.broker = broker
        self.upstream = self.user("upstream")
        self.policy = folder / "permissions.json"
        self.write_policy()
        self._environment = {
            "WAYBILL_BROKER_URL": self.url("api"),
            "WAYBILL_BROKER_API_URL": api_url,
            "WAYBILL_AMQP_PRINCIPALS": json.dumps({self.upstream: "upstream@example.com"}),
            **settings,
        }

    def write_policy(self, **upstream: str) -> None:
        """The shipped policy for users of these names.

        Args:
            **upstream: More about the upstream user, as ``topics``.
        """
        said = json.loads(SHIPPED.read_text())
        said["users"] = {self.user(role): {"role": role} for role in ("api", "worker", "consumer", "flower")}
        if upstream:
            said["users"][self.upstream] = {"role": "upstream", **upstream}
        self.policy.write_text(json.dumps(said))

    def user(self, role: str) -> str:
        """The broker user of a role; its password is ``secret-`` and its name."""
        return f"{self.broker.vhost}-{role}"

    def url(self, role: str) -> str:
        """The broker, as a role's user."""
        user = self.user(role)
        return f"amqp://{user}:secret-{user}@127.0.0.1:{self.broker.port}/{self.broker.vhost}"

    def doctor(self, mode: str, *, with_passwords: bool = True, **settings: str) -> Result:
        """Run ``waybill doctor --broker-permissions``."""
        roles = ("api", "worker", "consumer", "flower", "upstream")
        passwords = {self.user(role): f"secret-{self.user(role)}" for role in roles}
        environment = self._environment | settings
        if with_passwords:
            environment["WAYBILL_BROKER_PASSWORDS"] = json.dumps(passwords)
        options = ["--broker-permissions", mode, "--broker-policy", str(self.policy)]
        return CliRunner(env=environment).invoke(doctor, options)

    def deviations(self) -> list[str]:
        """What the check finds wrong."""
        return [line for line in self.doctor("check").output.splitlines() if line.startswith("WRONG")]

    @contextmanager
    def running(self, command: str, log: Path, **settings: str) -> Iterator["subprocess.Popen[bytes]"]:
        """A process of the platform as the user of its role; ended whatever happens."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("WAYBILL_")}
        environment: Mapping[str, str] = (
            inherited
            | {"PYTHONPATH": str(_CHECKOUT)}
            | self._environment
            | {"WAYBILL_BROKER_URL": self.url(command), "WAYBILL_BROKER_API_URL": ""}
            | settings
        )
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", "deploy.cli", command],
                env=environment,
                stdout=stream,
                stderr=subprocess.STDOUT,
                cwd=log.parent,
            )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def delete(self) -> None:
        """Delete the users; the virtual host is the broker's own."""
        for role in ("api", "worker", "consumer", "flower", "upstream"):
            if any(one["name"] == self.user(role) for one in self.broker.call("GET", "/users")):
                self.broker.call("DELETE", f"/users/{self.user(role)}")
