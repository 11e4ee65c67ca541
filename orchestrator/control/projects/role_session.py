"""Assume the role of a project, in a session that reaches nothing but the project's prefixes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from jobs.errors import Fault, InputError, StoreUnreachable
from jobs.store.s3.environment import describe_endpoint, is_endpoint_local
from jobs.store.s3.translate_errors import RETRIABLE, get_code, get_status
from jobs.store.settings import read_store_settings
from orchestrator.control.projects.private_file import AccessKeys

MAX_POLICY_CHARS = 2048
"""The limit of AWS for the text of a session policy."""
CONNECT_TIMEOUT_S, READ_TIMEOUT_S, ATTEMPTS = 3, 5, 2
READ_ACTIONS = ("s3:GetObject",)
WRITE_ACTIONS = ("s3:AbortMultipartUpload", "s3:DeleteObject", "s3:GetObject",
                 "s3:ListMultipartUploadParts", "s3:PutObject")  # fmt: skip
LIST_ACTIONS = ("s3:ListBucket", "s3:ListBucketMultipartUploads")
KEY_ACTIONS = ("kms:Decrypt", "kms:GenerateDataKey")
S3 = "s3://"


def assume_role(
    role: str, *, session: str, seconds: int, stores: Sequence[str], places: Sequence[str]
) -> AccessKeys:
    """Return the keys of a session of the role. Raise InputError or StoreUnreachable.

    The session may write below `stores` and read below `places`; other addresses than s3:// count
    for nothing. The service's own credentials assume it, as boto3 finds them.
    """
    policy = build_session_policy(role, stores, places)
    if len(policy) > MAX_POLICY_CHARS:
        problem = f"its session policy has {len(policy)} characters, the limit is "
        remedy = "Give the project fewer places, or a common folder of them."
        raise InputError([Fault("places", f"{problem}{MAX_POLICY_CHARS}", remedy)])
    try:
        response = _make_client().assume_role(
            RoleArn=role, RoleSessionName=session[:64], DurationSeconds=seconds, Policy=policy
        )
    except ClientError as error:
        raise _translate_refusal(role, error) from error
    except (BotoCoreError, ValueError) as error:
        problem = f"{role} can't be assumed now ({type(error).__name__})"
        raise StoreUnreachable(f"{problem}. {describe_endpoint()}.") from error
    keys = response["Credentials"]
    return AccessKeys(
        keys["AccessKeyId"],
        keys["SecretAccessKey"],
        keys["SessionToken"],
        keys["Expiration"].timestamp(),
    )


def build_session_policy(role: str, stores: Sequence[str], places: Sequence[str]) -> str:
    """Return the policy of a session that may write below stores, and read below places."""
    statements = [
        statement
        for addresses, actions in ((stores, WRITE_ACTIONS), (places, READ_ACTIONS))
        for address in dict.fromkeys(addresses)
        if address.startswith(S3)
        for statement in _make_statements(role, address, actions)
    ]
    if any(name == "SSEKMSKeyId" for name, _ in read_store_settings().s3.encryption):
        statements.append({"Effect": "Allow", "Action": KEY_ACTIONS, "Resource": "*"})
    document = {"Version": "2012-10-17", "Statement": statements}
    return json.dumps(document, separators=(",", ":"))


def _make_statements(role: str, address: str, actions: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield what allows the objects below a prefix, and their listing by that prefix only."""
    bucket, _, key = address.removeprefix(S3).partition("/")
    arn = f"arn:{role.split(':')[1]}:s3:::{bucket}"
    folder = _quote_wildcards(key.rstrip("/"))
    below = f"{folder}/*" if folder else "*"
    objects = [f"{arn}/{below}"]
    prefixes = [below]
    if folder and not key.endswith("/") and actions is READ_ACTIONS:
        # A place may be one object.
        objects.append(f"{arn}/{folder}")
        prefixes.append(folder)
    yield {"Effect": "Allow", "Action": actions, "Resource": objects}
    condition = {"StringLike": {"s3:prefix": prefixes}}
    yield {"Effect": "Allow", "Action": LIST_ACTIONS, "Resource": arn, "Condition": condition}


def _quote_wildcards(key: str) -> str:
    """Return a key whose characters have no meaning in a policy."""
    return re.sub(r"[*?$]", lambda match: f"${{{match[0]}}}", key)


def _make_client() -> Any:
    return boto3.session.Session().client(
        "sts",
        config=Config(
            retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=READ_TIMEOUT_S,
            proxies={} if is_endpoint_local() else None,
        ),
    )


def _translate_refusal(role: str, error: ClientError) -> InputError | StoreUnreachable:
    """Return the error of a response. The server's text is dropped: it may quote a key."""
    code, status = get_code(error), get_status(error)
    label = code if code.isalnum() and len(code) < 60 else str(status)
    if code in RETRIABLE or status >= 500 or status == 429:
        return StoreUnreachable(f"{role} can't be assumed now ({label}). Try again later.")
    remedy = (
        "An administrator has to let the service's own identity assume the role, with a session of "
        "this length, and with a session policy."
    )
    return InputError([Fault("role_arn", f"{role} can't be assumed ({label})", remedy)])
