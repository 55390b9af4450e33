"""The sandbox GitHub: a stateful GitHub on one machine, held against GitHub's official description.

``Sandbox.start`` (bot.sandbox.sandbox) runs one for a test or the demo, ``run_sandbox`` (bot.sandbox.command) for the
command line. ``ValidatingTransport`` (bot.sandbox.transport) holds a client's requests against the description.
"""
