"""The server. Lines that FedHybrid needs are marked; the numbers are those of README.md."""

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp

from digits_app.task import Net, accuracy, batches_of, digits, loss_fn
from fedhybrid import SGD
from fedhybrid.integrations.flower import FedHybridStrategy

app = ServerApp()


def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    net = Net()
    net.load_state_dict(arrays.to_torch_state_dict())
    return MetricRecord({"accuracy": accuracy(net, digits()[1])})


@app.main()
def main(grid: Grid, context: Context) -> None:
    fraction, optimizer = float(context.run_config["fraction-train"]), SGD(lr=0.1, momentum=0.9)
    strategy = FedHybridStrategy(Net(), loss_fn, batches_of(0, 1)[0], optimizer, fraction_train=fraction)  # FedHybrid 5
    arrays, rounds = ArrayRecord(Net().state_dict()), int(context.run_config["rounds"])
    result = strategy.start(grid, arrays, num_rounds=rounds, evaluate_fn=evaluate)
    for told in strategy.history:
        for node, peak_bytes in sorted(told["measured_peak_bytes"].items()):
            print(f"round {told['round']}: node {node} {told['plans'][node]}: {peak_bytes:,} bytes measured")
    print(f"accuracy {result.evaluate_metrics_serverapp[rounds]['accuracy']:.3f}")
