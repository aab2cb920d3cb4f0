"""What bench/trajectory/peers.sh compares with: 1 KiB records from one process to another with what Python programs use.

Each record is a dict of the same facts as Corral's, three arrays as bytes (1,024 together) included. The consumer reads every record's reward and the first byte of its
observation. Prints records per second, counted at the consumer from its first record to its last.

    peers.py zmq|zmq-batched|grpc|ray-queue|ray-queue-batched|ray-objects COUNT
"""
import multiprocessing
import os
import sys
import tempfile
import time

BATCH = 200  # records per message or call, where batches are used: about 256 KiB
OBS, ACTION, LOG_PROB = bytes(512), bytes(256), bytes(256)


def record(i):
    return {
        "run": 1, "worker": 0, "epoch": 1, "sequence": i, "kind": 0, "env": "calc", "episode": i,
        "tokens": 64, "oldest": 7, "newest": 7, "scores": {"reward": float(i % 100)},
        "obs": OBS, "action": ACTION, "log_prob": LOG_PROB,
    }


class Consumer:
    """Looks at records and knows how fast they came."""

    def __init__(self, count):
        self.count, self.seen, self.start, self.sum = count, 0, None, 0.0

    def take(self, r):
        if self.start is None:
            self.start = time.perf_counter()
        self.seen += 1
        assert r["episode"] == self.seen
        self.sum += r["scores"]["reward"] + r["obs"][0]
        return self.seen < self.count

    def rate(self):
        return (self.count - 1) / (time.perf_counter() - self.start)


def in_child(fn, *args):
    child = multiprocessing.get_context("spawn").Process(target=fn, args=args)
    child.start()
    return child


def zmq_produce(endpoint, count, batch):
    import msgpack
    import zmq

    context = zmq.Context()
    socket = context.socket(zmq.PUSH)
    socket.connect(endpoint)
    if batch == 1:
        for i in range(1, count + 1):
            socket.send(msgpack.packb(record(i)))
    else:
        for first in range(1, count + 1, batch):
            socket.send(msgpack.packb([record(i) for i in range(first, min(first + batch, count + 1))]), copy=False)
    socket.close(linger=30000)
    context.term()


def zmq_run(count, batch):
    import msgpack
    import zmq

    with tempfile.TemporaryDirectory() as folder:
        endpoint = f"ipc://{folder}/peer"
        socket = zmq.Context().socket(zmq.PULL)
        socket.bind(endpoint)
        child = in_child(zmq_produce, endpoint, count, batch)
        consumer = Consumer(count)
        more = True
        while more:
            message = msgpack.unpackb(socket.recv())
            for r in message if batch > 1 else [message]:
                more = consumer.take(r)
        rate = consumer.rate()
        child.join()
    return rate


def grpc_produce(port, count):
    import grpc
    import msgpack

    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        send = channel.stream_unary("/peer/Send", request_serializer=msgpack.packb, response_deserializer=bytes)
        send(record(i) for i in range(1, count + 1))


def grpc_run(count):
    from concurrent import futures

    import grpc
    import msgpack

    consumer = Consumer(count)
    result = []

    def handle(requests, _context):
        for r in requests:
            if not consumer.take(r):
                result.append(consumer.rate())
        return b""

    server = grpc.server(futures.ThreadPoolExecutor(max_workers=2))
    handler = grpc.stream_unary_rpc_method_handler(
        handle, request_deserializer=msgpack.unpackb, response_serializer=bytes)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("peer", {"Send": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    child = in_child(grpc_produce, port, count)
    child.join()
    server.stop(0)
    return result[0]


def ray_run(count, how):
    os.environ["RAY_DISABLE_IMPORT_WARNING"] = "1"
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    import logging

    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR,
             object_store_memory=256 << 20)
    try:
        return ray_queue(count, how == "ray-queue-batched") if how != "ray-objects" else ray_objects(count)
    finally:
        ray.shutdown()


def ray_queue(count, batched):
    import ray
    from ray.util.queue import Queue

    queue = Queue(maxsize=4096)

    @ray.remote
    def produce():
        if not batched:
            for i in range(1, count + 1):
                queue.put(record(i))
            return
        for first in range(1, count + 1, BATCH):
            batch = [record(i) for i in range(first, min(first + BATCH, count + 1))]
            while True:
                try:
                    queue.put_nowait_batch(batch)
                    break
                except Exception:  # ray.util.queue.Full, in whatever it is wrapped
                    time.sleep(0.0005)

    done = produce.remote()
    consumer = Consumer(count)
    more = True
    while more:
        if not batched:
            more = consumer.take(queue.get())
            continue
        waiting = min(queue.qsize(), BATCH)
        for r in queue.get_nowait_batch(waiting) if waiting else [queue.get()]:
            more = consumer.take(r)
    rate = consumer.rate()
    ray.get(done)
    return rate


def ray_objects(count):
    """Every record an object of the store; references go to the consumer in batches, the next batch being made meanwhile."""
    import ray

    @ray.remote
    class Producer:
        def batch(self, first, last):
            return [ray.put(record(i)) for i in range(first, last)]

    producer = Producer.remote()
    ranges = [(first, min(first + BATCH, count + 1)) for first in range(1, count + 1, BATCH)]
    ahead = [producer.batch.remote(*r) for r in ranges[:2]]
    consumer = Consumer(count)
    for i in range(len(ranges)):
        references = ray.get(ahead.pop(0))
        if i + 2 < len(ranges):
            ahead.append(producer.batch.remote(*ranges[i + 2]))
        for r in ray.get(references):
            consumer.take(r)
    return consumer.rate()


def main():
    if len(sys.argv) != 3 or not sys.argv[2].isdigit():
        sys.exit(__doc__)
    how, count = sys.argv[1], int(sys.argv[2])
    if how in ("zmq", "zmq-batched"):
        rate = zmq_run(count, BATCH if how == "zmq-batched" else 1)
    elif how == "grpc":
        rate = grpc_run(count)
    elif how in ("ray-queue", "ray-queue-batched", "ray-objects"):
        rate = ray_run(count, how)
    else:
        sys.exit(__doc__)
    print(f"{rate:.0f}")


if __name__ == "__main__":
    main()
