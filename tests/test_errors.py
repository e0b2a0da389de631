"""The sentence of an error is built from its fields, and the fields survive the way from a worker process."""

import ast
import pickle
from pathlib import Path

import fedpgp
from fedpgp import errors
from fedpgp.errors import ConfigError, DataError


def test_a_value_that_is_not_allowed():
    error = ConfigError(where="task.clients", allowed="at most 4", got="ten", remedy="Use --set task.clients=4")
    assert str(error) == "task.clients must be at most 4, got 'ten'. Use --set task.clients=4"


def test_a_problem_in_a_place():
    error = DataError("row 3 has no label", where="list.csv", remedy="Add a label")
    assert str(error) == "list.csv: row 3 has no label. Add a label."


def test_a_long_value_is_cut():
    assert len(str(ConfigError(where="seed", allowed="a whole number", got="9" * 10_000))) < 300


def test_fields_reach_the_process_that_waits_for_a_worker():
    error = pickle.loads(pickle.dumps(DataError(where="shots", allowed="1 or more", got=None, remedy="Use --shots 1")))
    assert (error.where, error.allowed, error.got, error.remedy) == ("shots", "1 or more", None, "Use --shots 1")
    assert str(error) == "shots must be 1 or more, got None. Use --shots 1."
    assert pickle.loads(pickle.dumps(DataError("damaged"))).got is ...


def test_every_error_says_what_to_do():
    kinds = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    without = []
    for path in sorted(Path(fedpgp.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            raised = isinstance(node, ast.Call) and getattr(node.func, "id", "") in kinds
            if raised and not {"remedy", None} & {keyword.arg for keyword in node.keywords}:
                without.append(f"{path.name}:{node.lineno}")
    assert not without


def test_several_errors_have_a_line_each_with_its_remedy_once():
    remedies = ("Use --set task.clients=4", "Add labels", "Use --shots 1")
    for last in remedies:
        faults = [ConfigError("wrong", where="first", remedy="Fix it"), ConfigError("bad", where="second", remedy=last)]
        error = errors.combined(faults)
        assert str(error) == f"{faults[0]}\n{faults[1]}" and error.remedy == last
    assert errors.combined(faults[:1]) is faults[0]
