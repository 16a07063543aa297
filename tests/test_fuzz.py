"""Odd, hostile and damaged files crash no process, and are never read wrong."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.fuzz.corpus import CORPUS, SECRET  # noqa: E402
from tests.fuzz.mutate import lookup3  # noqa: E402
from tests.fuzz.run import Reader, judge  # noqa: E402


@pytest.fixture(scope="module")
def readers():
    made = {mode: Reader(mode) for mode in ("plain", "default", "isolate")}
    yield made
    for reader in made.values():
        reader.close()


@pytest.mark.parametrize("name", CORPUS)
def test_an_odd_file(name, readers, tmp_path):
    build, expected, plain = CORPUS[name]
    path = tmp_path / "file.h5"
    build(path)
    assert os.path.lexists(path)
    reference = None
    if plain:
        readers["plain"].ask(path, False)
        reference = readers["plain"].answer()
    for mode in ("default", "isolate"):
        readers[mode].ask(path, False)
        answer = readers[mode].answer()
        if "host" not in answer:
            answer = {"image": answer["image"]}
        ((verdict, words),) = judge(reference, answer)
        allowed = {"read", "refused"} if expected == "either" else {expected}
        assert verdict in allowed, (mode, verdict, words)
        if verdict == "refused":
            assert str(path) in words
            assert SECRET.decode()[:20] not in words


def fuzz(*options):
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_damaged_files(tmp_path):
    said = fuzz("--cases", "250", "--keep", str(tmp_path))
    # Neither all of them, nor none.
    assert "read" in said
    assert "refused" in said


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_many_damaged_files(tmp_path):
    fuzz("--cases", "600", "--first", "100000", "--keep", str(tmp_path))


def test_the_checksum_of_newer_files():
    """The example values in the source of lookup3."""
    assert (lookup3(b""), lookup3(b"Four score and seven years ago")) == (0xDEADBEEF, 0x17770551)


def test_the_judge_detects_errors():
    ok, other = ["ok", "<f4", "aa", 3], ["ok", "<f4", "bb", 3]
    assert judge({"image": ok}, {"image": ok}) == [("read", "")]
    assert judge({"image": ok}, {"image": other})[0][0] == "wrong"
    assert judge({"image": ["refused", "x"]}, {"image": ok})[0][0] == "lenient"
    assert judge({}, {"host": ["crash", "SIGSEGV"]}) == [("crash", "SIGSEGV")]
