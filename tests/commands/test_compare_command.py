"""`jepaplan compare`: paired, on the same instances, or refused."""

import json
import shutil

from jepaplan.cli import main


def test_a_run_cannot_be_told_apart_from_itself(evaluated, capsys):
    assert main(["compare", str(evaluated), str(evaluated)]) == 0
    assert "cannot be told apart" in capsys.readouterr().out
    assert main(["compare", str(evaluated), str(evaluated), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["difference"], found["wins"], found["losses"], found["ties"]) == (0, 0, 0, 4)


def test_methods_of_one_run_are_compared_by_name(evaluated, capsys):
    methods = ["--first-method", "value-guided", "--second-method", "prediction only"]
    assert main(["compare", str(evaluated), str(evaluated), *methods, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    saved = json.loads((evaluated / "outcomes" / "WallBig-demo.json").read_text())["success"]
    ours, theirs = saved["value-guided"], saved["prediction only"]
    assert found["wins"] == sum(a and not b for a, b in zip(ours, theirs, strict=True))
    assert found["losses"] == sum(b and not a for a, b in zip(ours, theirs, strict=True))


def test_what_cannot_be_compared_is_refused_in_words(evaluated, tmp_path, capsys):
    def refused(*arguments):
        code = main(["compare", *map(str, arguments)])
        said = capsys.readouterr()
        assert (code, said.out) == (2, "")
        return said.err

    said = refused(evaluated, tmp_path)
    assert "was not evaluated on WallBig-demo; known there: nothing yet" in said
    assert "known there: WallBig-demo" in refused(evaluated, evaluated, "--instances", "WallSmall-final")
    said = refused(evaluated, evaluated, "--first-method", "luck")
    assert "has no method 'luck'; it has value-guided, prediction only" in said

    fewer = shutil.copytree(evaluated, tmp_path / "fewer")
    file = fewer / "outcomes" / "WallBig-demo.json"
    saved = json.loads(file.read_text())
    saved["starts"] = saved["starts"][:2]
    saved["success"] = {name: success[:2] for name, success in saved["success"].items()}
    file.write_text(json.dumps(saved))
    assert "different instances (4 and 2)" in refused(evaluated, fewer)

    file.write_text("{")
    assert "is not what `jepaplan evaluate` writes" in refused(fewer, fewer)
