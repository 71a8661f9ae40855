"""The offline guard bites: in this process, in a child, in a Jupyter kernel. Loopback stays open."""

import socket
import subprocess
import sys
import threading
import urllib.request

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

# 192.0.2.0/24 is reserved for documentation: nothing answers there, even without a guard.
ELSEWHERE = ("192.0.2.1", 80)
REFUSED = "tests and notebooks run offline"
ATTEMPT = f"import socket; socket.create_connection({ELSEWHERE!r}, timeout=5)"


def test_connect_is_refused():
    with socket.socket() as s, pytest.raises(RuntimeError, match=REFUSED):
        s.connect(ELSEWHERE)


def test_sendto_is_refused():
    with socket.socket(type=socket.SOCK_DGRAM) as s, pytest.raises(RuntimeError, match=REFUSED):
        s.sendto(b"hello", ELSEWHERE)


@pytest.mark.parametrize("lookup", [lambda name: socket.getaddrinfo(name, 80), socket.gethostbyname])
def test_name_lookup_is_refused(lookup):
    with pytest.raises(RuntimeError, match=REFUSED):
        lookup("example.org")


def test_a_library_does_not_swallow_the_refusal():
    with pytest.raises(RuntimeError, match=REFUSED):
        urllib.request.urlopen("https://example.org", timeout=5)


def test_a_child_process_is_guarded():
    child = subprocess.run([sys.executable, "-c", ATTEMPT], capture_output=True, text=True, timeout=60)
    assert child.returncode != 0
    assert REFUSED in child.stderr


def test_a_kernel_is_guarded():
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(ATTEMPT)])
    with pytest.raises(CellExecutionError, match=REFUSED):
        NotebookClient(notebook, kernel_name="python3", timeout=60).execute()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_loopback_is_open(host):
    with socket.create_server(("127.0.0.1", 0)) as server:
        accept = threading.Thread(target=lambda: server.accept()[0].close())
        accept.start()
        socket.create_connection((host, server.getsockname()[1]), timeout=5).close()
        accept.join()


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no unix sockets here")
def test_unix_sockets_are_open(tmp_path):
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(str(tmp_path / "s"))
        server.listen()
        client.connect(str(tmp_path / "s"))
