"""Keys out of a list's page: all of them by the short way, or none and boto3's own."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from jobs.store.s3.list_keys import KEYS, _extract_keys, _read_keys

PAGE = (
    b'<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
    b"<IsTruncated>false</IsTruncated>"
    b"<Contents><Key>a+b%3Cx%3E</Key><Size>1</Size></Contents>"
    b"<Contents><ETag>&#34;0&#34;</ETag><Key>a&amp;amp;b</Key></Contents>"
    b"<EncodingType>url</EncodingType></ListBucketResult>"
)


def parse_page(body: bytes, status: int = 200) -> tuple[bytes, dict[str, list[str]]]:
    response, parsed = {"status_code": status, "body": body}, dict[str, list[str]]()
    _extract_keys(response, parsed)
    return response["body"], parsed


def test_the_keys_are_taken_and_the_rest_is_left():
    body, parsed = parse_page(PAGE)
    assert parsed == {KEYS: ["a+b%3Cx%3E", "a&amp;b"]}
    assert b"Contents" not in body and b"<IsTruncated>false</IsTruncated><EncodingType>" in body
    assert _read_keys({**parsed, "EncodingType": "url"}) == ["a b<x>", "a&amp;b"]
    assert _read_keys({**parsed, "Contents": [{"Key": "c"}]}) == ["a+b%3Cx%3E", "a&amp;b", "c"]


def test_a_page_that_is_cut_short_anywhere_is_none_to_boto3_either():
    for at in range(1, len(PAGE)):
        body, _ = parse_page(PAGE[:at])
        with pytest.raises(ElementTree.ParseError):
            ElementTree.fromstring(body)
    ElementTree.fromstring(parse_page(PAGE)[0])


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (PAGE, 503),
        (PAGE.replace(b"<Key>a+b%3Cx%3E</Key>", b""), 200),
        (PAGE.replace(b"<Key>a+b%3Cx%3E</Key>", b"<Key></Key>"), 200),
        (b"", 200),
    ],
    ids=["an error", "an entry without a key", "an empty key", "nothing"],
)
def test_what_is_not_as_s3_writes_it_is_left_to_boto3(body: bytes, status: int):
    keys, parsed = parse_page(body, status)
    assert keys == body and not parsed.get(KEYS)
