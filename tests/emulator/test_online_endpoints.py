"""Managed online endpoints through the unmodified SDK: authentication, traffic, mirrored traffic, keys, deletion."""

import json
import threading
import time
from pathlib import Path

import jwt
import pytest
import requests
from azure.ai.ml import MLClient
from azure.ai.ml.entities import (
    IdentityConfiguration,
    ManagedIdentityConfiguration,
    ManagedOnlineEndpoint,
    OnlineRequestSettings,
)
from azure.core.exceptions import HttpResponseError, ResourceNotFoundError

from tests.emulator.online import (
    arm_request,
    ask,
    create_endpoint,
    credential,
    deploy,
    echo_deployment,
    entra_token,
    servers,
    set_traffic,
)
from tests.local_azure import LocalAzure


@pytest.fixture(scope="module")
def mirrored(azure: LocalAzure) -> Path:
    return azure.home / "mirrored.txt"


@pytest.fixture(scope="module")
def endpoint(azure: LocalAzure, ml: MLClient, mirrored: Path) -> ManagedOnlineEndpoint:
    """An endpoint with keys, blue with all traffic and green, which notes what it gets, with none."""
    create_endpoint(ml, "shop", tags={"team": "a"}, description="of the tests")
    many = OnlineRequestSettings(max_concurrent_requests_per_instance=50, request_timeout_ms=20000)
    deploy(ml, echo_deployment(azure, ml, "shop", "blue", request_settings=many))
    deploy(ml, echo_deployment(azure, ml, "shop", "green", {"RECORD": str(mirrored)}, request_settings=many))
    set_traffic(ml, "shop", {"blue": 100})
    return ml.online_endpoints.get("shop")


def post(endpoint: ManagedOnlineEndpoint, secret: str) -> int:
    headers = {"Authorization": f"Bearer {secret}"}
    return requests.post(endpoint.scoring_uri, data="{}", headers=headers, timeout=10).status_code


def test_an_endpoint_keeps_what_it_was_given_and_its_address_ends_in_the_scoring_route(
    endpoint: ManagedOnlineEndpoint,
) -> None:
    assert endpoint.provisioning_state == "Succeeded"
    assert endpoint.tags == {"team": "a"}
    assert endpoint.description == "of the tests"
    assert endpoint.public_network_access == "Enabled"
    assert endpoint.traffic == {"blue": 100, "green": 0}
    assert endpoint.scoring_uri.endswith("/inference/shop/echo")
    assert endpoint.openapi_uri.endswith("/inference/shop/swagger.json")
    assert endpoint.properties["azureml.onlineendpointid"].endswith("/onlineendpoints/shop")


def test_a_key_opens_its_endpoint_and_nothing_else_does(ml: MLClient, endpoint: ManagedOnlineEndpoint) -> None:
    keys = ml.online_endpoints.get_keys("shop")
    assert [post(endpoint, key) for key in (keys.primary_key, keys.secondary_key)] == [200, 200]
    assert [post(endpoint, secret) for secret in ("", "wrong", "ключ".encode().decode("latin-1"), entra_token())] == [
        401
    ] * 4


@pytest.mark.parametrize("kind", ["primary", "secondary"])
def test_a_regenerated_key_replaces_one_and_leaves_the_other(
    ml: MLClient, endpoint: ManagedOnlineEndpoint, kind: str
) -> None:
    before = ml.online_endpoints.get_keys("shop")
    ml.online_endpoints.begin_regenerate_keys("shop", key_type=kind).result()
    after = ml.online_endpoints.get_keys("shop")
    changed, kept = (kind, "secondary" if kind == "primary" else "primary")
    old, new = getattr(before, f"{changed}_key"), getattr(after, f"{changed}_key")
    assert old != new
    assert getattr(before, f"{kept}_key") == getattr(after, f"{kept}_key")
    assert (post(endpoint, old), post(endpoint, new)) == (401, 200)


def test_an_aml_token_opens_its_own_endpoint_only(ml: MLClient) -> None:
    first, second = create_endpoint(ml, "token-a", "aml_token"), create_endpoint(ml, "token-b", "aml_token")
    token = ml.online_endpoints.get_keys("token-a")
    assert time.time() < token.refresh_after_time_utc < token.expiry_time_utc
    assert post(first, token.access_token) == 404  # let in, but there is no deployment
    expired = jwt.encode({"aud": "x", "iss": "azureml", "exp": 1}, "another secret, as long as one has to be")
    for secret in (credential(ml, second), entra_token(), expired, "", "x.y.z"):
        assert post(first, secret) == 401


def test_an_entra_token_opens_an_aad_endpoint_and_no_other_token_does(ml: MLClient) -> None:
    entra = create_endpoint(ml, "entra", "aad_token")
    foreign = credential(ml, create_endpoint(ml, "token-c", "aml_token"))
    assert post(entra, credential(ml, entra)) == 404  # let in
    for secret in (foreign, entra_token("https://management.azure.com/.default"), "", "x.y.z"):
        assert post(entra, secret) == 401


def test_the_way_of_authentication_can_be_changed(ml: MLClient) -> None:
    changing = create_endpoint(ml, "changing", "key")
    key = credential(ml, changing)
    changing.auth_mode = "aad_token"
    ml.online_endpoints.begin_create_or_update(changing).result()
    assert (post(changing, key), post(changing, entra_token())) == (401, 404)


def test_requests_follow_the_traffic_and_the_header(ml: MLClient, endpoint: ManagedOnlineEndpoint) -> None:
    set_traffic(ml, "shop", {"blue": 50, "green": 50})
    names = [ask(ml, endpoint).json()["name"] for _ in range(30)]
    assert set(names) == {"blue", "green"}
    set_traffic(ml, "shop", {"blue": 100})
    assert {ask(ml, endpoint).json()["name"] for _ in range(10)} == {"blue"}
    answer = ask(ml, endpoint, deployment="green")
    assert answer.json()["name"] == answer.headers["azureml-model-deployment"] == "green"
    assert ask(ml, endpoint, deployment="yellow").status_code == 404


def test_invoke_sends_a_file_to_the_endpoint_or_to_one_deployment(
    ml: MLClient, endpoint: ManagedOnlineEndpoint, tmp_path: Path
) -> None:
    file = tmp_path / "request.json"
    file.write_text('{"a": 1}')
    answer = json.loads(ml.online_endpoints.invoke("shop", request_file=str(file)))
    assert (answer["name"], answer["path"]) == ("blue", "/echo")
    answer = json.loads(ml.online_endpoints.invoke("shop", request_file=str(file), deployment_name="green"))
    assert answer["name"] == "green"


@pytest.mark.parametrize(
    ("traffic", "mirror", "message"),
    [
        ({"blue": 60}, {}, "60 %"),
        ({"blue": 50, "green": 60}, {}, "110 %"),
        ({"yellow": 100}, {}, "'yellow', which does not exist"),
        ({"blue": 100}, {"green": 51}, "At most 50 %"),
        ({"blue": 100}, {"blue": 10}, "live and mirrored"),
        ({"blue": 100}, {"yellow": 10}, "'yellow', which does not exist"),
        ({"blue": 100}, {"green": 10, "yellow": 10}, "one deployment only"),
    ],
)
def test_impossible_traffic_is_refused(
    ml: MLClient, endpoint: ManagedOnlineEndpoint, traffic: dict[str, int], mirror: dict[str, int], message: str
) -> None:
    with pytest.raises(HttpResponseError, match=message) as refused:
        set_traffic(ml, "shop", traffic, mirror)
    assert refused.value.status_code == 400
    assert ml.online_endpoints.get("shop").traffic == {"blue": 100, "green": 0}


def test_mirrored_requests_reach_the_other_deployment_and_leave_the_answers_alone(
    ml: MLClient, endpoint: ManagedOnlineEndpoint, mirrored: Path
) -> None:
    set_traffic(ml, "shop", {"blue": 100}, {"green": 50})
    mirrored.unlink(missing_ok=True)
    sent = [{"number": number} for number in range(60)]
    assert {ask(ml, endpoint, wish).json()["name"] for wish in sent} == {"blue"}
    ask(ml, endpoint, {"number": "by header"}, deployment="blue")
    time.sleep(0.5)  # a copy more than there should be has the time to come
    copies = [json.loads(line) for line in mirrored.read_text().splitlines()]
    assert all(copy in sent for copy in copies)
    assert 10 <= len(copies) <= 50  # half of 60, within five standard deviations
    set_traffic(ml, "shop", {"blue": 100})


def test_a_mirror_that_is_full_or_gone_disturbs_nobody(
    azure: LocalAzure, ml: MLClient, endpoint: ManagedOnlineEndpoint
) -> None:
    tight = OnlineRequestSettings(max_concurrent_requests_per_instance=1, request_timeout_ms=1000)
    deploy(ml, echo_deployment(azure, ml, "shop", "tight", {"SLOW": "2"}, request_settings=tight))
    set_traffic(ml, "shop", {"blue": 100}, {"tight": 50})
    key = credential(ml, endpoint)
    assert [post(endpoint, key) for _ in range(20)] == [200] * 20
    with pytest.raises(HttpResponseError, match="mirrorTraffic"):
        ml.online_deployments.begin_delete("tight", "shop").result()
    set_traffic(ml, "shop", {"blue": 100})
    ml.online_deployments.begin_delete("tight", "shop").result()


def test_the_identity_is_shown_and_cannot_be_changed(ml: MLClient) -> None:
    own = ManagedIdentityConfiguration(
        resource_id=f"{ml.workspaces.get('local').id.split('/providers')[0]}/providers/Microsoft.ManagedIdentity"
        "/userAssignedIdentities/mine"
    )
    identity = IdentityConfiguration(type="user_assigned", user_assigned_identities=[own])
    made = create_endpoint(ml, "identified", identity=identity)
    (shown,) = made.identity.user_assigned_identities
    assert shown.resource_id == own.resource_id
    made.tags = {"changed": "yes"}
    assert ml.online_endpoints.begin_create_or_update(made).result().tags == {"changed": "yes"}
    made.identity = IdentityConfiguration(type="system_assigned")
    with pytest.raises(HttpResponseError, match="identity of an endpoint cannot be changed"):
        ml.online_endpoints.begin_create_or_update(made).result()


def test_an_endpoint_that_is_created_has_no_address_yet_and_refuses_a_second_update(azure: LocalAzure) -> None:
    body = {"location": "westeurope", "properties": {"authMode": "Key"}}
    first = arm_request(azure, "PUT", "onlineEndpoints/fresh", body)
    assert first.status_code == 201
    assert first.json()["properties"]["provisioningState"] == "Creating"
    assert first.json()["properties"]["scoringUri"] is None
    assert {"Azure-AsyncOperation", "Location", "Retry-After"} <= first.headers.keys()
    assert arm_request(azure, "GET", "onlineEndpoints/fresh").json()["properties"]["scoringUri"]


@pytest.mark.parametrize(
    ("properties", "message"),
    [
        ({}, "authMode must be one of"),
        ({"authMode": "None"}, "authMode must be one of"),
        ({"authMode": "Key", "publicNetworkAccess": "Maybe"}, "publicNetworkAccess"),
        ({"authMode": "Key", "traffic": ["blue"]}, "object of percentages"),
        ({"authMode": "Key", "traffic": {"blue": "100"}}, "whole number from 0 to 100"),
        ({"authMode": "Key", "mirrorTraffic": {"blue": 5.5}}, "whole number from 0 to 100"),
        ({"authMode": "Key", "properties": "x"}, "'properties.properties' must be an object"),
    ],
)
def test_a_malformed_endpoint_is_refused_with_a_reason(
    azure: LocalAzure, properties: dict[str, object], message: str
) -> None:
    answer = arm_request(azure, "PUT", "onlineEndpoints/malformed", {"properties": properties})
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "identity", ["x", 5, [1], {"type": 5}, {"type": "UserAssigned", "userAssignedIdentities": "abc"}]
)
def test_a_malformed_identity_is_refused(azure: LocalAzure, identity: object) -> None:
    body = {"properties": {"authMode": "Key"}, "identity": identity}
    assert arm_request(azure, "PUT", "onlineEndpoints/malformed", body).status_code == 400


def test_keys_and_tokens_are_refused_where_there_are_none(azure: LocalAzure, ml: MLClient) -> None:
    create_endpoint(ml, "keyed", "key")
    create_endpoint(ml, "tokened", "aml_token")
    for path, body in (
        ("keyed/token", None),
        ("tokened/listKeys", None),
        ("tokened/regenerateKeys", {"keyType": "Primary"}),
        ("keyed/regenerateKeys", {"keyType": "Third"}),
    ):
        assert arm_request(azure, "POST", f"onlineEndpoints/{path}", body).status_code == 400
    assert arm_request(azure, "POST", "onlineEndpoints/nowhere/listKeys").status_code == 404


def test_endpoints_are_listed_page_by_page(azure: LocalAzure, ml: MLClient) -> None:
    body = {"location": "westeurope", "properties": {"authMode": "Key"}}
    for number in range(55):
        assert arm_request(azure, "PUT", f"onlineEndpoints/many-{number}", body).status_code == 201
    names = {endpoint.name for endpoint in ml.online_endpoints.list()}
    assert names >= {f"many-{number}" for number in range(55)}


def test_deleting_an_endpoint_answers_at_once_finishes_its_requests_and_ends_its_deployments(
    azure: LocalAzure, ml: MLClient
) -> None:
    doomed = create_endpoint(ml, "doomed")
    patient = OnlineRequestSettings(request_timeout_ms=20000)
    deploy(ml, echo_deployment(azure, ml, "doomed", "only", request_settings=patient))
    set_traffic(ml, "doomed", {"only": 100})
    doomed = ml.online_endpoints.get("doomed")
    answers: list[int] = []
    asking = threading.Thread(target=lambda: answers.append(ask(ml, doomed, {"sleep": 3}).status_code))
    asking.start()
    time.sleep(1)
    started = time.monotonic()
    poller = ml.online_endpoints.begin_delete("doomed")
    assert time.monotonic() - started < 1.5
    assert ml.online_endpoints.get("doomed").provisioning_state == "Deleting"
    body = {"location": "westeurope", "properties": {"authMode": "Key"}}
    assert arm_request(azure, "PUT", "onlineEndpoints/doomed", body).status_code == 409
    poller.result()
    asking.join()
    assert answers == [200]
    assert servers(azure.home, "doomed") == []
    with pytest.raises(ResourceNotFoundError):
        ml.online_endpoints.get("doomed")
    assert arm_request(azure, "DELETE", "onlineEndpoints/doomed").status_code == 204
