"""What the operator is started with: a mistake ends it with code 2 and a sentence before it begins."""

import pytest

from asysi_operator.__main__ import main, options

WRONG = [
    ("--metrics-port", "METRICS_PORT", "70000"),
    ("--metrics-port", "METRICS_PORT", "-1"),
    ("--metrics-port", "METRICS_PORT", "http"),
    ("--audit-seconds", "AUDIT_SECONDS", "0"),
    ("--audit-seconds", "AUDIT_SECONDS", "-5"),
    ("--audit-seconds", "AUDIT_SECONDS", "nan"),
    ("--audit-seconds", "AUDIT_SECONDS", "inf"),
    ("--image-pull-policy", "IMAGE_PULL_POLICY", "Sometimes"),
    ("--log-level", "LOG_LEVEL", "loud"),
    ("--allowed", "ALLOWED", "{"),
    ("--allowed", "ALLOWED", '{"cpus": -1}'),
    ("--metrics-readers", "METRICS_READERS", '{"podSelector": {}}'),
    ("--namespace", "NAMESPACES", "team a"),
    ("--namespace", "NAMESPACES", "Team"),
]


@pytest.mark.parametrize("given", ["argument", "variable"])
@pytest.mark.parametrize("wrong", WRONG, ids=lambda one: f"{one[0][2:]} {one[2]}")
def test_a_wrong_value_is_refused_by_its_option(wrong, given, monkeypatch, capsys):
    """Given as an argument or as a variable, it is named, and the exit code is 2."""
    option, variable, value = wrong
    if given == "variable":
        monkeypatch.setenv(f"ASYSI_OPERATOR_{variable}", value)
    with pytest.raises(SystemExit) as ended:
        options([f"{option}={value}"] if given == "argument" else [])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert f"argument {option}: " in said
    assert "Traceback" not in said


def test_variables_are_read_as_arguments_are(monkeypatch):
    """Each option has a variable, which stands where the argument is missing."""
    monkeypatch.setenv("ASYSI_OPERATOR_NAMESPACES", "team-a,team-b")
    monkeypatch.setenv("ASYSI_OPERATOR_AUDIT_SECONDS", "12.5")
    monkeypatch.setenv("ASYSI_OPERATOR_LOG_LEVEL", "error")
    chosen = options(["--log-level=debug"])
    assert (chosen.namespace, chosen.audit_seconds, chosen.log_level) == (["team-a", "team-b"], 12.5, "debug")
    assert (chosen.metrics_port, chosen.image_pull_policy) == (9100, "IfNotPresent")


def test_without_a_cluster_it_says_so(monkeypatch, tmp_path, capsys):
    """Outside a cluster and without a kubeconfig it ends with code 2 and a sentence, not a traceback."""
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert main(["--metrics-port=0"]) == 2
    said = capsys.readouterr().err
    assert "kubeconfig" in said
    assert "Traceback" not in said
