"""Create the passwords and tokens that compose.yaml mounts as files, unless they exist."""

import json
import secrets
import sys
from pathlib import Path

HERE = Path(__file__).parent / "secrets"
NAMES = ("postgres_password", "pg_service", "s3_identities", "aws_credentials", "ray_token")
ACTIONS = ("Admin", "Read", "List", "Tagging", "Write")


def main(folder: Path = HERE) -> int:
    """Write all secrets or none, because some files share a password."""
    existing = {name for name in NAMES if (folder / name).exists()}
    if existing == set(NAMES):
        print(f"{folder} is already complete.")
        return 0
    if existing:
        print(
            f"{folder} contains only {sorted(existing)}: remove it, and the volumes.",
            file=sys.stderr,
        )
        return 2
    # Only the owner can access the folder. The files are readable by all, because the users of the
    # containers, which mount them, are others.
    folder.mkdir(mode=0o700, exist_ok=True)
    for name, text in generate_secrets().items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o444)
    print(f"wrote {len(NAMES)} secrets to {folder}")
    return 0


def generate_secrets() -> dict[str, str]:
    """Return new secrets, by file name."""
    password, key, secret = (secrets.token_urlsafe(32) for _ in range(3))
    identity = {
        "name": "slora",
        "credentials": [{"accessKey": key, "secretKey": secret}],
        "actions": list(ACTIONS),
    }
    service = {"host": "postgres", "dbname": "slora", "user": "slora", "password": password}
    return {
        "postgres_password": password,
        "pg_service": _format_section("slora", service),
        "s3_identities": json.dumps({"identities": [identity]}),
        "aws_credentials": _format_section(
            "default", {"aws_access_key_id": key, "aws_secret_access_key": secret}
        ),
        "ray_token": secrets.token_hex(32),
    }


def _format_section(name: str, values: dict[str, str]) -> str:
    return f"[{name}]\n" + "".join(f"{key}={value}\n" for key, value in values.items())


if __name__ == "__main__":
    sys.exit(main())
