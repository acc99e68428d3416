"""Record of a running `watch`: what `status` reads of it, and the blocks in the history."""

import json

import pytest

from nftpolicy.compiler.object_names import is_drop_counter
from nftpolicy.runtime.apply.history import History
from nftpolicy.runtime.apply.state_dir import StateDir
from nftpolicy.runtime.apply.watch_record import WatchRecorder, read_watch_record

EVENTS = [
    ("enforcing", {"policy": "small", "file": "p.toml"}),
    ("proof", {"verdict": "refuted", "why": ["P1 wan refuted"]}),
    ("blocked", {"policy": "small", "why": ("P1 wan refuted", "P5 wan refuted"), "then": "..."}),
    ("unblocked", {"why": "the proof succeeds again"}),
    ("restored", {"what": ["table:inet"], "by": "nft", "pid": 7, "ms": 1.0}),
    ("conflict", {"by": "nft", "times": 5}),
    ("socket", {"verdict": "forged", "program": "curl", "pid": 9, "user": 0, "counter": "wan.unentitled", "why": "it"}),
    ("socket", {"verdict": "gone", "program": "curl", "pid": 9}),
    ("socket", {"verdict": "forged", "more": 30}),
]


@pytest.fixture
def logged():
    return []


@pytest.fixture
def recorder(tmp_path, logged):
    history = History(tmp_path / "history")
    return WatchRecorder(StateDir(tmp_path / "state"), history, lambda *event: logged.append(event))


def test_record_has_proof_repairs_and_last_socket(recorder, tmp_path, logged):
    state_dir = StateDir(tmp_path / "state")
    assert read_watch_record(state_dir) is None
    with recorder.running():
        for event in EVENTS:
            recorder.write(*event)
        found = read_watch_record(state_dir)
        second = WatchRecorder(state_dir, History(tmp_path / "history"), lambda *_: None)
        with second.running():
            second.write("proof", {"verdict": "proved"})
        assert read_watch_record(state_dir) == found, "the second one does not record"
    assert logged == EVENTS
    assert (found.verdict, found.failures, found.repairs) == ("refuted", ("P1 wan refuted",), 6)
    assert (found.last_repair["by"], found.last_socket["program"], "why" in found.last_socket) == ("nft", "curl", False)
    assert read_watch_record(state_dir) is None, "its process ended"


def test_new_policy_has_no_verdict_before_its_proof(recorder, tmp_path):
    with recorder.running():
        recorder.write("proof", {"verdict": "proved"})
        recorder.write("enforcing", {"policy": "other"})
        assert read_watch_record(StateDir(tmp_path / "state")).verdict == ""


def test_verdict_counts_only_for_the_policy_that_watch_adopted(recorder, tmp_path):
    state_dir = StateDir(tmp_path / "state")
    with recorder.running():
        state_dir.save_policy("small.toml", b"adopted")
        recorder.write("enforcing", {"policy": "small"})
        recorder.write("proof", {"verdict": "proved"})
        state_dir.save_policy("small.toml", b"applied later")
        record = read_watch_record(state_dir)
    assert record.about(b"adopted") == record
    other = record.about(b"applied later")
    assert (other.verdict, other.proved, other.pid) == ("", "", record.pid)


def test_unreadable_policy_stops_no_event(recorder, tmp_path, logged, monkeypatch):
    def fail(_):
        raise PermissionError("not private")

    state_dir = StateDir(tmp_path / "state")
    with recorder.running():
        monkeypatch.setattr(StateDir, "policy", fail)
        recorder.write("enforcing", {"policy": "small"})
        recorder.write("proof", {"verdict": "proved"})
        record = read_watch_record(state_dir)
    assert [event for event, _ in logged] == ["enforcing", "proof"]
    assert record.about(b"any").verdict == ""


def test_blocks_are_in_the_history(recorder, tmp_path):
    with recorder.running():
        for event in EVENTS:
            recorder.write(*event)
    events = History(tmp_path / "history").read().events
    assert [(event.kind, event.policy, event.why) for event in events] == [
        ("blocked", "small", "P1 wan refuted; P5 wan refuted"),
        ("unblocked", "small", "the proof succeeds again"),
    ]


def test_record_that_cannot_be_written_stops_no_event(tmp_path, logged):
    (tmp_path / "state").write_text("")
    recorder = WatchRecorder(
        StateDir(tmp_path / "state"), History(tmp_path / "state/history"), lambda *e: logged.append(e)
    )
    with recorder.running():
        recorder.write("blocked", {"policy": "small", "why": ()})
    assert [event for event, _ in logged] == ["blocked"]


def test_damaged_record_is_none(recorder, tmp_path):
    state_dir = StateDir(tmp_path / "state")
    with recorder.running():
        path = state_dir.directory / "watch" / "record"
        for content in ("", "[]", "{}", '{"failures": 1}'):
            path.write_text(content)
            assert read_watch_record(state_dir) is None
        good = {"pid": 1, "started": "t", "failures": [], "last_repair": {"time": "t", "what": [], "by": ""},
                "last_socket": {"time": "t", "program": "p", "pid": "", "verdict": "forged"}}  # fmt: skip
        wrong = ({"pid": "1"}, {"repairs": 1.5}, {"verdict": 7}, {"failures": [1]}, {"last_repair": 1},
                 {"last_repair": {}}, {"last_repair": {"time": "t", "what": "w", "by": None}}, {"last_socket": []},
                 {"last_socket": {"time": 1, "program": "p", "pid": 1, "verdict": "v"}})  # fmt: skip
        for change in ({}, *wrong):
            path.write_text(json.dumps({**good, **change}))
            assert (read_watch_record(state_dir) is None) == bool(change), change


@pytest.mark.parametrize("name", ["wan.dropped", "answer.stray", "unnamed-device", "dns-unrouted", "wan.not-local"])
def test_drop_counter_is_no_accept_counter(name):
    assert is_drop_counter(name)
    assert not any(map(is_drop_counter, ("wan.exempt.arp", "wan.forward.lan", "wan.publish.web", "wan.clat")))
