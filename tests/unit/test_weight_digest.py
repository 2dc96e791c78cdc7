"""The digest of weights, and the check of a proof."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from actors.engine import Probe, WeightReceipt
from actors.weight_digest import WeightDigest, digest_tensors
from actors.weight_sync import Sent, check_proof
from pipeline.errors import WeightProofError

TENSORS = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.ones(2, dtype=np.float32)}
SENT = Sent(version=3, digest="d" * 64, receipts={})
EXPECTED = np.array([-1.0, -2.0, -3.0], dtype=np.float32)


def receipt(digest: str = "d" * 64) -> WeightReceipt:
    return WeightReceipt(version=3, digest=digest, stall_s=0.0)


def probe(*logprobs: float, version: int = 3) -> Probe:
    return Probe(logprobs=np.array(logprobs, dtype=np.float32), version=version)


def check(receipt_: WeightReceipt, probe_: Probe) -> float:
    return check_proof("rollout-0", SENT, receipt_, probe_, expected=EXPECTED, bound=1e-4)


def test_the_digest_is_sha256_over_name_dtype_shape_and_bytes_in_sorted_order() -> None:
    a = hashlib.sha256(b"a|float32|(2,)|" + np.ones(2, dtype="<f4").tobytes()).digest()
    b = hashlib.sha256(b"b|float32|(2, 3)|" + np.arange(6, dtype="<f4").tobytes()).digest()
    assert digest_tensors(TENSORS) == hashlib.sha256(a + b).hexdigest()


def test_the_order_of_arrival_does_not_matter() -> None:
    assert digest_tensors(dict(reversed(TENSORS.items()))) == digest_tensors(TENSORS)


@pytest.mark.parametrize(
    "changed",
    [
        {"b": TENSORS["b"], "c": TENSORS["a"]},
        {"b": TENSORS["b"].reshape(3, 2), "a": TENSORS["a"]},
        {"b": TENSORS["b"].view(np.int32), "a": TENSORS["a"]},
        {"b": np.nextafter(TENSORS["b"], np.float32(9)), "a": TENSORS["a"]},
        {"b": TENSORS["b"]},
    ],
    ids=["name", "shape", "dtype", "last bit", "missing"],
)
def test_any_change_changes_the_digest(changed: dict[str, np.ndarray]) -> None:
    assert digest_tensors(changed) != digest_tensors(TENSORS)


def test_torch_and_numpy_agree_also_on_views() -> None:
    tensors = {name: torch.from_numpy(array) for name, array in TENSORS.items()}
    assert digest_tensors(tensors) == digest_tensors(TENSORS)
    assert digest_tensors({"t": TENSORS["b"].T}) == digest_tensors({"t": tensors["b"].T})


def test_bfloat16_tensors_have_a_digest_of_their_own() -> None:
    half = torch.ones(2, dtype=torch.bfloat16)
    expected = hashlib.sha256(b"a|bfloat16|(2,)|" + b"\x80\x3f" * 2).digest()
    assert digest_tensors({"a": half}) == hashlib.sha256(expected).hexdigest()


def test_a_tensor_sent_twice_is_an_error() -> None:
    digest = WeightDigest()
    digest.add("a", TENSORS["a"])
    with pytest.raises(ValueError, match="twice"):
        digest.add("a", TENSORS["a"])


def test_a_proof_within_the_bound_gives_the_largest_difference() -> None:
    assert check(receipt(), probe(-1.0, -2.00005, -3.0)) == pytest.approx(5e-5, rel=0.05)


def test_another_digest_is_refused() -> None:
    with pytest.raises(WeightProofError, match=r"rollout-0 cannot prove weight version 3.*eeee"):
        check(receipt("e" * 64), probe(-1.0, -2.0, -3.0))


def test_an_answer_of_another_version_is_refused() -> None:
    with pytest.raises(WeightProofError, match="version 2"):
        check(receipt(), probe(-1.0, -2.0, -3.0, version=2))


def test_logprobs_beyond_the_bound_are_refused() -> None:
    with pytest.raises(WeightProofError, match=r"differ .* by 2\.0[0-9]e-04"):
        check(receipt(), probe(-1.0, -2.0002, -3.0))


def test_a_probe_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(WeightProofError, match="nan"):
        check(receipt(), probe(-1.0, float("nan"), -3.0))


def test_a_probe_of_another_length_is_refused() -> None:
    with pytest.raises(WeightProofError, match="2 log-probabilities for 3"):
        check(receipt(), probe(-1.0, -2.0))
