"""The operator's own access to buckets and hubs, as variables for a process of another user."""

from __future__ import annotations

from collections.abc import Mapping

import botocore.session
from botocore.exceptions import BotoCoreError

from jobs.process_environment import find_home
from jobs.store.s3.environment import FILES, PROFILES, translate_setup_error

HUB_VARIABLES = ("HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HUGGINGFACE_HUB_CACHE")
STORE_PREFIXES = ("AWS_", "SLORA_S3_")
KEY, SECRET, SESSION = "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"


def read_operator_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of the operator's store, keys and hub cache. Raise InputError.

    They name no file of credentials and no profile: a process with another home, or of another
    user, could not read them.
    """
    hub = {name: environment[name] for name in HUB_VARIABLES if name in environment}
    store = {
        name: value
        for name, value in environment.items()
        if name.startswith(STORE_PREFIXES) and name not in (*FILES, *PROFILES)
    }
    home = str(find_home(environment) / ".cache" / "huggingface")
    return {"HF_HOME": home, **hub, **_find_credentials(environment), **store}


def _find_credentials(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the keys that boto3 finds in the operator's files or from the machine's role."""
    if environment.get(KEY):
        return {}
    try:
        session = botocore.session.get_session()
        credentials = session.get_credentials()
        frozen = credentials.get_frozen_credentials() if credentials is not None else None
        values = {
            "AWS_DEFAULT_REGION": session.get_config_variable("region"),
            "AWS_ENDPOINT_URL": session.get_scoped_config().get("endpoint_url"),
        }
    except (BotoCoreError, ValueError) as error:
        raise translate_setup_error(error) from error
    if frozen is not None:
        values |= {KEY: frozen.access_key, SECRET: frozen.secret_key, SESSION: frozen.token}
    return {name: value for name, value in values.items() if value}
