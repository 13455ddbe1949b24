"""`netsonde agent`: what its help says of settings, and its other commands."""

from click.testing import CliRunner

from netsonde.agent.settings import CHECKS
from netsonde.cli.agent import OPTIONS, agent, run_agent
from netsonde.cli.fleet import agents
from netsonde.cli.root import main


def test_help_names_every_setting_once_as_an_option_or_below() -> None:
    shown = CliRunner().invoke(main, ["agent", "run", "--help"]).stdout
    below = " ".join(shown.partition("In the file and the environment only")[2].split())
    named = {name.strip(" .") for name in below.partition(":")[2].partition(".")[0].split(",")}
    assert named == set(CHECKS) - set(OPTIONS)
    has = {option.name for option in run_agent.params} - {"config_file", "help"}
    assert {f"{name}_s" if name == "drain_timeout" else name for name in has} == set(OPTIONS)


def test_what_agents_can_do_to_agents_is_here_too() -> None:
    assert set(agent.commands) == {"run", *agents.commands}
    done = CliRunner().invoke(main, ["agent", "show"])
    assert done.exit_code == 2
    assert "Missing argument" in done.stderr
