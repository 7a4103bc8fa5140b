"""The cache: what makes a stage anew, what does not, and what is left of a stage that was interrupted."""

import json
import mmap

import numpy as np
import pytest

from sameguard.errors import InvalidDataError
from sameguard.evaluation.cache import Cache, _without_prose, array_digest, code_digest, small_json, source_digest


def stage(root, **changes):
    given = {"settings": {"epochs": 3}, "sources": ("contract", "endpoint"), "inputs": {"train": "abc"}} | changes
    return Cache(root).stage("fit", given["settings"], given["sources"], given["inputs"])


def test_a_stage_is_known_by_settings_sources_and_inputs(tmp_path):
    first = stage(tmp_path)
    assert stage(tmp_path).folder == first.folder
    others = [stage(tmp_path, settings={"epochs": 4}), stage(tmp_path, sources=("contract",)), stage(tmp_path, inputs={"train": "abd"})]
    assert len({first.folder, *(other.folder for other in others)}) == 4


def test_comments_docstrings_and_layout_do_not_make_a_stage_anew_but_code_does():
    plain = 'def f(x):\n    """Adds one."""\n    return x + 1\n'
    assert _without_prose(plain) == _without_prose(
        '"""A module."""\n\n# a comment\ndef f(x):\n    """Other words."""\n    return (x + 1)\n'
    )
    assert _without_prose(plain) != _without_prose(plain.replace("+ 1", "+ 2"))
    with pytest.raises(ModuleNotFoundError, match=r"sameguard.no_such_module is not there"):
        source_digest(("no_such_module",))


def test_a_record_says_what_made_it_and_the_digest_follows_the_output(tmp_path):
    made = stage(tmp_path)
    assert not made.done
    with made.making() as making:
        making.save_arrays("scores.npz", {"score": np.arange(3.0)})
        making.facts["accuracy"] = 0.5
    assert made.done
    record = made.record
    assert record["facts"] == {"accuracy": 0.5}
    assert {"code", "machine", "versions", "seconds", "peak_memory_mib", "finished", "sources", "inputs"} <= set(record)
    assert record["code"]["sameguard"] == record["versions"]["sameguard"]
    np.testing.assert_array_equal(made.arrays("scores.npz")["score"], np.arange(3.0))
    other = stage(tmp_path, settings={"epochs": 9})
    with other.making() as making:
        making.save_arrays("scores.npz", {"score": np.arange(3.0)})
    assert other.digest == made.digest
    with (third := stage(tmp_path, settings={"epochs": 10})).making() as making:
        making.save_arrays("scores.npz", {"score": np.arange(4.0)})
    assert third.digest != made.digest


def test_a_cache_knows_what_was_asked_for_and_tells_of_what_begins_to_be_made(tmp_path):
    cache, begun = Cache(tmp_path), []
    cache.watch = begun.append
    first = cache.stage("fit", {"epochs": 3}, ("contract",), {})
    with first.making():
        assert begun == [first]
    again = cache.stage("fit", {"epochs": 3}, ("contract",), {})
    assert again.done
    assert cache.asked == [first, again]
    assert begun == [first]


def test_a_record_says_what_the_process_held_before(tmp_path):
    made = stage(tmp_path)
    with made.making(), mmap.mmap(-1, 64 * 2**20) as fresh:  # pages of its own: the heap might have had them before
        fresh.write(b"x" * len(fresh))
    before, peak = made.record["resident_before_mib"], made.record["peak_memory_mib"]
    assert before is None or peak - before > 60


def test_an_interrupted_stage_is_not_done_and_its_seconds_are_added_later(tmp_path):
    made = stage(tmp_path)
    with pytest.raises(KeyboardInterrupt), made.making():
        raise KeyboardInterrupt
    assert not made.done
    (made.folder / "seconds.json").write_text("100.0")
    with made.making():
        pass
    assert made.record["seconds"] >= 100.0


def test_damage_is_named(tmp_path):
    made = stage(tmp_path)
    with made.making() as making:
        making.save_arrays("scores.npz", {"score": np.arange(3.0)})
    (made.folder / "scores.npz").write_bytes(b"PK\x03\x04 broken")
    with pytest.raises(InvalidDataError, match=r"must be a readable \.npz"):
        made.arrays("scores.npz")
    (made.folder / "record.json").write_text("{")
    with pytest.raises(InvalidDataError, match="must be readable"):
        _ = made.facts


def test_digests_tell_dtype_shape_and_content_apart():
    base = np.arange(4, dtype=np.float32)
    digests = {array_digest(array) for array in (base, base.astype(np.float64), base.reshape(2, 2), base + 1)}
    assert len(digests) == 4
    assert array_digest(base) == array_digest(np.arange(8, dtype=np.float32)[:4].copy())


def test_small_json_is_json():
    value = {"a": [1, {"b": [1.5, None]}], "c": {}, "d": [], "e": {"f": {"g": {"h": 1}}}}
    assert json.loads(small_json(value)) == value


def test_a_function_alone_can_be_digested_and_its_words_do_not_count():
    def first(x):
        """Adds one."""
        return x + 1

    before = code_digest(first)

    def first(x):
        # other words
        return x + 1

    assert code_digest(first) == before

    def first(x):
        return x + 2

    assert code_digest(first) != before
