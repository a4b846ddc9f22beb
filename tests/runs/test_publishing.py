"""Whatever is killed when, and whoever overlaps: the output is one attempt's, whole, and result.json comes last."""

from itertools import count

import pytest

from dualview.errors import InputError
from dualview.runs.publishing import offer, publish
from dualview.storage import LocalStore, Store


class Killed(Exception):
    pass


class Mortal:
    """A store whose caller is killed before its n-th call."""

    def __init__(self, store: Store, calls: int) -> None:
        self._store, self._left = store, calls

    def __getattr__(self, name):
        found = getattr(self._store, name)
        if not callable(found):
            return found

        def call(*arguments, **named):
            self._left -= 1
            if self._left < 0:
                raise Killed
            return found(*arguments, **named)

        return call


FILES = ("encoder/model.safetensors", "encoder/README.md", "encoder/1_Pooling/config.json", "result.json")


def export_of(attempt, folder):
    for name in FILES:
        (folder / attempt / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / attempt / name).write_text(f"{name} of {attempt}")
    return folder / attempt


def publish_export(store, attempt, folder):
    offer(store, attempt, export_of(attempt, folder))
    publish(store)


def content(store):
    return {
        entry.key: store.get(entry.key).decode() for entry in store.list() if entry.key != "exported.json"
    }


def test_a_kill_before_any_step_costs_nothing_but_time(tmp_path):
    winners = set()
    for calls in count():
        store = LocalStore(tmp_path / f"store-{calls}")
        try:
            publish_export(Mortal(store, calls), "first", tmp_path)
        except Killed:
            is_done = "result.json" in content(store)
            assert not is_done or all(name in content(store) for name in FILES)
            publish_export(store, "second", tmp_path)
        else:
            break
        found = content(store)
        [winner] = {text.rpartition(" ")[2] for text in found.values()}
        assert found == {name: f"{name} of {winner}" for name in FILES}
        winners.add(winner)
    assert winners == {"first", "second"}
    assert calls > 2 * len(FILES)


def test_two_attempts_that_take_turns_at_every_step_leave_one_of_them(tmp_path):
    """The second goes the whole way between any two steps of the first."""

    class Overtaken(Mortal):
        def __getattr__(self, name):
            found = getattr(self._store, name)

            def call(*arguments, **named):
                self._left -= 1
                if self._left == -1:
                    publish_export(self._store, "second", tmp_path)
                return found(*arguments, **named)

            return call if callable(found) else found

    winners = set()
    for calls in range(30):
        store = LocalStore(tmp_path / f"store-{calls}")
        publish_export(Overtaken(store, calls), "first", tmp_path)
        found = content(store)
        [winner] = {text.rpartition(" ")[2] for text in found.values()}
        assert found == {name: f"{name} of {winner}" for name in FILES}
        winners.add(winner)
    assert winners == {"first", "second"}


def test_nothing_is_published_before_an_export_is_whole(tmp_path):
    store = LocalStore(tmp_path / "store")
    assert not publish(store)
    publish_export(store, "first", tmp_path)
    before = content(store)
    assert publish(store)
    assert content(store) == before


def test_another_file_in_its_place_is_refused(tmp_path):
    store = LocalStore(tmp_path / "store")
    store.put_new("encoder/README.md", b"of a run before", "me")
    with pytest.raises(InputError, match=r"encoder/README\.md: another file is there"):
        publish_export(store, "first", tmp_path)
    assert "result.json" not in content(store)
