import json
import os
import subprocess
import sys
from pathlib import Path


def test_killed_at_ten_random_moments_and_resumed_gives_the_same_weights_to_the_bit(tmp_path):
    script = Path(__file__).with_name("killed_training.py")
    answer = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert answer.returncode == 0, answer.stderr
    told = json.loads(answer.stdout)
    assert told["killed"] == 10, told
    assert 0 < told["resumed_from"] < 400, told
    assert told["reached"] == sorted(told["reached"]), told
    assert told["same_weights"], told
    assert told["same_curves"], told
