"""Check the variables that boto3 reads, before it does: each fault has the name of its variable.

boto3 reports most of them late, as an endpoint that does not answer, or not by name.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from botocore.exceptions import BotoCoreError

from jobs.errors import Fault, InputError
from jobs.network import is_loopback
from jobs.store.settings import PROJECT

ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
"""The first one that is set is used."""
KEY_PAIR = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
FILES = ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE")
PROFILES = ("AWS_DEFAULT_PROFILE", "AWS_PROFILE")
REGION, CA_BUNDLE = "AWS_DEFAULT_REGION", "AWS_CA_BUNDLE"
HANDED = ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_AUTHORIZATION_TOKEN")
"""Where the job of a project asks the service for its keys, and its token for that."""
VARIABLES = (*ENDPOINTS, *KEY_PAIR, "AWS_SESSION_TOKEN", *FILES, *PROFILES, REGION, CA_BUNDLE,
             *HANDED, PROJECT)  # fmt: skip

_REGION = re.compile(r"(?![0-9]+$)(?!-)[A-Za-z0-9-]{1,63}(?<!-)")
_HOST = re.compile(r"[A-Za-z0-9.-]+|[0-9A-Fa-f:.]+")
_ENDPOINT_REMEDY = "Use the server's URL, for example https://s3.example.org or http://host:9000."


def check_environment(environment: Mapping[str, str] = os.environ) -> None:
    """Raise InputError with every variable that no request could be sent with."""
    faults = [
        *_check_endpoint(environment),
        *_check_keys(environment),
        *_check_region(environment),
        *_check_files(environment),
        *_check_ca_bundle(environment),
    ]
    if faults:
        raise InputError(faults)


def translate_setup_error(
    error: BotoCoreError | ValueError, environment: Mapping[str, str] = os.environ
) -> InputError:
    """Return the fault of a setting that boto3 refused when it made a client."""
    names = {
        "ProfileNotFound": next(filter(environment.get, PROFILES), "AWS_PROFILE"),
        "ConfigParseError": _find_file_variable(error, environment),
    }
    remedies = {
        "ProfileNotFound": "Use a profile of ~/.aws/config or ~/.aws/credentials.",
        "ConfigParseError": "Correct the file, or name another one.",
    }
    kind = type(error).__name__
    problem = f"boto3 cannot use it: {str(error)[:300]}".rstrip(".")
    remedy = remedies.get(kind, "Correct this setting in the AWS_ variables or the file.")
    return InputError([Fault(names.get(kind, "AWS settings"), problem, remedy)])


def find_endpoint(environment: Mapping[str, str] = os.environ) -> tuple[str, str] | None:
    """Return the name and the value of the variable with the endpoint, if one is set."""
    if environment.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() == "true":
        return None
    return next(((name, url) for name in ENDPOINTS if (url := environment.get(name))), None)


def describe_endpoint(environment: Mapping[str, str] = os.environ) -> str:
    """Describe where requests go, for messages."""
    if (endpoint := find_endpoint(environment)) is None:
        return "AWS_ENDPOINT_URL is not set, so requests go to Amazon or as ~/.aws/config says"
    return f"{endpoint[0]} is {_hide_user(endpoint[1])}"


def is_endpoint_local(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether the endpoint is on this machine: no proxy leads there."""
    endpoint = find_endpoint(environment)
    return endpoint is not None and is_loopback(urlsplit(endpoint[1]).hostname)


def check_bucket(bucket: str, environment: Mapping[str, str] = os.environ) -> None:
    """Raise InputError if the endpoint ends with the bucket, whose name would come twice."""
    if (endpoint := find_endpoint(environment)) is None:
        return
    if urlsplit(endpoint[1]).path.rstrip("/").endswith(f"/{bucket}"):
        problem = f"{_hide_user(endpoint[1])} ends with the bucket, which s3://{bucket} names"
        raise InputError([Fault(endpoint[0], problem, f"Remove /{bucket} from its end.")])


def _check_endpoint(environment: Mapping[str, str]) -> Iterator[Fault]:
    if (endpoint := find_endpoint(environment)) is None:
        return
    name, url = endpoint
    if (problem := _find_url_problem(url)) is not None:
        yield Fault(name, f"{_hide_user(url)!a} {problem}", _ENDPOINT_REMEDY)


def _find_url_problem(url: str) -> str | None:
    """Return what is wrong with the URL of a server, or None."""
    if not url.isprintable() or any(character.isspace() for character in url):
        return "contains a space or a control character"
    if "://" not in url:
        return "has no scheme"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "has a port that is not a number from 1 to 65535, or no valid host"
    if parts.scheme.lower() not in ("http", "https"):
        return f"has the scheme {parts.scheme[:20]}, not http or https"
    if not parts.hostname or not _HOST.fullmatch(parts.hostname):
        return "has no valid host"
    if port == 0:
        return "has the port 0"
    if "@" in parts.netloc:
        return "holds credentials, which belong into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    return "has a query or a fragment" if parts.query or parts.fragment else None


def _check_keys(environment: Mapping[str, str]) -> Iterator[Fault]:
    """Check the credentials. Their values are never part of a message."""
    present = [name for name in KEY_PAIR if environment.get(name)]
    if len(present) == 1:
        [missing] = set(KEY_PAIR) - {present[0]}
        yield Fault(missing, f"not set, but {present[0]} is", "Set both, or neither.")
    for name in (*KEY_PAIR, "AWS_SESSION_TOKEN"):
        if not re.fullmatch(r"[!-~]*", environment.get(name, "")):
            problem = "contains a space, a line end or another character that no key has"
            yield Fault(name, problem, "Set it again, without what was copied along.")


def _check_region(environment: Mapping[str, str]) -> Iterator[Fault]:
    region = environment.get(REGION)
    if region and not _REGION.fullmatch(region):
        yield Fault(REGION, f"{region[:80]!a} is not a region", "Use one such as us-east-1.")


def _check_files(environment: Mapping[str, str]) -> Iterator[Fault]:
    """Check the files of boto3. An absent one does not matter beside a key pair in variables."""
    for name in FILES:
        if path := environment.get(name):
            try:
                Path(os.path.expanduser(path)).read_text(encoding="utf-8")
            except (OSError, ValueError) as error:
                if isinstance(error, FileNotFoundError) and all(map(environment.get, KEY_PAIR)):
                    continue
                reason = getattr(error, "strerror", None) or "not UTF-8 text"
                yield Fault(name, f"{path} cannot be read: {reason}", "Name an existing file.")


def _check_ca_bundle(environment: Mapping[str, str]) -> Iterator[Fault]:
    """Check the certificates, unless the endpoint needs none."""
    endpoint, path = find_endpoint(environment), environment.get(CA_BUNDLE)
    if not path or (endpoint and endpoint[1].lower().startswith("http://")):
        return
    try:
        folder = os.path.isdir(path)
        ssl.create_default_context(cafile=None if folder else path, capath=path if folder else None)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it holds no certificate"
        remedy = "Name a PEM file of certificates, or unset it for the system's own."
        yield Fault(CA_BUNDLE, f"{path} cannot be used: {reason}", remedy)


def _find_file_variable(error: Exception, environment: Mapping[str, str]) -> str:
    """Return the variable that names the file of the error, or the file's usual name."""
    for name in FILES:
        if (path := environment.get(name)) and path in str(error):
            return name
    return "~/.aws/credentials" if "credentials" in str(error) else "~/.aws/config"


def _hide_user(url: str) -> str:
    scheme, slashes, rest = url.partition("://")
    return (
        f"{scheme}{slashes}{rest.rpartition('@')[2]}"[:200]
        if slashes
        else (url.rpartition("@")[2][:200])
    )
