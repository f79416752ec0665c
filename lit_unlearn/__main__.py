"""``python -m lit_unlearn``: the commands there are."""

from lit_unlearn.command.console import COMMANDS

if __name__ == "__main__":
    print("python -m lit_unlearn.COMMAND [VERB] [PATH ...] [key=value ...]; --help after any of them says more\n")
    for name, does in COMMANDS.items():
        print(f"  {name:<12}{does}")
