"""Downloads, against a server on this machine: resumed where they were cut, checked, and told plainly where they fail."""
import hashlib
import json
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from data import download, prepare

PLAY = "".join(f"ROMEO:\nLine {i}, but soft é!\n\n" for i in range(20_000)).encode("utf-8")     # 0.6 MB, several chunks


class Handler(BaseHTTPRequestHandler):
    """Serves server.files with Range, as the server's fields say; notes the Range of every request."""

    def do_GET(self):
        server, data = self.server, self.server.files.get(self.path)
        server.asked.append(self.headers.get("Range"))
        if data is None:
            return self.send_error(404)
        begin = int(self.headers["Range"][6:-1]) if server.ranges and "Range" in self.headers else 0
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(data) - begin))
        if begin:
            self.send_header("Content-Range", f"bytes {begin + server.shift}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        rest = data[begin:]
        if server.cuts:                                   # send so many bytes, then hang up
            rest = rest[:server.cuts.pop(0)]
        self.wfile.write(rest)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.asked, server.cuts, server.ranges, server.shift = {"/input.txt": PLAY}, [], [], True, 0
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    offer(monkeypatch, server, "tinyshakespeare", "input.txt", PLAY)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def offer(monkeypatch, server, name, file, data):
    server.files[f"/{file}"] = data
    monkeypatch.setitem(download.SETS, name, {
        "url": f"http://127.0.0.1:{server.server_port}/{file}", "size": len(data), "sha256": hashlib.sha256(data).hexdigest(),
        "licence": "none"})


def test_a_file_comes_in_whole(server, tmp_path, capsys):
    assert download.main(["tinyshakespeare", "--folder", str(tmp_path)]) == 0
    text = tmp_path / "tinyshakespeare.txt"
    assert text.read_bytes() == PLAY == (tmp_path / "tinyshakespeare" / "input.txt").read_bytes()
    assert capsys.readouterr().out == f"{text}: {len(PLAY):,} bytes (none); python train.py --corpus={text}\n"
    assert len(prepare.paragraphs(prepare.read_text(text))) == 20_000 and server.asked == [None]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["input.txt", "tinyshakespeare", "tinyshakespeare.txt"]
    download.download("tinyshakespeare", tmp_path)
    assert server.asked == [None]                         # what is there is not fetched again


def test_a_cut_connection_is_taken_up_where_it_ended(server, tmp_path):
    server.cuts = [200_001, 0, 150_000]                   # the second try brings nothing, and the run ends
    with pytest.raises(ConnectionError, match=f"200,001 of {len(PLAY):,} bytes are here"):
        download.download("tinyshakespeare", tmp_path)
    part = tmp_path / "tinyshakespeare" / "input.txt.part"
    assert part.read_bytes() == PLAY[:200_001] and not (tmp_path / "tinyshakespeare.txt").exists()
    text = download.download("tinyshakespeare", tmp_path)                     # the next run goes on, and breaks once more
    assert text.read_bytes() == PLAY and not part.exists()
    assert server.asked == [None, "bytes=200001-", "bytes=200001-", "bytes=350001-"]


def test_a_server_without_ranges_begins_anew_one_with_another_range_is_refused(server, tmp_path):
    part = tmp_path / "tinyshakespeare" / "input.txt.part"
    part.parent.mkdir()
    part.write_bytes(PLAY[:100])
    server.shift = 5
    with pytest.raises(ConnectionError, match="asked for bytes 100-, the server sent bytes 105-"):
        download.download("tinyshakespeare", tmp_path)
    assert part.read_bytes() == PLAY[:100]
    server.ranges = False
    assert download.download("tinyshakespeare", tmp_path).read_bytes() == PLAY and server.asked == ["bytes=100-"] * 2


@pytest.mark.parametrize("data", [PLAY[:-1] + b"?", PLAY + b"and a page of advertisements" * 9999])
def test_a_file_that_is_another_is_refused(server, tmp_path, capsys, data):
    server.files["/input.txt"] = data
    assert download.main(["tinyshakespeare", "--folder", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"expected {len(PLAY):,} with {hashlib.sha256(PLAY).hexdigest()[:12]}" in error
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    server.files["/input.txt"] = PLAY
    assert download.main(["tinyshakespeare", "--folder", str(tmp_path)]) == 0


def test_without_a_network_a_line_says_what_to_put_where(server, tmp_path, capsys, monkeypatch):
    url = "http://127.0.0.1:1/input.txt"                  # nobody listens there
    monkeypatch.setitem(download.SETS, "tinyshakespeare", {**download.SETS["tinyshakespeare"], "url": url})
    assert download.main(["tinyshakespeare", "--folder", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    path = tmp_path / "tinyshakespeare" / "input.txt"
    assert error.startswith(f"error: {url}: ") and "refused" in error and error.count("\n") == 1
    assert f"fetch it elsewhere, put it at {path}, and run this again" in error
    path.write_bytes(PLAY)                                # as told
    assert download.main(["tinyshakespeare", "--folder", str(tmp_path)]) == 0
    path.write_bytes(PLAY[:-1])
    assert download.main(["tinyshakespeare", "--folder", str(tmp_path)]) == 2
    assert "move it away" in capsys.readouterr().err and path.read_bytes() == PLAY[:-1]       # a user's file is not deleted


def test_what_the_server_lacks_is_told(server, tmp_path, capsys):
    del server.files["/input.txt"]
    assert download.main(["tinyshakespeare", "--folder", str(tmp_path)]) == 2
    assert "HTTP Error 404" in capsys.readouterr().err and len(server.asked) == 1


def test_an_unknown_name_lists_the_known_ones(capsys):
    with pytest.raises(SystemExit) as caught:
        download.main(["shakespear"])
    error = capsys.readouterr().err
    assert caught.value.code == 2 and all(name in error for name in download.SETS)


def test_every_set_has_a_text_and_a_pinned_address():
    assert list(download.TEXTS) == list(download.SETS)
    for entry in download.SETS.values():
        assert len(bytes.fromhex(entry["sha256"])) == 32 and entry["size"] > 1_000_000
        assert entry["url"].startswith("https://") and any(len(part) == 40 for part in entry["url"].split("/"))


# --- as published -> text -----------------------------------------------------------------------------------------------

def test_stories_are_parted_by_blank_lines(server, tmp_path, monkeypatch):
    data = "Once.\nUpon.\n<|endoftext|>\n\nTwo é.\n\nHalf.\n<|endoftext|>\n".encode("utf-8")
    offer(monkeypatch, server, "tinystories", "TinyStories-valid.txt", data)
    text = download.download("tinystories", tmp_path)
    assert text.read_text(encoding="utf-8") == "Once.\nUpon.\n\nTwo é.\n\nHalf.\n"


def test_marks_of_articles_join_their_words(server, tmp_path, monkeypatch):
    raw = (" \n = Oslo = \n \n The well @-@ known town ( pop. 7 @,@ 000 ) , Anna 's home , is 0 @.@ 5 m high ; she does n't mind . \n"
           " It is , they say , \" red \" . Why ? [ 1 ] \n \n")
    with zipfile.ZipFile(tmp_path / "w.zip", "w") as archive:
        archive.writestr("wikitext-2-raw/wiki.train.raw", raw)
    offer(monkeypatch, server, "wikitext", "w.zip", (tmp_path / "w.zip").read_bytes())
    assert download.download("wikitext", tmp_path).read_text(encoding="utf-8") == (
        "= Oslo =\n\nThe well-known town (pop. 7,000), Anna's home, is 0.5 m high; she doesn't mind.\n\n"
        'It is, they say, " red ". Why? [1]\n')


def test_instructions_are_json_lines_and_text(server, tmp_path, monkeypatch, capsys):
    rows = [{"instruction": "Who?", "context": "", "response": "Anna.", "category": "x"},
            {"instruction": "Where?\u2028", "context": "In Oslo.\n", "response": "Oslo.", "category": "x"}]
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8")
    offer(monkeypatch, server, "dolly", "d.jsonl", data)
    assert download.download("dolly", tmp_path).read_text(encoding="utf-8") == "Who?\n\nAnna.\n\nWhere?\n\nIn Oslo.\n\nOslo.\n"
    assert (tmp_path / "dolly" / "d.jsonl").read_bytes() == data
    for bad in (b"[]\n", b'{"instruction": "a", "context": 1, "response": "b"}\n', b"{\n"):
        offer(monkeypatch, server, "dolly", "e.jsonl", data + bad)
        assert download.main(["dolly", "--folder", str(tmp_path)]) == 2
        assert "e.jsonl:3: expected an object with the strings" in capsys.readouterr().err
        (tmp_path / "dolly" / "e.jsonl").unlink()
