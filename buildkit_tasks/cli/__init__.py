"""The Invoke side of the tasks: options, one invocation, exit codes."""
