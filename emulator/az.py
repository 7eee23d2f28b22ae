"""The two commands of Azure's command line that SDKs call: scripts with AzureCliCredential find their token here.

``python -m emulator env`` puts it on the shell's PATH as ``az``.
Run as: az account get-access-token --output json --resource https://management.azure.com
"""

import argparse
import json
import os
import shlex
import sys
import urllib.parse
import urllib.request
from datetime import datetime
from pathlib import Path

REFUSAL = (
    "ERROR: this is the local Azure's az: it knows `az account get-access-token` and `az account show` only. For"
    " anything else use the Python SDK here, or the real az in a shell without the local Azure's variables."
)


def install(folder: Path) -> None:
    """Write the command ``az`` into ``folder``, which ``env`` puts on the PATH."""
    folder.mkdir(parents=True, exist_ok=True)
    root = Path(__file__).resolve().parent.parent
    command = folder / "az"
    command.write_text(
        f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(root))} exec {shlex.quote(sys.executable)} -m emulator.az "$@"\n',
        encoding="utf-8",
    )
    command.chmod(0o755)


def access_token(resource: str, environment: "os._Environ[str]") -> dict[str, str | int]:
    """What ``az account get-access-token`` prints, asked of the local managed-identity endpoint."""
    query = urllib.parse.urlencode({"api-version": "2019-08-01", "resource": resource})
    request = urllib.request.Request(  # noqa: S310 - the address is ours
        f"{environment['IDENTITY_ENDPOINT']}?{query}", headers={"X-IDENTITY-HEADER": environment["IDENTITY_HEADER"]}
    )
    with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310
        token = json.load(response)
    expires = int(token["expires_on"])
    return {
        "accessToken": token["access_token"],
        "expiresOn": datetime.fromtimestamp(expires).strftime("%Y-%m-%d %H:%M:%S.%f"),  # local time, as az does
        "expires_on": expires,
        "subscription": environment.get("AZURE_SUBSCRIPTION_ID", ""),
        "tenant": environment.get("AZURE_TENANT_ID", ""),
        "tokenType": "Bearer",
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="az", add_help=False)
    parser.add_argument("command", nargs="*")
    parser.add_argument("--resource", default="")
    parser.add_argument("--scope", default="")
    arguments, _ = parser.parse_known_args()
    match arguments.command:
        case ["account", "get-access-token", *_]:
            resource = arguments.resource or arguments.scope.removesuffix("/.default")
            print(json.dumps(access_token(resource or "https://management.core.windows.net/", os.environ)))
        case ["account", "show", *_]:
            subscription, tenant = (os.environ.get(f"AZURE_{name}_ID", "") for name in ("SUBSCRIPTION", "TENANT"))
            print(json.dumps({"id": subscription, "tenantId": tenant, "name": "Local Azure", "state": "Enabled"}))
        case _:
            print(REFUSAL, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
