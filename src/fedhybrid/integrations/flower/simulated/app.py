"""The ClientApp for Flower's own nodes: a message in, the reply to it out.

In a simulation jobs come right away, for whatever client. In a deployment the server greets each node first; Flower's
stock SuperNode then needs in its --node-config: name, budget, device (a row of `fedhybrid list devices`).
"""

from __future__ import annotations

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedhybrid.devices import load_profile, profile_table
from fedhybrid.engine import process_resident_bytes
from fedhybrid.integrations.flower.device.node import DeployedNode, NodeFacts
from fedhybrid.integrations.flower.device.tasks import Tasks
from fedhybrid.integrations.flower.messages import letter_of, record_of
from fedhybrid.integrations.flower.simulated.any_client import SimulatedNode, simulated_device
from fedhybrid.integrations.flower.simulated.mailbox import ask_by_mailbox

__all__ = ["client_app"]

client_app = ClientApp()
_tasks = Tasks()
_nodes: dict[int, DeployedNode] = {}


@client_app.train("fedhybrid")
def _train(message: Message, context: Context) -> Message:
    """Does a job, or goes on with one."""
    letter = letter_of(message.content)
    if letter.header.get("deployed") and context.node_id in _nodes:
        return Message(record_of(_nodes[context.node_id].handle(letter)), reply_to=message)
    brief = str(letter.header.get("brief", ""))
    mailbox = str(letter.header.get("mailbox", ""))
    ask = ask_by_mailbox(mailbox, str(letter.header["key"])) if mailbox else None
    reply = _tasks.handle(letter, simulated_device(brief), ask)
    return Message(record_of(reply), reply_to=message)


@client_app.query("fedhybrid")
def _query(message: Message, context: Context) -> Message:
    """Says who this node is, and joins a recipe."""
    if context.node_id not in _nodes:
        _nodes[context.node_id] = DeployedNode(facts=_facts(context), open_device=SimulatedNode)
    return Message(record_of(_nodes[context.node_id].handle(letter_of(message.content))), reply_to=message)


def _facts(context: Context) -> NodeFacts:
    config = context.node_config
    partition = config.get("partition-id")
    return NodeFacts(
        name=str(config.get("name", f"node-{partition if partition is not None else context.node_id}")),
        budget=lambda: str(config.get("budget", "100%")),
        device=profile_table(load_profile(str(config.get("device", "laptop")))),
        runtime_bytes=process_resident_bytes,
        client=partition if isinstance(partition, int) else None,
    )
