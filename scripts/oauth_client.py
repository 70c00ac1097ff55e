#!/usr/bin/env python3
"""`authlib` and `requests-oauthlib`, unchanged, against `tidegate serve`: a token is had and used.

    oauth_client.py --bin target/debug/tidegate

One line per check, and `N passed, 0 failed` at the end.
"""

import argparse
import os
import sys
import tempfile
import traceback

import openai
import requests
from authlib.integrations.requests_client import OAuth2Session as AuthlibSession
from authlib.oauth2.rfc8414 import AuthorizationServerMetadata
from joserfc import jwt
from joserfc.jwk import KeySet
from oauthlib.oauth2 import BackendApplicationClient, InvalidClientError
from requests.auth import HTTPBasicAuth
from requests_oauthlib import OAuth2Session

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import rig  # noqa: E402
from rig import Failed, expect  # noqa: E402

# The gateway of this check speaks plain HTTP, on loopback.
os.environ["OAUTHLIB_INSECURE_TRANSPORT"] = "1"

CONFIG = """
[oauth]
algorithm = "{algorithm}"
[upstreams.sim]
protocol = "sim"
[models.sim-small]
targets = [{{ upstream = "sim" }}]
[models.sim-other]
targets = [{{ upstream = "sim" }}]
"""

CHAT = {"model": "sim-small", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


class Gateway:
    def __init__(self, url, key):
        self.url, self.key = url, key
        self.client_id = key.split("-")[1]
        self.token_url = url + "/oauth/token"

    def is_whole(self, token, scope="*"):
        expect(token["token_type"] == "Bearer", token["token_type"])
        expect(token["expires_in"] == 3600, token["expires_in"])
        expect(" ".join(as_list(token["scope"])) == scope, token["scope"])


def as_list(scope):
    return scope.split() if isinstance(scope, str) else list(scope)


def answers(response):
    expect(response.status_code == 200, f"{response.status_code}: {response.text}")
    expect(response.json()["choices"][0]["message"]["content"], "the answer is empty")


@check
def authlib_by_basic(gateway):
    session = AuthlibSession(gateway.client_id, gateway.key)
    gateway.is_whole(session.fetch_token(gateway.token_url, grant_type="client_credentials"))
    answers(session.post(gateway.url + "/v1/chat/completions", json=CHAT))


@check
def authlib_by_form(gateway):
    session = AuthlibSession(
        gateway.client_id,
        gateway.key,
        token_endpoint_auth_method="client_secret_post",
        scope="sim-other",
    )
    token = session.fetch_token(gateway.token_url, grant_type="client_credentials")
    gateway.is_whole(token, "sim-other")
    listed = session.get(gateway.url + "/v1/models").json()["data"]
    expect([model["id"] for model in listed] == ["sim-other"], listed)
    refused = session.post(gateway.url + "/v1/chat/completions", json=CHAT)
    expect(refused.status_code == 403, f"{refused.status_code}: {refused.text}")


@check
def requests_oauthlib_by_form(gateway):
    session = OAuth2Session(client=BackendApplicationClient(client_id=gateway.client_id))
    token = session.fetch_token(
        token_url=gateway.token_url, client_secret=gateway.key, include_client_id=True
    )
    gateway.is_whole(token)
    answers(session.post(gateway.url + "/v1/chat/completions", json=CHAT))


@check
def requests_oauthlib_by_basic(gateway):
    client = BackendApplicationClient(client_id=gateway.client_id, scope=["sim-small"])
    session = OAuth2Session(client=client)
    basic = HTTPBasicAuth(gateway.client_id, gateway.key)
    gateway.is_whole(session.fetch_token(token_url=gateway.token_url, auth=basic), "sim-small")
    answers(session.post(gateway.url + "/v1/chat/completions", json=CHAT))


@check
def a_wrong_secret_is_said_in_oauths_words(gateway):
    session = OAuth2Session(client=BackendApplicationClient(client_id=gateway.client_id))
    try:
        session.fetch_token(
            token_url=gateway.token_url, client_secret="tg-wrong", include_client_id=True
        )
    except InvalidClientError:
        return
    raise Failed("a wrong secret bought a token")


@check
def others_can_check_the_token(gateway):
    metadata = AuthorizationServerMetadata(
        requests.get(gateway.url + "/.well-known/oauth-authorization-server", timeout=10).json()
    )
    # The whole check asks for https, which this gateway does not speak.
    for claim in ("response_types_supported", "grant_types_supported"):
        getattr(metadata, f"validate_{claim}")()
    expect(metadata["token_endpoint"].endswith("/oauth/token"), metadata["token_endpoint"])
    keys = KeySet.import_key_set(
        requests.get(gateway.url + "/.well-known/jwks.json", timeout=10).json()
    )
    session = AuthlibSession(gateway.client_id, gateway.key)
    token = session.fetch_token(gateway.token_url, grant_type="client_credentials")
    issuer = metadata["issuer"]
    checked = jwt.decode(token["access_token"], keys, algorithms=["EdDSA", "ES256"])
    rules = jwt.JWTClaimsRegistry(
        iss={"essential": True, "value": issuer},
        aud={"essential": True, "value": issuer},
        sub={"essential": True, "value": gateway.client_id},
        exp={"essential": True},
        iat={"essential": True},
        jti={"essential": True},
    )
    rules.validate(checked.claims)
    expect(checked.header["typ"] == "at+jwt", checked.header)


@check
def the_openai_package_takes_a_token_for_a_key(gateway):
    session = AuthlibSession(gateway.client_id, gateway.key)
    token = session.fetch_token(gateway.token_url, grant_type="client_credentials")
    client = openai.OpenAI(
        base_url=gateway.url + "/v1", api_key=token["access_token"], max_retries=0, timeout=30
    )
    expect(client.chat.completions.create(**CHAT).choices[0].message.content, "nothing came")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bin", required=True, help="the tidegate binary")
    args = parser.parse_args()
    passed = failed = 0
    for algorithm in ("EdDSA", "ES256"):
        with tempfile.TemporaryDirectory() as dir:
            binary = os.path.abspath(args.bin)
            config = CONFIG.format(algorithm=algorithm)
            with rig.Gateway(binary, dir, config=config) as process:
                gateway = Gateway(process.url, process.key)
                for function in CHECKS:
                    name = f"{function.__name__.replace('_', ' ')} ({algorithm})"
                    try:
                        function(gateway)
                        passed += 1
                        print(f"ok    {name}")
                    except Exception as error:  # noqa: BLE001
                        failed += 1
                        print(f"FAIL  {name}: {error}")
                        if not isinstance(error, Failed):
                            traceback.print_exc()
    print(f"{passed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
