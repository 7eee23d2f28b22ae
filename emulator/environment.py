"""The environment variables by which the public SDKs, and this project's app, find the local Azure."""

import os
from pathlib import Path

from .config import ACCOUNT, HOST, Home, State, hashed_api_key
from .online.addresses import scoring_path
from .store import Store


def urls(state: State) -> dict[str, str]:
    """Where each part listens. TLS parts are reached as ``localhost``: requests checks that name in the certificate."""
    ports = state.ports
    return {
        "blob": f"https://{HOST}:{ports['blob']}/{ACCOUNT}",
        "queue": f"https://{HOST}:{ports['queue']}/{ACCOUNT}",
        "arm": f"https://localhost:{ports['arm']}",
        "identity": f"http://{HOST}:{ports['identity']}",
        "mlflow": f"http://{HOST}:{ports['mlflow']}",
        "functions": f"http://{HOST}:{ports['functions']}",
        "proxy": f"http://{HOST}:{ports['proxy']}",
    }


def entra(home: Home, state: State) -> str:
    """Where the tenant's Entra is, in Azure ``https://login.microsoftonline.com/<tenant>``."""
    return f"{urls(state)['arm']}/{home.project.tenant}"


def no_proxy() -> dict[str, str]:
    """Loopback addresses added to what this shell reaches without a proxy: a proxy has no business in between."""
    kept = [host.strip() for name in ("NO_PROXY", "no_proxy") for host in os.environ.get(name, "").split(",")]
    hosts = ",".join(dict.fromkeys([*filter(None, kept), "localhost", HOST]))
    return {"NO_PROXY": hosts, "no_proxy": hosts}


def ca_bundle(home: Home) -> Path:
    """The certificates to trust: the usual ones and this checkout's own authority."""
    return home.path / "certificates" / "bundle.pem"


def sdk_environment(home: Home, state: State) -> dict[str, str]:
    """What azure-identity, azure-ai-ml, azure-storage and mlflow need to talk to the local Azure instead."""
    where = urls(state)
    bundle = str(ca_bundle(home))
    project = home.project
    return {
        "IDENTITY_ENDPOINT": f"{where['identity']}/msi/token",
        "IDENTITY_HEADER": state.identity_header,
        # The first credentials of DefaultAzureCredential's chain would only cost time here.
        "AZURE_TOKEN_CREDENTIALS": "ManagedIdentityCredential",
        "ARM_CLOUD_METADATA_URL": f"{where['arm']}/metadata/endpoints?api-version=2019-05-01",
        "REGISTRY_DISCOVERY_ENDPOINT_URL": f"{where['arm']}/",
        "REQUESTS_CA_BUNDLE": bundle,
        "SSL_CERT_FILE": bundle,
        "AZURE_SUBSCRIPTION_ID": project.subscription,
        "AZURE_RESOURCE_GROUP": project.resource_group,
        "AZURE_ML_WORKSPACE": project.workspace,
        "Storage__blobServiceUri": where["blob"],
        "Storage__queueServiceUri": where["queue"],
        "MLFLOW_TRACKING_URI": where["mlflow"],
    }


def app_environment(home: Home, state: State) -> dict[str, str]:
    """The function app's settings: the SDKs' variables, and those that emulator.yaml asks for."""
    where = urls(state)
    return {
        **sdk_environment(home, state),
        # azure-ai-ml asks for a cloud that it does not know by heart at each call, on a new connection. By TLS that
        # takes more of the processor than all else a job's submission does; in Azure it asks for nothing. The cloud is
        # the one whose Resource Manager the URL names somewhere.
        "ARM_CLOUD_METADATA_URL": f"{where['identity']}/metadata/endpoints?resourceManager={where['arm']}/",
        "AzureWebJobsStorage__blobServiceUri": where["blob"],
        "AzureWebJobsStorage__queueServiceUri": where["queue"],
        "FUNCTIONS_WORKER_RUNTIME": "python",
        "PYTHON_ENABLE_INIT_INDEXING": "1",
        **home.project.app_settings,
        **{name: topic_endpoint(state, topic) for topic, name in home.project.topics.items()},
        **{f"{start}_AUDIENCE": uri for uri, start in home.project.app_registrations.items()},
        **{f"{start}_ISSUER": entra(home, state) for start in home.project.app_registrations.values()},
        **{setting: _keys(home, state, setting) for setting in home.project.api_keys},
    }


def _keys(home: Home, state: State, setting: str) -> str:
    """The key that was made here, after those that the project's own app settings bring."""
    made = hashed_api_key(state.api_keys[home.project.api_keys[setting]])
    return ",".join(filter(None, [home.project.app_settings.get(setting), made]))


def shell_environment(home: Home, state: State) -> dict[str, str]:
    """What ``python -m emulator env`` prints: the SDKs' variables, the app's base URL and the keys in clear."""
    path = os.environ.get("PATH", os.defpath)
    name, scoring_uri = home.project.scoring_uri_as, newest_scoring_uri(home, state)
    return {
        **sdk_environment(home, state),
        **no_proxy(),
        # Only what runs in a shell needs the storage account's real name, which azure-ai-ml makes of a datastore.
        **dict.fromkeys(("HTTPS_PROXY", "https_proxy"), urls(state)["proxy"]),
        **home.project.shell,
        **({name: scoring_uri} if name and scoring_uri else {}),
        "AZURE_TENANT_ID": home.project.tenant,
        "PATH": os.pathsep.join(dict.fromkeys([str(home.commands), *path.split(os.pathsep)])),
        "APP_BASE_URL": urls(state)["functions"],
        **{name: state.api_keys[name] for name in home.project.api_keys.values()},
    }


def topic_endpoint(state: State, topic: str) -> str:
    """Where a custom topic takes events; in Azure ``https://<topic>.<region>-1.eventgrid.azure.net/api/events``."""
    return f"{urls(state)['arm']}/eventgrid/{topic}/api/events"


def newest_scoring_uri(home: Home, state: State) -> str:
    """Where the endpoint created last takes requests, by its container's scoring route; "" when none has traffic."""
    if not home.database.exists():
        return ""
    store = Store(home.database)
    try:
        for endpoint in store.children(f"{home.project.workspace_id}/onlineEndpoints", newest_first=True):
            if any(int(share) for share in (endpoint.properties.get("traffic") or {}).values()):
                return f"{urls(state)['arm']}/inference/{endpoint.name}{scoring_path(store, endpoint)}"
    finally:
        store.close()
    return ""
