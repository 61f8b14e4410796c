"""Downloads, against a server on this machine: checked, refused."""

import hashlib
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from adapters.download import SETS, download, main

PLAY = "".join(f"ROMEO:\nLine {i}, but soft é!\n\n" for i in range(20_000)).encode()       # several chunks


class Handler(BaseHTTPRequestHandler):
    log_message = lambda *_: None  # noqa: E731

    def do_GET(self):
        server, data = self.server, self.server.files.get(self.path)
        server.asked.append(self.path)
        if data is None:
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def server(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.asked = {}, []
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    def offer(name, file, data):
        server.files[f"/{file}"], url = data, f"http://127.0.0.1:{server.server_port}/{file}"
        monkeypatch.setitem(SETS, name, (url, len(data), hashlib.sha256(data).hexdigest(), "none"))
    server.offer = offer
    offer("tinyshakespeare", "input.txt", PLAY)
    yield server
    server.shutdown()
    server.server_close()


def test_a_file_comes_in_whole(server, tmp_path, capsys):
    text = tmp_path / "tinyshakespeare.txt"
    for _ in range(2):
        assert main(["tinyshakespeare", f"--folder={tmp_path}"]) is None
        assert text.read_bytes() == PLAY == (tmp_path / "tinyshakespeare/input.txt").read_bytes()
        assert f"{text}: {len(PLAY):,} bytes (none)" in capsys.readouterr().out
    assert server.asked == ["/input.txt"]                         # what is there is not fetched again


@pytest.mark.parametrize("data", [PLAY[:-9], PLAY[:-1] + b"?", PLAY + b"and a page of advertisements" * 9999])
def test_another_file_is_refused_and_one_may_be_put_there_by_hand(server, tmp_path, data):
    server.files["/input.txt"], path = data, tmp_path / "tinyshakespeare/input.txt"
    with pytest.raises(ValueError, match=f"expected {len(PLAY):,} bytes with SHA-256 .*; run this again"):
        download("tinyshakespeare", tmp_path)
    path.parent.mkdir()
    path.write_bytes(data)
    with pytest.raises(ValueError, match="move .* away"):
        download("tinyshakespeare", tmp_path)
    path.unlink()                                         # it is there: a user's file is not deleted
    server.files = {}
    with pytest.raises(ConnectionError, match=f"HTTP Error 404.*put it at {re.escape(str(path))}, and run"):
        download("tinyshakespeare", tmp_path)
    path.write_bytes(PLAY)                                # as told
    assert download("tinyshakespeare", tmp_path).read_bytes() == PLAY and len(server.asked) == 2


def test_the_table_pins_revisions():
    for url, size, sha256, _ in SETS.values():
        assert re.fullmatch("https://.*/[0-9a-f]{40}/.*", url) and len(bytes.fromhex(sha256)) == 32 and size


def test_texts_are_paragraphs_between_blank_lines(server, tmp_path):
    def text(name, file, data):
        server.offer(name, file, data)
        return download(name, tmp_path).read_text(encoding="utf-8")
    stories = "Once.\nUpon.\n<|endoftext|>\n\nTwo é.\n\nHalf.\n<|endoftext|>\n".encode()
    assert text("tinystories", "s.txt", stories) == "Once.\nUpon.\n\nTwo é.\n\nHalf.\n"
    data = '{"instruction": "Where?\u2028", "context": "", "response": "Oslo."}\n'.encode()
    assert text("dolly", "d.jsonl", data) == "Where?\n\nOslo.\n"


def test_an_archive_is_checked_and_left_as_it_is(server, tmp_path, capsys):
    server.offer("babi", "tasks.tar.gz", b"\x1f\x8b packed")
    main(["babi", f"--folder={tmp_path}"])
    path = tmp_path / "babi" / "tasks.tar.gz"
    assert f"{path}: 9 bytes (none); tar -xzf {path} -C {tmp_path}\n" == capsys.readouterr().out
    assert path.read_bytes() == b"\x1f\x8b packed" and [*tmp_path.iterdir()] == [tmp_path / "babi"]
