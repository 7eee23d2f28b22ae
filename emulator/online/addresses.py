"""Where an online endpoint takes requests."""

from ..store import Resource, Store

SCORE = "/score"


def scoring_path(store: Store, endpoint: Resource) -> str:
    """The path below the endpoint's address: the scoring route of the container that gets traffic, else /score.

    The service shows one address for all deployments; a request to it reaches each at the same path.
    """
    # Guess: with different scoring routes, the address shows the one of the deployment with the most traffic
    traffic = endpoint.properties.get("traffic") or {}
    names = sorted((name for name in traffic if int(traffic[name])), key=lambda name: -int(traffic[name]))
    for name in names:
        deployment = store.get(f"{endpoint.id}/deployments/{name}")
        environment = store.get(deployment.properties.get("environmentId") or "") if deployment else None
        if environment is not None:
            route = (environment.properties.get("inferenceConfig") or {}).get("scoringRoute") or {}
            return str(route.get("path") or SCORE)
    return SCORE
