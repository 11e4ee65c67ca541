"""RAY_ADDRESS: each form, each fault, and an address where nothing listens. No Ray."""

from __future__ import annotations

import socket

import pytest

from jobs.errors import InputError, Unreachable
from jobs.train.cluster.ray_address import check_listening, read_ray_address


@pytest.mark.parametrize(
    ("value", "address"),
    [
        ("", ""),
        ("local", "local"),
        (" Auto ", "auto"),
        ("head:6379", "head:6379"),
        ("[::1]:6379", "[::1]:6379"),
        ("http://head:8265/", "http://head:8265"),
        ("https://ray.example.org/cluster", "https://ray.example.org/cluster"),
    ],
)
def test_an_address_is_read_in_each_form(value: str, address: str):
    assert read_ray_address({"RAY_ADDRESS": value}) == address
    assert read_ray_address({}) == ""


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("ray://head:10001", "Ray Client"),
        ("head", "not an address"),
        ("head:99999", "no valid port"),
        ("head:0", "no valid port"),
        ("http://head:x", "not a valid URL"),
        ("http://", "not an address"),
        ("http://a b:1", "not a valid URL"),
        ("grpc://head:1", "not an address"),
    ],
)
def test_another_value_is_a_fault_of_the_variable(value: str, problem: str):
    with pytest.raises(InputError) as caught:
        read_ray_address({"RAY_ADDRESS": value})
    [fault] = caught.value.faults
    assert (fault.key, problem in fault.problem) == ("RAY_ADDRESS", True)
    assert "http://HEAD:8265" in fault.remedy


def test_a_stale_address_is_told_at_once():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        check_listening(address)
    with pytest.raises(Unreachable, match=f"No Ray listens at {address}"):
        check_listening(address)
