"""Downloads against a server on loopback that breaks, stalls, lies and is busy; archives that want out of their folder."""
import gzip
import hashlib
import io
import os
import random
import stat
import subprocess
import sys
import tarfile
import textwrap
import threading
import time
import zipfile
from email.utils import formatdate

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eci_sem import collection as c
from eci_sem import download as d
from eci_sem.collection import InputError, download_beir, load_beir
from eci_sem.download import Patience, fetch, retry_after, unpack

from hub_server import Fault, HubServer, git_sha

QUICK = Patience(timeout=0.3, attempts=3, pause=0.01, longest_pause=0.5, total=20)
DATA = random.Random(1).randbytes(300_000)
SHA = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def server():
    with HubServer() as s:
        s.files["/f.bin"] = DATA
        yield s


def get(server, path, name="/f.bin", **options): return fetch(server.url + name, path, **{"patience": QUICK, "progress": False, "checksum": f"sha256:{SHA}", **options})


def sent(server): return [(s.status, s.range, s.sent) for s in server.log]


# one file

def test_a_file_comes_whole_is_checked_and_is_asked_for_once(server, tmp_path):
    for _ in range(2): assert get(server, tmp_path / "a/f.bin", size=len(DATA)).read_bytes() == DATA
    assert sent(server) == [(200, None, len(DATA))] and os.listdir(tmp_path / "a") == ["f.bin"]
    umask = os.umask(0); os.umask(umask)
    assert stat.S_IMODE((tmp_path / "a/f.bin").stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize("how", ["close", "reset", "stall"])
def test_a_broken_connection_goes_on_where_it_stopped_and_fetches_no_byte_twice(server, tmp_path, how):
    server.fail("/f.bin", Fault(after=100_000, how=how), Fault(after=50_000, how=how))
    assert get(server, tmp_path / "f.bin").read_bytes() == DATA
    assert sent(server) == [(200, None, 100_000), (206, "bytes=100000-", 50_000), (206, "bytes=150000-", 150_000)]
    assert os.listdir(tmp_path) == ["f.bin"] and server.log[1].headers["If-Range"] == f'"{hashlib.md5(DATA).hexdigest()}"'


def test_a_broken_download_is_kept_for_the_next_call(server, tmp_path):
    server.fail("/f.bin", Fault(after=100_000), *[Fault(after=0)] * 3)
    with pytest.raises(InputError, match=r"f.bin from 127.0.0.1:\d+: the connection to 127.0.0.1:\d+ broke .*3 times in a row. Run again later; the 100,000 bytes that came are kept, and it goes on from there; give the folder\.$"): get(server, tmp_path / "f.bin", instead="give the folder")
    assert sorted(os.listdir(tmp_path)) == ["f.bin.part", "f.bin.part.json"] and (tmp_path / "f.bin.part").read_bytes() == DATA[:100_000]
    server.log.clear()
    assert get(server, tmp_path / "f.bin").read_bytes() == DATA
    assert sent(server) == [(206, "bytes=100000-", 200_000)] and os.listdir(tmp_path) == ["f.bin"]


def test_a_killed_process_leaves_what_the_next_one_goes_on_with(server, tmp_path):
    server.fail("/f.bin", Fault(after=200_000, how="stall"))
    script = "import sys\nfrom eci_sem.download import fetch\nfetch(sys.argv[1], sys.argv[2], progress=False)"
    child = subprocess.Popen([sys.executable, "-c", script, server.url + "/f.bin", str(tmp_path / "f.bin")])
    end = time.monotonic() + 30
    while not ((tmp_path / "f.bin.part").exists() and (tmp_path / "f.bin.part").stat().st_size >= 100_000) and time.monotonic() < end: time.sleep(0.02)
    child.kill(); child.wait()
    kept = (tmp_path / "f.bin.part").stat().st_size
    assert 100_000 <= kept <= 200_000
    server.log.clear()
    assert get(server, tmp_path / "f.bin").read_bytes() == DATA and sent(server) == [(206, f"bytes={kept}-", len(DATA) - kept)]


def broken(server, path, n=100_000):
    server.fail("/f.bin", Fault(after=n), *[Fault(after=0)] * 3)
    with pytest.raises(InputError): get(server, path)
    server.log.clear()


def test_a_file_that_changed_on_the_server_is_started_anew(server, tmp_path):
    # without a checksum: nothing but the answers tells that it is another file
    new, old_tag = DATA[::-1], f'"{hashlib.md5(DATA).hexdigest()}"'
    for data, liar in ((new, None), (new[:-7], None),
            # servers that don't know If-Range send the rest of the other file: told by its tag, or by its length
            (new, Fault(status=206, headers={"Content-Range": f"bytes 100000-{len(new) - 1}/{len(new)}", "ETag": '"other"'}, body=new[100_000:])),
            (new[:-7], Fault(status=206, headers={"Content-Range": f"bytes 100000-{len(new) - 8}/{len(new) - 7}", "ETag": old_tag}, body=new[100_000:-7])),
            (new[:-7], Fault(status=206, headers={"Content-Range": f"bytes 100000-{len(new) - 8}/{len(new) - 7}"}, body=new[100_000:-7])),
            # and one that sends another part than was asked for
            (new, Fault(status=206, headers={"Content-Range": f"bytes 0-{len(new) - 1}/{len(new)}", "ETag": old_tag}, body=new))):
        broken(server, tmp_path / "f.bin")
        server.files["/f.bin"], server.faults["/f.bin"] = data, [liar] if liar else []
        assert get(server, tmp_path / "f.bin", checksum=None).read_bytes() == data
        assert server.log[0].range == "bytes=100000-" and server.log[-1].status == 200
        (tmp_path / "f.bin").unlink(); server.files["/f.bin"] = DATA


def test_a_body_of_unknown_length_is_held_against_the_size_that_is_known(server, tmp_path):
    server.fail("/f.bin", Fault(no_length=True, after=1000))
    assert get(server, tmp_path / "f.bin", size=len(DATA)).read_bytes() == DATA and [(s.status, s.range) for s in server.log] == [(200, None), (206, "bytes=1000-")]
    server.fail("/f.bin", Fault(no_length=True))
    with pytest.raises(InputError, match="sends more than the 299,999 bytes expected; nothing was kept"): get(server, tmp_path / "g.bin", size=len(DATA) - 1)
    server.fail("/f.bin", Fault(no_length=True))
    with pytest.raises(InputError, match="sends more than the 10 bytes expected"): get(server, tmp_path / "g.bin", most=10)
    assert os.listdir(tmp_path) == ["f.bin"]
    # nothing known: taken as it comes, and never resumed
    server.log.clear(); server.fail("/f.bin", Fault(no_length=True, tag=""))
    assert get(server, tmp_path / "h.bin", checksum=None).read_bytes() == DATA


def test_a_weak_tag_is_not_sent_but_compared(server, tmp_path):
    server.fail("/f.bin", Fault(after=1000, tag='W/"a"'), Fault(tag='W/"a"'))
    assert get(server, tmp_path / "f.bin").read_bytes() == DATA
    assert "If-Range" not in server.log[1].headers and [(s.status, s.range) for s in server.log] == [(200, None), (206, "bytes=1000-")]
    server.log.clear(); server.fail("/f.bin", Fault(after=1000, tag='W/"a"'), Fault(tag='W/"b"'), Fault(tag='W/"b"'))
    assert get(server, tmp_path / "g.bin", checksum=None).read_bytes() == DATA and [s.status for s in server.log] == [200, 206, 200]


def test_a_server_without_ranges_and_one_whose_file_shrank(server, tmp_path):
    broken(server, tmp_path / "f.bin")
    server.fail("/f.bin", Fault(no_range=True))
    assert get(server, tmp_path / "f.bin").read_bytes() == DATA and [s.status for s in server.log] == [200]
    (tmp_path / "f.bin").unlink()
    broken(server, tmp_path / "f.bin")
    server.fail("/f.bin", Fault(status=416, headers={"Content-Range": "bytes */5"}))
    assert get(server, tmp_path / "f.bin").read_bytes() == DATA and [s.status for s in server.log] == [416, 200]


def test_another_address_or_a_damaged_note_starts_anew(server, tmp_path):
    server.files["/g.bin"] = DATA
    broken(server, tmp_path / "f.bin")
    assert get(server, tmp_path / "f.bin", "/g.bin").read_bytes() == DATA and sent(server) == [(200, None, len(DATA))]
    (tmp_path / "f.bin").unlink()
    for note in ("{", "[]", "{}"):
        broken(server, tmp_path / "f.bin")
        (tmp_path / "f.bin.part.json").write_text(note)
        assert get(server, tmp_path / "f.bin").read_bytes() == DATA and sent(server) == [(200, None, len(DATA))]
        (tmp_path / "f.bin").unlink()


def test_a_damaged_piece_is_found_and_the_file_fetched_once_more(server, tmp_path):
    broken(server, tmp_path / "f.bin")
    with open(tmp_path / "f.bin.part", "r+b") as f: f.write(b"xxxx")
    assert get(server, tmp_path / "f.bin").read_bytes() == DATA
    assert [s.status for s in server.log] == [206, 200]


@pytest.mark.parametrize("kind, good", [("sha256", SHA), ("md5", hashlib.md5(DATA).hexdigest()), ("git", git_sha(DATA))])
def test_a_wrong_checksum_leaves_nothing_and_is_not_tried_again(server, tmp_path, kind, good):
    assert get(server, tmp_path / "good.bin", checksum=f"{kind}:{good}").read_bytes() == DATA
    server.log.clear()
    wrong = good[:-1] + ("0" if good[-1] != "0" else "1")
    with pytest.raises(InputError, match=rf"f.bin from .*: its {kind} is {good[:16]}..., expected {good[:16]}...: damaged on the way, or another file by now. Nothing was kept; run again, or give the folder\.$"): get(server, tmp_path / "f.bin", checksum=f"{kind}:{wrong}", instead="give the folder")
    assert len(server.log) == 1 and os.listdir(tmp_path) == ["good.bin"]


def test_a_file_cut_short_on_the_server_or_too_long_is_refused(server, tmp_path):
    server.fail("/f.bin", Fault(body=DATA[:1000]))
    with pytest.raises(InputError, match=r"has 1,000 bytes, expected 300,000: cut short on the server, or another file by now"): get(server, tmp_path / "f.bin", size=len(DATA))
    with pytest.raises(InputError, match=r"300,000 bytes on .*, more than the limit of 10"): get(server, tmp_path / "f.bin", most=10)
    assert os.listdir(tmp_path) == []


def test_busy_servers_are_waited_for_as_they_ask_and_no_longer(server, tmp_path):
    server.fail("/f.bin", Fault(status=429), Fault(status=429, headers={"Retry-After": "0.4"}), Fault(status=503))
    start = time.monotonic()
    assert get(server, tmp_path / "f.bin", patience=Patience(timeout=0.3, attempts=4, pause=0.01, longest_pause=0.5)).read_bytes() == DATA
    assert 0.4 < time.monotonic() - start < 3 and [s.status for s in server.log] == [429, 429, 503, 200]
    for path, faults, message in (("a", [Fault(status=429, headers={"Retry-After": "3600"})], r"answers 429 \(Too Many Requests\), and the server asks to wait 3,600 s \(longest pause: 0 s\). Run again later"),
                                  ("b", [Fault(status=503, headers={"Retry-After": formatdate(time.time() + 7200, usegmt=True)})], r"answers 503 \(Service Unavailable\), and the server asks to wait 7,[12]\d\d s"),
                                  ("c", [Fault(status=429)] * 5, r"answers 429 \(Too Many Requests\), 3 times in a row"), ("d", [Fault(status=502)] * 5, r"answers 502 \(Bad Gateway\), 3 times in a row. Run again later; give the folder\.$")):
        server.log.clear(); server.faults.clear(); server.fail("/f.bin", *faults)
        start = time.monotonic()
        with pytest.raises(InputError, match=message): get(server, tmp_path / path, instead="give the folder")
        assert time.monotonic() - start < 2 and len(server.log) == min(len(faults), 3) and not (tmp_path / f"{path}.part").exists()


def test_answers_that_will_not_change_are_not_asked_for_again(server, tmp_path):
    for status, message in ((404, r"n.bin: not on 127.0.0.1:\d+ \(status 404\): check the name and the version. Give the folder\."), (401, r"refuses access \(status 401\): it needs a permission or a token \(HF_TOKEN for the hub\)"), (403, "status 403"), (400, r"answers 400 \(Bad Request\), expected the file")):
        server.log.clear(); server.fail("/n.bin", Fault(status=status))
        with pytest.raises(InputError, match=message): get(server, tmp_path / "n.bin", "/n.bin", instead="give the folder")
        assert len(server.log) == 1 and os.listdir(tmp_path) == []


def test_no_network_is_told_after_two_tries(server, tmp_path):
    server.__exit__()
    start = time.monotonic()
    with pytest.raises(InputError, match=r"no connection to 127.0.0.1:\d+ \(NewConnectionError\), 2 times in a row. Run again later; use docstrings\.$"): get(server, tmp_path / "f.bin", instead="use docstrings")
    assert time.monotonic() - start < 2 and os.listdir(tmp_path) == []


def test_the_time_for_a_file_is_bounded_even_when_bytes_drip(server, tmp_path):
    server.fail("/f.bin", *[Fault(after=10, how="stall")] * 100)
    start = time.monotonic()
    with pytest.raises(InputError, match=r"the time for it \(1 s\) is over.*bytes that came are kept"): get(server, tmp_path / "f.bin", patience=Patience(timeout=0.1, attempts=3, pause=0.1, longest_pause=1, total=1))
    assert time.monotonic() - start < 3


def test_two_processes_at_once_fetch_the_file_once(server, tmp_path):
    server.fail("/f.bin", Fault(after=100_000, how="stall"))
    found, errors = [], []
    def work():
        try: found.append(get(server, tmp_path / "f.bin").read_bytes() == DATA)
        except Exception as e: errors.append(e)
    threads = [threading.Thread(target=work) for _ in range(3)]
    for t in threads: t.start()
    for t in threads: t.join(20)
    assert found == [True] * 3 and not errors and sum(s.sent for s in server.log) == len(DATA) and os.listdir(tmp_path) == ["f.bin"]


def test_a_token_is_not_sent_on_to_another_host_nor_shown(server, tmp_path):
    with HubServer() as other:
        other.files["/f.bin"] = DATA
        # another port is another host for this purpose
        server.fail("/f.bin", Fault(status=302, headers={"Location": f"{other.url.replace('127.0.0.1', 'localhost')}/f.bin"}))
        assert get(server, tmp_path / "f.bin", headers={"Authorization": "Bearer secret"}).read_bytes() == DATA
        assert server.log[0].headers["Authorization"] == "Bearer secret" and "Authorization" not in other.log[0].headers
    server.fail("/f.bin", Fault(status=403))
    with pytest.raises(InputError) as e: fetch(server.url.replace("//", "//user:pass@") + "/f.bin?token=abc", tmp_path / "g.bin", headers={"Authorization": "Bearer secret"}, patience=QUICK)
    assert not [t for t in ("secret", "pass", "abc") if t in str(e.value)]


def test_bad_arguments_are_refused_before_anything_is_asked(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="the address of x opens with 'file:///', expected http:// or https://"): fetch("file:///etc/passwd", tmp_path / "x")
    with pytest.raises(InputError, match=r"checksum is 'sha256:ABC', expected 'sha256:', 'md5:' or 'git:' and 64 \(sha256\), 32 \(md5\), 40 \(git\) hexadecimal digits"): fetch("http://127.0.0.1:9/x", tmp_path / "x", checksum="sha256:ABC")
    with pytest.raises(InputError, match="attempts is 0, expected at least 1"): Patience(attempts=0)
    with pytest.raises(InputError, match="timeout is 0, expected a number of seconds"): Patience(timeout=0)
    with pytest.raises(InputError, match="pause is nan"): Patience(pause=float("nan"))
    monkeypatch.setenv("ECI_SEM_NET_TIMEOUT", "0.25"); monkeypatch.setenv("ECI_SEM_NET_ATTEMPTS", "2")
    assert d.patience_of_environment() == Patience(timeout=0.25, attempts=2)
    monkeypatch.setenv("ECI_SEM_NET_PAUSE", "long")
    with pytest.raises(InputError, match="ECI_SEM_NET_PAUSE is 'long' in the environment, expected a number"): fetch("http://127.0.0.1:9/x", tmp_path / "x")


def test_a_full_disk_keeps_what_came_and_says_so(server, tmp_path):
    make_zip(tmp_path / "x.zip", ("a", DATA, 0))
    script = textwrap.dedent("""
        import resource, signal, sys
        from eci_sem.collection import InputError
        from eci_sem.download import fetch, unpack
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        for call in (lambda: fetch(sys.argv[1], sys.argv[2] + "/f.bin", progress=False), lambda: unpack(sys.argv[2] + "/x.zip", sys.argv[2] + "/out")):
            try: call()
            except InputError as e: print(e)
    """)
    out = subprocess.run([sys.executable, "-c", script, server.url + "/f.bin", str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert out.stdout == "no space left for f.bin (File too large): free some and run again; what came is kept.\nno space left while unpacking x.zip (File too large): nothing was kept; free some and run again.\n", out
    assert sorted(os.listdir(tmp_path)) == ["f.bin.part", "f.bin.part.json", "x.zip"]
    server.log.clear()
    assert get(server, tmp_path / "f.bin").read_bytes() == DATA and sent(server) == [(206, "bytes=100000-", 200_000)]


def test_a_folder_that_can_not_be_written_is_one_clear_error(server, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"can't be written to \(.*\); set ECI_SEM_CACHE \(HF_HOME for the hub\) to a folder that can"): get(server, tmp_path / "file/f.bin")
    assert server.log == []


def test_no_room_is_told_before_the_first_byte(server, tmp_path, monkeypatch):
    monkeypatch.setattr(d.shutil, "disk_usage", lambda p: type("U", (), dict(free=1000))())
    with pytest.raises(InputError, match=r"300,000 bytes to fetch, and the disk has 1,000 free: free some space, or set ECI_SEM_CACHE \(HF_HOME for the hub\) to a folder on another disk"): get(server, tmp_path / "f.bin")


@given(cuts=st.lists(st.tuples(st.integers(0, 5000), st.sampled_from(["close", "reset", "no_range", "429", "500", "whole"])), max_size=6), size=st.integers(0, 5000))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_breaks_the_file_is_whole_or_absent(tmp_path_factory, cuts, size):
    data, tmp = random.Random(size).randbytes(size), tmp_path_factory.mktemp("f")
    with HubServer() as server:
        server.files["/f.bin"] = data
        faults = {"429": Fault(status=429), "500": Fault(status=500), "whole": Fault()}
        server.fail("/f.bin", *(faults.get(how) or Fault(after=n, how="close" if how == "no_range" else how, no_range=how == "no_range") for n, how in cuts))
        for _ in range(8):
            try: path = fetch(server.url + "/f.bin", tmp / "f.bin", checksum=f"sha256:{hashlib.sha256(data).hexdigest()}", patience=Patience(timeout=0.3, attempts=2, pause=0, total=10), progress=False)
            except InputError: assert not (tmp / "f.bin").exists()
            else: break
        assert path.read_bytes() == data and os.listdir(tmp) == ["f.bin"]


def test_what_a_server_asks_to_wait():
    assert [retry_after(v) for v in ("0", "1.5", " 7 ", None, "", "soon", "-1", "9" * 12)] == [0, 1.5, 7, None, None, None, None, None]
    assert 98 < retry_after(formatdate(time.time() + 100, usegmt=True)) <= 100 and retry_after(formatdate(0, usegmt=True)) == 0


# archives

def make_zip(path, *entries):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        for name, data, mode in entries:
            info = zipfile.ZipInfo(name); info.external_attr = mode << 16
            z.writestr(info, data, zipfile.ZIP_DEFLATED)
    return path


def make_tar(path, *entries, mode="w:gz"):
    with tarfile.open(path, mode) as t:
        for name, data, kind in entries:
            info = tarfile.TarInfo(name)
            if isinstance(data, bytes): info.size = len(data); t.addfile(info, io.BytesIO(data)); continue
            info.type, info.linkname = kind, data or ""
            t.addfile(info)
    return path


GOOD = [("tiny/a.txt", b"alpha" * 1000), ("tiny/deep/er/b.txt", b"beta"), ("tiny/empty", b"")]


@pytest.mark.parametrize("make", ["zip", "w", "w:gz", "w:bz2", "w:xz"])
def test_archives_unpack_whole(tmp_path, make):
    path = make_zip(tmp_path / "x", *((n, b, 0o100644) for n, b in GOOD)) if make == "zip" else make_tar(tmp_path / "x", ("./", None, tarfile.DIRTYPE), ("tiny", None, tarfile.DIRTYPE), *((n, b, None) for n, b in GOOD), mode=make)
    assert {p.relative_to(tmp_path / "out").as_posix(): p.read_bytes() for p in unpack(path, tmp_path / "out").rglob("*") if p.is_file()} == dict(GOOD)
    assert (unpack(path, tmp_path / "in", inner="tiny/deep") / "er/b.txt").read_bytes() == b"beta"
    with pytest.raises(InputError, match="out: is there already"): unpack(path, tmp_path / "out")
    with pytest.raises(InputError, match="holds no folder 'tin'"): unpack(path, tmp_path / "none", inner="tin")
    assert sorted(os.listdir(tmp_path)) == ["in", "out", "x"]


BAD_NAMES = ["../up", "/abs", "a/../../up", "..", "C:/x", "a\\..\\..\\b", "//x", "a/.."]


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_leave_the_folder_are_refused(tmp_path, kind, name):
    root = tmp_path / "deep/er"; root.mkdir(parents=True)
    entries = [("good.txt", b"x"), (name, b"evil")]
    path = make_zip(root / "x", *((n, b, 0o100644) for n, b in entries)) if kind == "zip" else make_tar(root / "x", *((n, b, None) for n, b in entries))
    with pytest.raises(InputError, match="which leaves its folder; expected relative names without '..'. Nothing was written"): unpack(path, root / "out")
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["x"] and os.listdir(root) == ["x"]


@pytest.mark.parametrize("entry, what", [(("l", "/etc/passwd", tarfile.SYMTYPE), "a link"), (("l", "good.txt", tarfile.SYMTYPE), "a link"), (("l", "../x", tarfile.LNKTYPE), "a link"), (("p", None, tarfile.FIFOTYPE), "a device or a pipe"), (("d", None, tarfile.CHRTYPE), "a device or a pipe")])
def test_links_and_devices_are_refused(tmp_path, entry, what):
    path = make_tar(tmp_path / "x", ("good.txt", b"x", None), entry, ("l/evil", b"x", None))
    with pytest.raises(InputError, match=f"'{entry[0]}' is {what}, expected files and folders only"): unpack(path, tmp_path / "out")
    assert os.listdir(tmp_path) == ["x"]


def test_links_in_zips_are_refused(tmp_path):
    for mode, what in ((stat.S_IFLNK | 0o777, "a link"), (stat.S_IFIFO | 0o600, "a device or a pipe")):
        with pytest.raises(InputError, match=f"'l' is {what}"): unpack(make_zip(tmp_path / "x", ("good.txt", b"x", 0o100644), ("l", b"/etc/passwd", mode)), tmp_path / "out")
        assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_bombs_stop_at_the_limit(tmp_path, kind):
    big = b"\0" * 5_000_000
    path = make_zip(tmp_path / "x", ("a", big, 0), ("b", big, 0)) if kind == "zip" else make_tar(tmp_path / "x", ("a", big, None), ("b", big, None))
    assert path.stat().st_size < 100_000
    with pytest.raises(InputError, match="unpacks to more than 9,999,999 bytes; raise most_bytes if that is right. Nothing was unpacked"): unpack(path, tmp_path / "out", most_bytes=9_999_999)
    with pytest.raises(InputError, match="more than 1 entries"): unpack(path, tmp_path / "out", most_files=1)
    assert os.listdir(tmp_path) == ["x"] and sum(p.stat().st_size for p in unpack(path, tmp_path / "out", most_bytes=10_000_000).iterdir()) == 10_000_000


def test_a_header_that_claims_gigabytes_is_not_read(tmp_path):
    info = tarfile.TarInfo("long"); info.type, info.size = tarfile.GNUTYPE_LONGNAME, 8 << 30
    with gzip.open(tmp_path / "x", "wb") as f: f.write(info.tobuf(tarfile.GNU_FORMAT) + b"\0" * 2048)
    with pytest.raises(InputError, match="a header of 8,589,93[0-9,]* bytes; not an archive of files"): unpack(tmp_path / "x", tmp_path / "out")


def test_the_same_name_twice_and_a_file_in_the_way(tmp_path):
    with pytest.warns(UserWarning): make_zip(tmp_path / "x", ("a", b"1", 0), ("a", b"2", 0))
    with pytest.raises(InputError, match="holds 'a' twice"): unpack(tmp_path / "x", tmp_path / "out")
    with pytest.raises(InputError, match="can't be unpacked"): unpack(make_zip(tmp_path / "x", ("a", b"1", 0), ("a/b", b"2", 0)), tmp_path / "out")
    assert os.listdir(tmp_path) == ["x"]


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_damaged_archives_give_one_clear_error_or_the_whole_content(tmp_path_factory, data):
    tmp = tmp_path_factory.mktemp("a")
    kind = data.draw(st.sampled_from(["zip", "w", "w:gz", "w:xz"]))
    path = make_zip(tmp / "x", *((n, b, 0) for n, b in GOOD)) if kind == "zip" else make_tar(tmp / "x", *((n, b, None) for n, b in GOOD), mode=kind)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 4))): raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw[:data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw)
    before = {p for p in tmp.parent.iterdir()}
    try: unpack(path, tmp / "out")
    except InputError as e: assert len(str(e)) < 400 and os.listdir(tmp) == ["x"]
    else: assert all(p.resolve().is_relative_to((tmp / "out").resolve()) and not p.is_symlink() for p in (tmp / "out").rglob("*"))
    assert {p for p in tmp.parent.iterdir()} == before
