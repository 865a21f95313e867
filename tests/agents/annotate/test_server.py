import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request

import numpy as np
import pytest
from PIL import Image

from seggym.agents.annotate.server import MAX_BODY, AnnotationServer
from seggym.agents.maskal.workflow import AnnotateFolder, AnnotationsPending
from seggym.cohorts.annotations.labelme import labelme_content
from seggym.cohorts.annotations.model import Annotation, Instance, Shape
from seggym.cohorts.annotations.reading import open_image_folder
from seggym.cohorts.annotations.writing import annotation_files
from seggym.errors import SeggymError

BOX = Shape("rectangle", np.array([(1.0, 1), (9, 7)]))
FOUND = Annotation("b.png", 40, 30, (Instance("ripe", (BOX, BOX), 1, 0.5),))


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a.png", "b.png", "c.tif"):
        Image.new("RGB", (40, 30), (9, 8, 7)).save(folder / name)
    (tmp_path / "secret.png").write_bytes((folder / "a.png").read_bytes())
    (folder / "notes.txt").write_text("private")
    return folder


@pytest.fixture
def server(root):
    with AnnotationServer(root) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server, address, method="GET", body=None, token=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
    text = json.dumps(body) if isinstance(body, dict) else body
    given = {"Content-Type": "application/json"} if body is not None else {}
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, f"/{server.token if token is None else token}/{address}", text, given)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, content, answer


def test_it_listens_on_this_machine_only(server):
    assert server.server_address[0] == "127.0.0.1"
    assert server.socket.getsockname()[0] == "127.0.0.1"
    assert len(server.token) >= 32
    assert server.url == f"http://127.0.0.1:{server.server_address[1]}/{server.token}/"


def test_images_are_listed_with_the_least_certain_first_and_served_as_png(root, server):
    status, content, answer = ask(server, "images")
    assert status == 200
    assert [entry["name"] for entry in json.loads(content)["images"]] == ["a.png", "b.png", "c.tif"]
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    status, content, answer = ask(server, "image/c.tif")
    assert (status, answer.headers["Content-Type"]) == (200, "image/png")
    assert content.startswith(b"\x89PNG")


def test_the_order_and_the_state_of_a_query(root):
    predicted = {"b.png": FOUND, "a.png": Annotation("a.png", 40, 30)}
    with pytest.raises(AnnotationsPending):
        AnnotateFolder(root, ["raw", "ripe"]).annotate(
            ["a.png", "b.png", "c.tif"], {"a.png": 0.75, "c.tif": 0.25}, lambda names: predicted
        )
    with AnnotationServer(root / "annotate") as server:
        overview = server.desk.overview()
        assert overview == {
            "images": [
                {"name": "c.tif", "certainty": 0.25, "state": "open"},
                {"name": "a.png", "certainty": 0.75, "state": "predicted"},
                {"name": "b.png", "certainty": None, "state": "predicted"},
            ],
            "classes": ["raw", "ripe"],
        }
        server.desk.save("b.png", server.desk.content("b.png"))
        assert server.desk.overview()["images"][2]["state"] == "saved"
    assert open_image_folder(root / "annotate").annotation("b.png") == FOUND


def test_what_is_saved_is_read_again_with_what_other_programs_put_there(root, server):
    own = labelme_content(FOUND) | {"flags": {"checked": True}, "imageData": "AAAA", "imagePath": "../x/b.png"}
    own["shapes"][0]["description"] = "soft"
    (root / "b.json").write_text(json.dumps(own))
    content = json.loads(ask(server, "annotation/b.png")[1])
    assert content["imageData"] is None
    content["shapes"][0]["points"] = [[2, 2], [10, 8]]
    assert ask(server, "annotation/b.png", "PUT", content)[0] == 200
    written = json.loads((root / "b.json").read_text())
    assert written["flags"] == {"checked": True}
    assert written["shapes"][0]["description"] == "soft"
    assert written["imagePath"] == "b.png"
    found = open_image_folder(root).annotation("b.png")
    assert found.instances[0].shapes[0].points.tolist() == [[2, 2], [10, 8]]


def test_other_formats_are_opened_and_saved_as_labelme(root, server):
    (root / "b.xml").write_bytes(annotation_files([FOUND], [], "cvat")["b.xml"])
    (root / "all.json").write_bytes(annotation_files([FOUND.__class__("a.png", 40, 30)], [], "coco").popitem()[1])
    for name in ("a.png", "b.png"):
        content = json.loads(ask(server, f"annotation/{name}")[1])
        assert ask(server, f"annotation/{name}", "PUT", content)[0] == 200
    assert sorted(path.name for path in root.iterdir() if path.suffix in (".json", ".replaced")) == [
        "a.json",
        "all.json",
        "b.json",
        "b.xml.replaced",
    ]
    assert open_image_folder(root).annotation("b.png") == FOUND


@pytest.mark.parametrize("token", ["", "x", "images", "%00", "%C3%A9"])
def test_a_foreign_token_is_refused(server, token):
    for address in ("", "images", "image/a.png"):
        assert ask(server, address, token=token)[0] == 403


def test_foreign_hosts_and_pages_are_refused(server):
    port = server.server_address[1]
    assert ask(server, "images", Host="evil.example")[0] == 403
    assert ask(server, "images", Host=f"evil.example:{port}")[0] == 403
    assert ask(server, "images", Host=f"localhost:{port}")[0] == 200
    assert ask(server, "annotation/a.png", "PUT", {}, Origin="http://evil.example")[0] == 403
    assert ask(server, "annotation/a.png", "PUT", {}, Origin="null")[0] == 403


@pytest.mark.parametrize(
    "name",
    [
        "../secret.png",
        "..%2fsecret.png",
        "%2e%2e%2fsecret.png",
        "..%5csecret.png",
        "%2fetc%2fpasswd",
        "/etc/passwd",
        "notes.txt",
        "a.json",
        "",
        ".",
        "a.png%00",
        "a.png/",
        "A.PNG",
    ],
)
def test_no_file_but_the_images_can_be_reached(root, server, name):
    before = sorted(path.name for path in (*root.iterdir(), *root.parent.iterdir()))
    for kind in ("image", "annotation"):
        status, content, _ = ask(server, f"{kind}/{name}")
        assert status == 404
        assert b"private" not in content
    status, _, _ = ask(server, f"annotation/{name}", "PUT", labelme_content(FOUND))
    assert status == 404
    assert sorted(path.name for path in (*root.iterdir(), *root.parent.iterdir())) == before
    assert ask(server, f"../{name}")[0] == 404
    assert ask(server, "page.py")[0] == 404
    assert ask(server, "server.py")[0] == 404


def test_an_image_that_became_a_link_is_not_followed(root, server):
    (root / "a.png").unlink()
    (root / "a.png").symlink_to(root.parent / "secret.png")
    status, content, _ = ask(server, "image/a.png")
    assert status == 422
    assert b"symbolic link" in content
    (root / "a.png").unlink()
    os.link(root / "b.png", root / "a.png")
    (root / "a.json").symlink_to(root.parent / "out.json")
    assert ask(server, "annotation/a.png", "PUT", labelme_content(Annotation("a.png", 40, 30)))[0] == 422
    assert not (root.parent / "out.json").exists()


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("{", b"not readable JSON"),
        ("[]", b"expected a JSON object"),
        ({"shapes": [{"label": "a", "points": [[1, 2]]}]}, b"a polygon of 1 points"),
        ({"shapes": [], "imageWidth": 41, "imageHeight": 30}, b"would be for 41 x 30"),
        ('{"shapes": [], "other": 1e999}', b"numbers or nesting that JSON has not"),
    ],
)
def test_what_is_no_annotation_is_not_saved(root, server, body, expected):
    status, content, _ = ask(server, "annotation/a.png", "PUT", body)
    assert status == 422
    assert expected in content
    assert not (root / "a.json").exists()


def test_oversized_and_unmeasured_files_are_refused_unread(root, server):
    status, _, _ = ask(server, "annotation/a.png", "PUT", "{}", Content_Length=str(MAX_BODY + 1))
    assert status == 413
    assert ask(server, "annotation/a.png", "PUT", "{}", Content_Length="9" * 30)[0] == 413
    assert ask(server, "annotation/a.png", "PUT", "{}", Content_Length="-5")[0] == 411
    assert ask(server, "annotation/a.png", "PUT", "{}", Content_Type="text/plain")[0] == 415
    with socket.create_connection(server.server_address, 10) as plain:
        head = f"PUT /{server.token}/annotation/a.png HTTP/1.1\r\nHost: 127.0.0.1:{server.server_address[1]}\r\n"
        plain.sendall(f"{head}Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        assert b" 411 " in plain.recv(1000)
    assert not (root / "a.json").exists()


@pytest.mark.parametrize("method", ["POST", "DELETE", "OPTIONS"])
def test_other_methods_do_nothing(server, method):
    assert ask(server, "annotation/a.png", method)[0] == 501


def test_the_command_says_the_address_and_ends_with_ctrl_c(root):
    # What is started in the background of a shell ignores Ctrl-C, and its children do, unless they say otherwise.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from seggym.cli import main; main()"
    )
    command = [sys.executable, "-c", code, "annotate", str(root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            url = process.stdout.readline().strip()
            with urllib.request.urlopen(url, timeout=30) as answer:
                assert b"<title>seggym annotate</title>" in answer.read()
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
        finally:
            process.kill()
    missing = subprocess.run([*command[:-1], str(root / "none")], capture_output=True, text=True)
    assert missing.returncode == 2
    assert missing.stderr.startswith("error: there is no folder")


def test_folders_without_images_and_ports_that_are_taken(root, tmp_path, server):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SeggymError, match="holds no image"):
        AnnotationServer(tmp_path / "empty")
    with pytest.raises(SeggymError, match="cannot be had"):
        AnnotationServer(root, server.server_address[1])
