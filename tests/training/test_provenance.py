import json
import subprocess

from jepaplan.training.provenance import UNKNOWN, commit, hardware, machine, processor_family


def git(folder, *arguments):
    identity = ["-c", "user.name=someone", "-c", "user.email=someone@example.org"]
    return subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_the_commit_is_that_of_tracked_source_and_says_when_files_differ(tmp_path):
    source, installed = tmp_path / "src", tmp_path / "installed"
    for folder in (source, installed):
        folder.mkdir()
        (folder / "module.py").write_text("one")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "src")
    git(tmp_path, "commit", "-qm", "first")
    assert commit(source) == git(tmp_path, "rev-parse", "HEAD")
    assert commit(installed) == UNKNOWN  # inside somebody's repository, but not part of it
    page = tmp_path / "page.md"
    page.write_text("one")
    git(tmp_path, "add", "page.md")
    git(tmp_path, "commit", "-qm", "second")
    page.write_text("two")  # a page that a command has just written is no source
    commit.cache_clear()
    assert commit(source) == git(tmp_path, "rev-parse", "HEAD")
    (source / "module.py").write_text("two")
    commit.cache_clear()
    assert commit(source).endswith("-modified")


def test_outside_a_repository_the_commit_is_unknown(tmp_path):
    assert commit(tmp_path) == UNKNOWN


def test_hardware_is_plain_json_without_gaps():
    facts = hardware()
    assert json.loads(json.dumps(facts)) == facts
    assert all(value != "" for value in facts.values())
    assert facts["cores"] >= 1


def test_the_family_of_the_processor_is_named(tmp_path):
    """Machines that all call themselves "AMD EPYC" differ by half in speed."""
    told = tmp_path / "cpuinfo"
    told.write_text(
        "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel name\t: AMD EPYC\n\n"
        "processor\t: 1\nvendor_id\t: AuthenticAMD\ncpu family\t: 26\nmodel name\t: AMD EPYC\n"
    )
    assert processor_family(told) == "AuthenticAMD family 25"
    told.write_text("processor\t: 0\nBogoMIPS\t: 48.00\n")  # others name neither
    assert processor_family(told) == processor_family(tmp_path / "nothing") != ""
    assert f"({processor_family()}), " in machine()
    assert hardware()["family"] == processor_family()
