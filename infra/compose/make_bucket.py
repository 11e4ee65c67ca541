"""Create the given buckets on the S3 server of the environment, unless they exist."""

import sys

import boto3
from botocore.exceptions import ClientError

EXISTS_CODES = {"BucketAlreadyOwnedByYou", "BucketAlreadyExists"}


def main(names: list[str]) -> int:
    client = boto3.session.Session().client("s3")
    for name in names:
        try:
            client.create_bucket(Bucket=name)
        except ClientError as error:
            if error.response["Error"]["Code"] not in EXISTS_CODES:
                raise
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
